//! What is finished in `OUT.partial`: one line a tensor, so that the same command resumes where a crash left it.
use crate::error::{Error, Result};
use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The file's name in the partial directory.
pub const NAME: &str = "journal";

/// The first line: what the work is, and when its inputs were last changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    journal: u32,
    plan: String,
    tasks: usize,
    mtimes_ns: Vec<i64>,
}

impl Head {
    fn of(plan: &Plan) -> Result<Self> {
        let mtimes_ns = plan.inputs.iter().map(|file| file.mtime_ns).collect();
        Ok(Self { journal: 1, plan: plan.digest()?, tasks: plan.tasks.len(), mtimes_ns })
    }
}

/// A finished tensor: its index in the plan, and the CRC-64/NVME of its bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// Index of the task.
    pub task: usize,
    /// CRC-64/NVME of the tensor's bytes.
    pub crc64nvme: u64,
}

/// The open journal, locked.
#[derive(Debug)]
pub struct Journal {
    head: Head,
    path: PathBuf,
    file: Mutex<File>,
}

/// What stands in a partial directory.
#[derive(Debug)]
pub enum Found {
    /// Nothing to resume: no directory, an empty one, or a journal that was never begun.
    Nothing,
    /// Work of this plan; its inputs may have been written anew since, and then nothing is claimed.
    Claims(Vec<Claim>),
    /// Work of another plan.
    OtherPlan,
    /// Something that mol did not make.
    Foreign,
}

/// Looks at a partial directory without touching it. A last line that a crash cut short is dropped.
pub fn inspect(partial: &Path, plan: &Plan) -> Result<Found> {
    look(partial, &Head::of(plan)?)
}

fn look(partial: &Path, wanted: &Head) -> Result<Found> {
    match fs::read_dir(partial) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(Error::io(partial)(e)),
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Ok(Found::Nothing);
            }
        }
    }
    let Some(text) = read(partial)? else { return Ok(Found::Foreign) };
    if text.is_empty() {
        return Ok(Found::Nothing);
    }
    let Some((head, claims)) = parse(&text) else { return Ok(Found::Foreign) };
    if head.plan != wanted.plan {
        return Ok(Found::OtherPlan);
    }
    Ok(Found::Claims(if head == *wanted { claims } else { Vec::new() }))
}

/// Whether the journal claims every tensor of its plan.
pub fn is_finished(partial: &Path) -> Result<bool> {
    let Some((head, claims)) = read(partial)?.as_deref().and_then(parse) else { return Ok(false) };
    let tasks: BTreeSet<usize> = claims.iter().map(|claim| claim.task).collect();
    Ok(tasks.len() == head.tasks)
}

/// The whole lines of a journal, or `None` where there is none.
fn read(partial: &Path) -> Result<Option<String>> {
    let path = partial.join(NAME);
    match fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(&path)(e)),
        Ok(mut text) => {
            text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
            Ok(Some(text))
        }
    }
}

fn parse(text: &str) -> Option<(Head, Vec<Claim>)> {
    let mut lines = text.lines();
    let head = serde_json::from_str(lines.next()?).ok()?;
    Some((head, lines.map_while(|line| serde_json::from_str(line).ok()).collect()))
}

/// Opens a journal's file and locks it, so that one process at a time works in a partial directory.
fn lock(partial: &Path) -> Result<File> {
    let path = partial.join(NAME);
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::Merge(format!("{}: another mol-merge is at work there", partial.display())))
        }
        Err(TryLockError::Error(e)) => Err(Error::io(&path)(e)),
    }
}

/// Removes the unfinished work of another plan, unless a process is at it.
pub fn discard(partial: &Path) -> Result<()> {
    let _lock = lock(partial)?;
    fs::remove_dir_all(partial).map_err(Error::io(partial))
}

impl Journal {
    /// Opens or begins the journal of a plan, and returns what an earlier run claims.
    pub fn open(partial: &Path, plan: &Plan) -> Result<(Self, Vec<Claim>)> {
        let place = partial.display();
        let head = Head::of(plan)?;
        let claims = match look(partial, &head)? {
            Found::Nothing => Vec::new(),
            Found::Claims(claims) => claims,
            Found::OtherPlan => {
                return Err(Error::Merge(format!("{place}: holds the unfinished work of another plan")));
            }
            Found::Foreign => return Err(Error::Merge(format!("{place}: holds files that are not mol's"))),
        };
        fs::create_dir_all(partial).map_err(Error::io(partial))?;
        let (path, file) = (partial.join(NAME), lock(partial)?);
        // Begun anew: the run repeats the claims whose bytes it finds on the disk.
        file.set_len(0).map_err(Error::io(&path))?;
        let journal = Self { head, path, file: Mutex::new(file) };
        journal.line(&journal.head)?;
        Ok((journal, claims))
    }

    /// What names the work.
    pub fn plan_digest(&self) -> &str {
        &self.head.plan
    }

    fn line(&self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|e| Error::Panic(format!("journal: {e}")))?;
        text.push('\n');
        let mut file = self.file.lock().map_err(|_| Error::Panic("the journal's lock is poisoned".into()))?;
        file.write_all(text.as_bytes()).map_err(Error::io(&self.path))
    }

    /// Records a tensor whose bytes are all written.
    pub fn claim(&self, claim: Claim) -> Result<()> {
        self.line(&claim)
    }
}
