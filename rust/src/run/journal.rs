//! The records of a run: `journal`, which marks `OUT.partial` as mol's and identifies its work, and next to each output
//! file its claims, which record what is finished. Only ever appended to.
use super::begin::begin;
use super::claims::{self, Claim, Claims};
use super::head::Head;
use super::lock::Lock;
use super::share::join;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::watch::Watch;
use blake3::Hash;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The open journal of a plan, and the claims of the output files in progress.
#[derive(Debug)]
pub struct Journal<'a> {
    plan: &'a Plan,
    plan_digest: String,
    /// Identifies the plan, what it allows and when its inputs were modified.
    work: String,
    partial: PathBuf,
    /// Keys of the tasks.
    keys: Vec<Hash>,
    claims: Vec<Mutex<Option<Claims>>>,
}

impl<'a> Journal<'a> {
    /// Opens or creates the journal of a plan in a directory, held exclusively or shared; if shared, locks `outputs`
    /// for this process. With `sync` its first line is on disk before anything else is created there.
    pub fn open(lock: &mut Lock, plan: &'a Plan, outputs: &BTreeSet<usize>, sync: bool, watch: &Watch) -> Result<Self> {
        let keys = claims::keys(plan)?;
        let head = Head::of(plan, &keys)?;
        if lock.is_shared() {
            let names = outputs.iter().map(|output| plan.outputs[*output].name.as_str());
            join(lock, plan, &head, names, sync, watch)?;
        } else {
            begin(lock, plan, &head, sync)?;
        }
        let claims = plan.outputs.iter().map(|_| Mutex::new(None)).collect();
        let work = head.work()?;
        Ok(Self { plan, work, plan_digest: head.plan, partial: lock.partial().into(), keys, claims })
    }

    /// Returns the digest of the plan.
    pub fn plan_digest(&self) -> &str {
        &self.plan_digest
    }

    /// Returns the claims of an output file, opened at first use.
    fn with<T>(&self, output: usize, then: impl FnOnce(&mut Claims) -> Result<T>) -> Result<T> {
        let mut held: MutexGuard<Option<Claims>> = self.claims[output].lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(Claims::open(&self.partial, &self.plan.outputs[output].name)?);
        }
        held.as_mut().map_or_else(|| Err(Error::Panic("no claims".into())), then)
    }

    /// Returns what an earlier run claims for a task, if it is acceptable.
    pub(crate) fn claimed(&self, task: usize) -> Result<Option<Claim>> {
        let output = self.plan.target(task).1.output;
        let claim = self.with(output, |claims| Ok(claims.get(&self.keys[task])))?;
        Ok(claim.filter(|claim| claim.finite || self.plan.allow_nonfinite))
    }

    /// Records a task whose bytes are all written.
    pub(crate) fn claim(&self, task: usize, claim: Claim) -> Result<()> {
        self.with(self.plan.target(task).1.output, |claims| claims.claim(&self.keys[task], claim))
    }

    /// Retracts claims that do not match the bytes.
    pub fn void(&self, tasks: impl IntoIterator<Item = usize>) -> Result<()> {
        tasks.into_iter().try_for_each(|task| {
            let key = &self.keys[task];
            self.with(self.plan.target(task).1.output, |claims| match claims.get(key) {
                Some(_) => claims.void(key),
                None => Ok(()),
            })
        })
    }

    /// Records that an output file is complete.
    pub fn complete(&self, output: usize) -> Result<()> {
        self.with(output, |claims| claims.complete(&self.work))
    }

    /// Closes the claims of an output file.
    pub fn close(&self, output: usize) {
        *self.claims[output].lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
