//! Records what is finished of one output file: `OUTPUT.journal` next to it, one line per task, so that the same
//! command resumes after a crash. Only ever appended to, so a kill at any moment loses nothing recorded before.
use super::flock::Owner;
use super::inputs::each_input;
use super::writer::{make_way, open_own};
use crate::error::{Error, Result};
use crate::plan::Plan;
use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Returns the name of the file that holds the claims of an output.
pub(crate) fn name(output: &str) -> String {
    format!("{output}.journal")
}

/// The keys of a plan's tasks: digest, and which files it reads for what, with the times of their last change, since
/// fine-tunes of one model have the same sizes and headers; and the version of mol, which may compute otherwise. They
/// contain no index, so a claim survives edits of the rest of the recipe.
pub(crate) fn keys(plan: &Plan) -> Result<Vec<Hash>> {
    let key = |(task, digest): (usize, &Hash)| {
        let mut hasher = Hasher::new_derive_key(concat!("mol claim ", env!("CARGO_PKG_VERSION")));
        hasher.update(digest.as_bytes());
        // In the order in which they are read: two models may have been exchanged.
        each_input(plan, task, |input| {
            let file = &plan.inputs[input];
            let path = file.path.as_os_str().as_encoded_bytes();
            hasher.update(&path.len().to_le_bytes()).update(path).update(&file.mtime_ns.to_le_bytes());
        });
        hasher.finalize()
    };
    Ok(plan.task_digests()?.iter().enumerate().map(key).collect())
}

/// A finished task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// CRC-64/NVME of its bytes.
    pub crc64nvme: u64,
    /// Whether all its elements, and all their inputs, are finite.
    pub finite: bool,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Claim {
        task: String,
        crc64nvme: u64,
        finite: bool,
    },
    /// A claim that turned out wrong.
    Void {
        void: String,
    },
    /// The plan for which the file is complete.
    Complete {
        complete: String,
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

/// The contents of a claims file.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub claims: HashMap<Hash, Claim>,
    /// The plan for which the output is complete.
    pub complete: Option<String>,
    /// The process that works here without a lock.
    pub owner: Option<Owner>,
}

impl Contents {
    /// Parses the lines; those truncated by a crash are ignored.
    pub fn of(text: &[u8]) -> Self {
        let mut contents = Self::default();
        for line in text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            match serde_json::from_slice(line) {
                Ok(Line::Claim { task, crc64nvme, finite }) => {
                    if let Ok(task) = Hash::from_hex(task) {
                        contents.claims.insert(task, Claim { crc64nvme, finite });
                    }
                }
                Ok(Line::Void { void }) => {
                    contents.complete = None;
                    if let Ok(task) = Hash::from_hex(void) {
                        contents.claims.remove(&task);
                    }
                }
                Ok(Line::Complete { complete }) => contents.complete = Some(complete),
                Ok(Line::Owner { owner }) => contents.owner = Some(owner),
                Ok(Line::Left { .. }) => contents.owner = None,
                Err(_) => {}
            }
        }
        contents
    }

    /// Reads the claims for an output in a directory; none if there is no such file of ours.
    pub fn read(directory: &Path, output: &str) -> Result<Self> {
        let path = directory.join(name(output));
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(Self::of(&fs::read(&path).map_err(Error::io(&path))?)),
            Ok(_) => Ok(Self::default()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::io(&path)(e)),
        }
    }
}

/// The open claims file of an output.
#[derive(Debug)]
pub(crate) struct Claims {
    path: PathBuf,
    file: File,
    end: u64,
    found: Contents,
}

impl Claims {
    /// Opens or creates the claims file of an output.
    pub fn open(directory: &Path, output: &str) -> Result<Self> {
        let path = directory.join(name(output));
        make_way(&path)?;
        let file = open_own(&path).map_err(Error::io(&path))?;
        let read = || {
            let mut text = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
            file.read_exact_at(&mut text, 0)?;
            Ok(text)
        };
        let text = read().map_err(Error::io(&path))?;
        let mut claims = Self { path, file, end: text.len() as u64, found: Contents::of(&text) };
        if text.last().is_some_and(|byte| *byte != b'\n') {
            // End a line truncated by a crash, so that the next one starts on its own line.
            claims.append(b"\n")?;
        }
        Ok(claims)
    }

    /// Returns the claim for a task.
    pub fn get(&self, task: &Hash) -> Option<Claim> {
        self.found.claims.get(task).copied()
    }

    /// Records a task whose bytes are all written.
    pub fn claim(&mut self, task: &Hash, claim: Claim) -> Result<()> {
        let Claim { crc64nvme, finite } = claim;
        self.line(&Line::Claim { task: task.to_hex().to_string(), crc64nvme, finite })?;
        self.found.claims.insert(*task, claim);
        Ok(())
    }

    /// Retracts a claim that does not match the bytes.
    pub fn void(&mut self, task: &Hash) -> Result<()> {
        self.line(&Line::Void { void: task.to_hex().to_string() })?;
        self.found.complete = None;
        self.found.claims.remove(task);
        Ok(())
    }

    /// Records that the file is complete for this plan.
    pub fn complete(&mut self, work: &str) -> Result<()> {
        if self.found.complete.as_deref() != Some(work) {
            self.line(&Line::Complete { complete: work.to_owned() })?;
            self.found.complete = Some(work.to_owned());
        }
        Ok(())
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        self.append(super::head::json(line)?.as_bytes())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.end).map_err(Error::io(&self.path))?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}
