//! The lines of `journal`: what work a directory holds, who is at work in it, and how far its commit came. They are only ever
//! appended to: no moment leaves the directory without the first.
use super::claims;
use super::flock::Owner;
use super::place::remove;
use crate::error::{Error, Result};
use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name in the partial directory.
pub const NAME: &str = "journal";
/// The version of the format.
const VERSION: u32 = 2;
/// How every journal begins.
pub(crate) const MARK: &[u8] = br#"{"journal":"#;

/// What the work is, what it admits, and when its inputs were last changed. A later one replaces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    journal: u32,
    pub plan: String,
    allow_nonfinite: bool,
    mtimes_ns: Vec<i64>,
    pub outputs: Vec<String>,
}

impl Head {
    pub fn of(plan: &Plan) -> Result<Self> {
        let mtimes_ns = plan.inputs.iter().map(|file| file.mtime_ns).collect();
        let outputs = plan.outputs.iter().map(|output| output.name.clone()).collect();
        let (digest, allow_nonfinite) = (plan.digest()?, plan.allow_nonfinite);
        Ok(Self { journal: VERSION, plan: digest, allow_nonfinite, mtimes_ns, outputs })
    }

    /// Names all of it.
    pub fn work(&self) -> Result<String> {
        Ok(blake3::hash(json(self)?.as_bytes()).to_hex().to_string())
    }

    /// The output files, as far as their names are names of files.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
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
    /// Who was, and is no more.
    Left {
        left: Owner,
    },
}

/// The whole lines of a journal, up to the first that cannot be read.
#[derive(Default)]
pub(crate) struct Contents {
    pub head: Option<Head>,
    finished: bool,
    /// The inode of the directory that is exchanged for this one.
    pub replaces: Option<u64>,
    /// Who works here without a lock.
    pub owner: Option<Owner>,
    /// Bytes that could be read.
    pub end: u64,
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
                Ok(Line::Left { .. }) => contents.owner = None,
                Ok(Line::Head(_)) | Err(_) => break,
            }
            contents.end += line.len() as u64;
        }
        contents
    }

    /// Who says without a lock to be at work in the directory of this journal: on all of it, or on an output.
    pub fn owners(&self, directory: &Path) -> Result<Vec<Owner>> {
        let mut owners: Vec<_> = self.owner.clone().into_iter().collect();
        for output in self.head.iter().flat_map(Head::outputs) {
            owners.extend(claims::Contents::read(directory, output)?.owner);
        }
        Ok(owners)
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

/// A line of a journal.
pub(crate) fn json(line: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(line).map_err(|e| Error::Panic(format!("journal: {e}")))?;
    Ok(text + "\n")
}
