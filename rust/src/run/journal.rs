//! What a run writes down as it goes: `journal`, which marks `OUT.partial` as mol's and says whose work it holds, and beside
//! each output file its claims, which say what of it is finished. They are only ever appended to.
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

/// The open journal of a plan, and those of its output files that are at work.
#[derive(Debug)]
pub struct Journal<'a> {
    plan: &'a Plan,
    plan_digest: String,
    /// What names the plan, what it admits and when its inputs were changed.
    work: String,
    partial: PathBuf,
    /// What names each task.
    keys: Vec<Hash>,
    claims: Vec<Mutex<Option<Claims>>>,
}

impl<'a> Journal<'a> {
    /// Opens or begins the journal of a plan in a place: one that this process has alone, or one that it shares, where it
    /// keeps `outputs` for itself. With `sync` the mark is on the disk before anything else is made there.
    pub fn open(lock: &mut Lock, plan: &'a Plan, outputs: &BTreeSet<usize>, sync: bool, watch: &Watch) -> Result<Self> {
        let head = Head::of(plan)?;
        if lock.is_shared() {
            let names = outputs.iter().map(|output| plan.outputs[*output].name.as_str());
            join(lock, plan, &head, names, sync, watch)?;
        } else {
            begin(lock, plan, &head, sync)?;
        }
        let claims = plan.outputs.iter().map(|_| Mutex::new(None)).collect();
        let (work, keys) = (head.work()?, claims::keys(plan)?);
        Ok(Self { plan, work, plan_digest: head.plan, partial: lock.partial().into(), keys, claims })
    }

    /// What names the plan.
    pub fn plan_digest(&self) -> &str {
        &self.plan_digest
    }

    /// The claims of an output file, opened when they are first asked for.
    fn with<T>(&self, output: usize, then: impl FnOnce(&mut Claims) -> Result<T>) -> Result<T> {
        let mut held: MutexGuard<Option<Claims>> = self.claims[output].lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(Claims::open(&self.partial, &self.plan.outputs[output].name)?);
        }
        held.as_mut().map_or_else(|| Err(Error::Panic("no claims".into())), then)
    }

    /// What an earlier run claims for a task, if it may be taken.
    pub(crate) fn claimed(&self, task: usize) -> Result<Option<Claim>> {
        let output = self.plan.target(task).1.output;
        let claim = self.with(output, |claims| Ok(claims.get(&self.keys[task])))?;
        Ok(claim.filter(|claim| claim.finite || self.plan.allow_nonfinite))
    }

    /// Records a tensor whose bytes are all written.
    pub(crate) fn claim(&self, task: usize, claim: Claim) -> Result<()> {
        self.with(self.plan.target(task).1.output, |claims| claims.claim(&self.keys[task], claim))
    }

    /// Takes claims back whose bytes are not what they say.
    pub fn void(&self, tasks: impl IntoIterator<Item = usize>) -> Result<()> {
        tasks.into_iter().try_for_each(|task| {
            let key = &self.keys[task];
            self.with(self.plan.target(task).1.output, |claims| match claims.get(key) {
                Some(_) => claims.void(key),
                None => Ok(()),
            })
        })
    }

    /// Records that an output file is whole.
    pub fn complete(&self, output: usize) -> Result<()> {
        self.with(output, |claims| claims.complete(&self.work))
    }

    /// Closes the claims of an output file.
    pub fn close(&self, output: usize) {
        *self.claims[output].lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
