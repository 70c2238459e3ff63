//! What is finished in `OUT.partial`: one line a tensor, so that the same command resumes where a crash left it. Its
//! first line also marks the directory as mol's. It is only ever appended to: no moment leaves it without that line.
use crate::error::{Error, Result};
use crate::lock::{Lock, Owner};
use crate::plan::Plan;
use crate::writer::holds_outputs_alone;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;

/// The file's name in the partial directory.
pub const NAME: &str = "journal";
/// The version of the format.
const VERSION: u32 = 1;
/// How every journal begins.
const MARK: &[u8] = br#"{"journal":"#;

/// What the work is, and when its inputs were last changed. A later one makes the claims before it void.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    journal: u32,
    plan: String,
    tasks: usize,
    allow_nonfinite: bool,
    mtimes_ns: Vec<i64>,
}

impl Head {
    fn of(plan: &Plan) -> Result<Self> {
        let mtimes_ns = plan.inputs.iter().map(|file| file.mtime_ns).collect();
        let (tasks, allow_nonfinite) = (plan.tasks.len(), plan.allow_nonfinite);
        Ok(Self { journal: VERSION, plan: plan.digest()?, tasks, allow_nonfinite, mtimes_ns })
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

/// A line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Head(Head),
    Claim(Claim),
    /// A claim that did not hold.
    Void {
        void: usize,
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
    claims: BTreeMap<usize, u64>,
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
                    contents.claims.clear();
                }
                Ok(_) if contents.head.is_none() => break,
                Ok(Line::Claim(claim)) => {
                    contents.claims.insert(claim.task, claim.crc64nvme);
                }
                Ok(Line::Void { void }) => {
                    contents.claims.remove(&void);
                }
                Ok(Line::Replaces { replaces }) => contents.replaces = Some(replaces),
                Ok(Line::Owner { owner }) => contents.owner = Some(owner),
                Ok(Line::Head(_)) | Err(_) => break,
            }
            contents.end += line.len() as u64;
        }
        contents
    }

    /// Whether every tensor of the plan is claimed.
    pub fn is_finished(&self) -> bool {
        let Some(head) = &self.head else { return false };
        self.claims.range(..head.tasks).count() == head.tasks
    }
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
        Some(head) if head.plan != wanted.plan => Found::OtherPlan,
        Some(head) if head != wanted => Found::Claims(Vec::new()),
        Some(_) => Found::Claims(contents.claims.iter().map(|(&task, &crc64nvme)| Claim { task, crc64nvme }).collect()),
    };
    Ok((found, contents))
}

/// The open journal of a plan.
#[derive(Debug)]
pub struct Journal {
    head: Head,
    path: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    /// Opens or begins the journal of a plan in a place that is locked, and returns what an earlier run claims. With
    /// `sync` the mark is on the disk before anything else is made there.
    pub fn open(lock: &mut Lock, plan: &Plan, sync: bool) -> Result<(Self, Vec<Claim>)> {
        let place = lock.partial().display().to_string();
        let wanted = Head::of(plan)?;
        let (found, contents) = look(lock, plan, &wanted)?;
        let claims = match found {
            Found::Nothing => Vec::new(),
            Found::Claims(claims) => claims,
            Found::OtherPlan => {
                return Err(Error::Merge(format!("{place}: holds the unfinished work of another plan")));
            }
            Found::Unreadable => return Err(Error::Merge(format!("{place}: holds a journal that cannot be read"))),
            Found::Foreign => return Err(Error::Merge(format!("{place}: holds files that are not mol's"))),
        };
        let mut file = lock.hold(sync)?;
        let path = lock.partial().join(NAME);
        let head = json(&wanted)?;
        let mut set = || {
            if contents.head.is_none() {
                // Over what a crash left of it, so that the mark is there at every moment.
                file.write_all_at(head.as_bytes(), 0)?;
            }
            file.set_len(contents.head.as_ref().map_or(head.len() as u64, |_| contents.end))?;
            file.seek(SeekFrom::End(0))
        };
        set().map_err(Error::io(&path))?;
        let journal = Self { head: wanted, path, file: Mutex::new(file) };
        if contents.head.is_some_and(|head| head != journal.head) {
            journal.begin_anew()?;
        }
        if let Some(owner) = lock.owner() {
            journal.line(&Line::Owner { owner })?;
        }
        if sync {
            lock.sync_journal()?;
        }
        Ok((journal, claims))
    }

    /// What names the work.
    pub fn plan_digest(&self) -> &str {
        &self.head.plan
    }

    fn line(&self, line: &impl Serialize) -> Result<()> {
        let mut file = self.file.lock().map_err(|_| Error::Panic("the journal's lock is poisoned".into()))?;
        file.write_all(json(line)?.as_bytes()).map_err(Error::io(&self.path))
    }

    /// Records a tensor whose bytes are all written.
    pub fn claim(&self, claim: Claim) -> Result<()> {
        self.line(&claim)
    }

    /// Takes a claim back whose bytes are not what it says.
    pub fn void(&self, task: usize) -> Result<()> {
        self.line(&Line::Void { void: task })
    }

    /// Takes all claims back: the inputs have changed.
    pub fn begin_anew(&self) -> Result<()> {
        self.line(&self.head)
    }
}

/// A line of the journal.
pub(crate) fn json(line: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(line).map_err(|e| Error::Panic(format!("journal: {e}")))?;
    Ok(text + "\n")
}
