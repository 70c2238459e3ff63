//! What marks `OUT.partial` as mol's and says whose work it holds. What of that is finished is said beside each output
//! file, by its claims. It is only ever appended to: no moment leaves the directory without its first line.
use super::claims::{self, Claim, Claims};
use super::lock::{Lock, Owner, remove};
use super::writer::{INDEX, holds_outputs_alone};
use crate::error::{Error, Result};
use crate::plan::Plan;
use blake3::Hash;
use serde::{Deserialize, Serialize};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file's name in the partial directory.
pub const NAME: &str = "journal";
/// The version of the format.
const VERSION: u32 = 2;
/// How every journal begins.
const MARK: &[u8] = br#"{"journal":"#;

/// What the work is, what it admits, and when its inputs were last changed. A later one replaces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    journal: u32,
    plan: String,
    allow_nonfinite: bool,
    mtimes_ns: Vec<i64>,
    outputs: Vec<String>,
}

impl Head {
    fn of(plan: &Plan) -> Result<Self> {
        let mtimes_ns = plan.inputs.iter().map(|file| file.mtime_ns).collect();
        let outputs = plan.outputs.iter().map(|output| output.name.clone()).collect();
        let (digest, allow_nonfinite) = (plan.digest()?, plan.allow_nonfinite);
        Ok(Self { journal: VERSION, plan: digest, allow_nonfinite, mtimes_ns, outputs })
    }

    /// Names all of it.
    fn work(&self) -> Result<String> {
        Ok(blake3::hash(json(self)?.as_bytes()).to_hex().to_string())
    }

    /// The output files, as far as their names are names of files.
    fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(String::as_str).filter(|name| Path::new(name).file_name() == Some(name.as_ref()))
    }
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Head(Head),
    /// All output files are whole, and the directory is to become OUT.
    Finished {
        finished: bool,
    },
    /// The inode of the directory that is exchanged for this one, and then removed.
    Replaces {
        replaces: u64,
    },
    /// Who is at work, where the file system has no locks.
    Owner {
        owner: Owner,
    },
}

/// The whole lines of a journal, up to the first that cannot be read.
#[derive(Default)]
pub(crate) struct Contents {
    head: Option<Head>,
    finished: bool,
    /// The inode of the directory that is exchanged for this one.
    pub replaces: Option<u64>,
    /// The last to work here without a lock.
    pub owner: Option<Owner>,
    /// Bytes that could be read.
    end: u64,
}

impl Contents {
    pub fn of(text: &[u8]) -> Self {
        let mut contents = Self::default();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if !line.ends_with(b"\n") {
                break;
            }
            match serde_json::from_slice(line) {
                Ok(Line::Head(head)) if head.journal == VERSION => {
                    contents.head = Some(head);
                    contents.finished = false;
                }
                Ok(_) if contents.head.is_none() => break,
                Ok(Line::Finished { finished }) => contents.finished = finished,
                Ok(Line::Replaces { replaces }) => contents.replaces = Some(replaces),
                Ok(Line::Owner { owner }) => contents.owner = Some(owner),
                Ok(Line::Head(_)) | Err(_) => break,
            }
            contents.end += line.len() as u64;
        }
        contents
    }

    /// Whether every output file in the directory of this journal is whole.
    pub fn is_complete(&self, directory: &Path) -> Result<bool> {
        let Some(head) = &self.head else { return Ok(false) };
        let work = head.work()?;
        for output in &head.outputs {
            if claims::Contents::read(directory, output)?.complete.as_ref() != Some(&work) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether this is the journal of a directory that became OUT.
    pub fn is_committed(&self, out: &Path) -> Result<bool> {
        Ok(self.finished || self.is_complete(out)?)
    }

    /// Removes the journals from a directory that became OUT; this one last, since it says that they may go.
    pub fn remove_journals(&self, out: &Path) -> Result<()> {
        for output in self.head.iter().flat_map(Head::outputs) {
            remove(&out.join(claims::name(output)))?;
        }
        remove(&out.join(NAME))
    }
}

/// What stands in a partial directory.
#[derive(Debug)]
pub enum Found {
    /// Nothing to resume: no directory, an empty one, or one in which nothing was finished.
    Nothing,
    /// Work of this plan, or of another that has some of its tensors: how many are claimed. Inputs may have been written
    /// anew since, and then nothing is claimed that was made of them.
    Claims(usize),
    /// Work of a plan that has nothing in common with this one.
    OtherPlan,
    /// A directory of mol's, whose journal was damaged or is of another version.
    Unreadable,
    /// Something that mol did not make.
    Foreign,
}

/// What a place holds, of the view of a plan. A last line that a crash cut short is dropped.
pub fn inspect(lock: &mut Lock, plan: &Plan) -> Result<Found> {
    Ok(look(lock, plan, &Head::of(plan)?)?.0)
}

fn look(lock: &mut Lock, plan: &Plan, wanted: &Head) -> Result<(Found, Contents)> {
    lock.find()?;
    let nothing = Contents::default();
    let Some(text) = lock.journal_bytes()? else {
        return Ok((if lock.is_vacant()? { Found::Nothing } else { Found::Foreign }, nothing));
    };
    let begun = text.contains(&b'\n');
    if !text.starts_with(MARK) {
        // Killed before its first line was whole, before anything else was made. An empty file could be anybody's: after a
        // power cut without `sync` shards may be there, which are known by their headers.
        let torn = !begun && MARK.starts_with(&text);
        let torn = torn && (!text.is_empty() || lock.is_vacant()? || holds_outputs_alone(plan, lock.partial())?);
        return Ok((if torn { Found::Nothing } else { Found::Foreign }, nothing));
    }
    let contents = Contents::of(&text);
    let found = match &contents.head {
        None if begun => Found::Unreadable,
        None => Found::Nothing,
        Some(head) => match count(plan, head, lock.partial())? {
            (0, 0) => Found::Nothing,
            (0, _) if head.plan != wanted.plan => Found::OtherPlan,
            (ours, _) => Found::Claims(ours),
        },
    };
    Ok((found, contents))
}

/// How many tasks of a plan are claimed in a directory, and how many there are of whatever plan.
fn count(plan: &Plan, head: &Head, partial: &Path) -> Result<(usize, usize)> {
    let mut all = 0;
    for output in head.outputs() {
        all += claims::Contents::read(partial, output)?.claims.len();
    }
    if all == 0 {
        return Ok((0, 0));
    }
    let mut ours = 0;
    let (tasks, keys) = (crate::layout::safetensors::tasks_of_outputs(plan), claims::keys(plan)?);
    for (output, tasks) in plan.outputs.iter().zip(tasks) {
        let found = claims::Contents::read(partial, &output.name)?;
        for key in &keys[tasks] {
            let claim = found.claims.get(key);
            ours += usize::from(claim.is_some_and(|claim| claim.finite || plan.allow_nonfinite));
        }
    }
    Ok((ours, all))
}

/// The open journal of a plan, and those of its output files that are at work.
#[derive(Debug)]
pub struct Journal<'a> {
    plan: &'a Plan,
    head: Head,
    work: String,
    partial: PathBuf,
    /// What names each task.
    keys: Vec<Hash>,
    claims: Vec<Mutex<Option<Claims>>>,
}

impl<'a> Journal<'a> {
    /// Opens or begins the journal of a plan in a place that is locked. With `sync` the mark is on the disk before anything
    /// else is made there.
    pub fn open(lock: &mut Lock, plan: &'a Plan, sync: bool) -> Result<Self> {
        let place = lock.partial().display().to_string();
        let head = Head::of(plan)?;
        let (found, contents) = look(lock, plan, &head)?;
        match found {
            Found::Nothing | Found::Claims(_) => {}
            Found::OtherPlan => {
                return Err(Error::Merge(format!("{place}: holds the unfinished work of another plan")));
            }
            Found::Unreadable => return Err(Error::Merge(format!("{place}: holds a journal that cannot be read"))),
            Found::Foreign => return Err(Error::Merge(format!("{place}: holds files that are not mol's"))),
        }
        let mut file = lock.hold(sync)?;
        let path = lock.partial().join(NAME);
        let first = json(&head)?;
        let mut set = || {
            if contents.head.is_none() {
                // Over what a crash left of it, so that the mark is there at every moment.
                file.write_all_at(first.as_bytes(), 0)?;
            }
            file.set_len(contents.head.as_ref().map_or(first.len() as u64, |_| contents.end))?;
            file.seek(SeekFrom::End(0))
        };
        set().map_err(Error::io(&path))?;
        if let Some(before) = contents.head.filter(|before| *before != head) {
            drop_stale(lock.partial(), &before, &head)?;
            file.write_all(first.as_bytes()).map_err(Error::io(&path))?;
        }
        if let Some(owner) = lock.owner() {
            file.write_all(json(&Line::Owner { owner })?.as_bytes()).map_err(Error::io(&path))?;
        }
        if sync {
            lock.sync_journal()?;
        }
        let claims = plan.outputs.iter().map(|_| Mutex::new(None)).collect();
        let (work, keys) = (head.work()?, claims::keys(plan)?);
        Ok(Self { plan, work, head, partial: lock.partial().into(), keys, claims })
    }

    /// What names the plan.
    pub fn plan_digest(&self) -> &str {
        &self.head.plan
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

/// Removes the output files of earlier work that this one does not have.
fn drop_stale(partial: &Path, before: &Head, now: &Head) -> Result<()> {
    for output in before.outputs().filter(|output| !now.outputs.iter().any(|name| name == output)) {
        remove(&partial.join(output))?;
        remove(&partial.join(claims::name(output)))?;
    }
    if now.outputs.len() < 2 { remove(&partial.join(INDEX)) } else { Ok(()) }
}

/// A line of a journal.
pub(crate) fn json(line: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(line).map_err(|e| Error::Panic(format!("journal: {e}")))?;
    Ok(text + "\n")
}
