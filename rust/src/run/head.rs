//! The lines of `journal`: which work a directory holds, who is working in it, and how far its commit got. Only ever
//! appended to, so the first line is there at every moment.
use super::claims;
use super::flock::Owner;
use super::paths::remove;
use crate::error::{Error, Result};
use crate::plan::{Plan, directory_of, is_inside};
use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// Name of the file in the partial directory.
pub const NAME: &str = "journal";
/// Version of the format.
const VERSION: u32 = 3;
/// How every journal starts.
pub(crate) const MARK: &[u8] = br#"{"journal":"#;

/// The work, what it allows, and a digest of the keys of its claims. A later one replaces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    journal: u32,
    pub plan: String,
    allow_nonfinite: bool,
    claims: String,
    pub outputs: Vec<String>,
}

impl Head {
    /// Describes the work of a plan; `keys` are those of its claims.
    pub fn of(plan: &Plan, keys: &[Hash]) -> Result<Self> {
        let mut claims = Hasher::new();
        for key in keys {
            claims.update(key.as_bytes());
        }
        let claims = claims.finalize().to_hex().to_string();
        let outputs = plan.outputs.iter().map(|output| output.name.clone()).collect();
        let (digest, allow_nonfinite) = (plan.digest()?, plan.allow_nonfinite);
        Ok(Self { journal: VERSION, plan: digest, allow_nonfinite, claims, outputs })
    }

    /// Digest of the plan.
    pub fn work(&self) -> Result<String> {
        Ok(blake3::hash(json(self)?.as_bytes()).to_hex().to_string())
    }

    /// Returns the output files whose names do not lead out of the directory.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(String::as_str).filter(|name| is_inside(name))
    }

    /// Returns the directories of the output files, each once.
    pub fn directories(&self) -> BTreeSet<&str> {
        self.outputs().map(directory_of).collect()
    }
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Head(Head),
    /// All output files are complete, and the directory is about to become OUT.
    Finished {
        finished: bool,
    },
    /// Inode of the directory that is exchanged for this one and then removed.
    Replaces {
        replaces: u64,
    },
    /// A process that works here, if the file system has no locks.
    Owner {
        owner: Owner,
    },
    /// A process that has stopped working here.
    Left {
        left: Owner,
    },
}

/// The complete lines of a journal, up to the first that cannot be parsed.
#[derive(Default)]
pub(crate) struct Contents {
    pub head: Option<Head>,
    finished: bool,
    /// Inode of the directory that is exchanged for this one.
    pub replaces: Option<u64>,
    /// The process that works here without a lock.
    pub owner: Option<Owner>,
    /// Number of bytes that could be parsed.
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

    /// Returns the process that claims, without a lock, to work in this journal's directory: on all of it, or on one
    /// output.
    pub fn owners(&self, directory: &Path) -> Result<Vec<Owner>> {
        let mut owners: Vec<_> = self.owner.clone().into_iter().collect();
        for output in self.head.iter().flat_map(Head::outputs) {
            owners.extend(claims::Contents::read(directory, output)?.owner);
        }
        Ok(owners)
    }

    /// Returns whether every output file in this journal's directory is complete.
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

    /// Returns whether this is the journal of a directory that became OUT.
    pub fn is_committed(&self, out: &Path) -> Result<bool> {
        Ok(self.finished || self.is_complete(out)?)
    }

    /// Removes the journals from a directory that became OUT; this one last, since it allows the removal.
    pub fn remove_journals(&self, out: &Path) -> Result<()> {
        for output in self.head.iter().flat_map(Head::outputs) {
            remove(&out.join(claims::name(output)))?;
        }
        remove(&out.join(NAME))
    }
}

/// Formats a line of a journal.
pub(crate) fn json(line: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(line).map_err(|e| Error::Panic(format!("journal: {e}")))?;
    Ok(text + "\n")
}
