//! What is finished of one output file: `OUTPUT.journal` beside it, a line per task, so that the same command resumes where
//! a crash left it. It is only ever appended to, so a kill at any moment loses nothing that was there before.
use super::flock::Owner;
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

/// The name of the file that holds the claims of an output.
pub(crate) fn name(output: &str) -> String {
    format!("{output}.journal")
}

/// What names each task of a plan: its digest, and when its inputs were last changed. It holds no index and no place, so a
/// claim outlives an edit of the rest of the recipe.
pub(crate) fn keys(plan: &Plan) -> Result<Vec<Hash>> {
    let key = |(task, digest): (usize, &Hash)| {
        let mut hasher = Hasher::new_derive_key("mol claim 1");
        hasher.update(digest.as_bytes());
        for input in super::inputs::inputs_of(plan, task) {
            hasher.update(&plan.inputs[input].mtime_ns.to_le_bytes());
        }
        hasher.finalize()
    };
    Ok(plan.task_digests()?.iter().enumerate().map(key).collect())
}

/// What is known of a finished task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// CRC-64/NVME of its bytes.
    pub crc64nvme: u64,
    /// Whether all its elements, and all that they are made of, are finite.
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
    /// A claim that did not hold.
    Void {
        void: String,
    },
    /// The work as whose part the file is whole.
    Complete {
        complete: String,
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

/// What a file of claims says.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub claims: HashMap<Hash, Claim>,
    /// The work as whose part the output is whole.
    pub complete: Option<String>,
    /// Who works here without a lock.
    pub owner: Option<Owner>,
}

impl Contents {
    /// Lines that cannot be read, as a crash leaves them, say nothing.
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

    /// What is claimed in a directory for an output; nothing where no file of ours says so.
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

/// The open file of an output's claims.
#[derive(Debug)]
pub(crate) struct Claims {
    path: PathBuf,
    file: File,
    end: u64,
    found: Contents,
}

impl Claims {
    /// Opens the claims of an output, or begins them.
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
            // A line that a crash cut short is ended, so that the next is one of its own.
            claims.append(b"\n")?;
        }
        Ok(claims)
    }

    /// What is claimed for a task.
    pub fn get(&self, task: &Hash) -> Option<Claim> {
        self.found.claims.get(task).copied()
    }

    /// Records a tensor whose bytes are all written.
    pub fn claim(&mut self, task: &Hash, claim: Claim) -> Result<()> {
        let Claim { crc64nvme, finite } = claim;
        self.line(&Line::Claim { task: task.to_hex().to_string(), crc64nvme, finite })?;
        self.found.claims.insert(*task, claim);
        Ok(())
    }

    /// Takes a claim back whose bytes are not what it says.
    pub fn void(&mut self, task: &Hash) -> Result<()> {
        self.line(&Line::Void { void: task.to_hex().to_string() })?;
        self.found.complete = None;
        self.found.claims.remove(task);
        Ok(())
    }

    /// Records that the file is whole as a part of this work.
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
