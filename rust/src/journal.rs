//! What is finished in `OUT.partial`: one line a tensor, so that the same command resumes where a crash left it.
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The file's name in the partial directory.
pub const NAME: &str = "journal";

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    journal: u32,
    plan: String,
}

/// A finished tensor: its index in the plan, and the CRC-64/NVME of its bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// Index of the task.
    pub task: usize,
    /// CRC-64/NVME of the tensor's bytes.
    pub crc64nvme: u64,
}

/// The open journal; it holds a lock, so that one process at a time works in a partial directory.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

/// What stands in a partial directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// There is no such directory, or it is empty.
    Nothing,
    /// Work of the plan with this digest.
    Plan(String),
    /// Something that mol did not make.
    Foreign,
}

/// Looks at a partial directory without touching it.
pub fn inspect(partial: &Path) -> Result<Found> {
    match fs::read_dir(partial) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(Error::io(partial)(e)),
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Ok(Found::Nothing);
            }
        }
    }
    let path = partial.join(NAME);
    match fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Found::Foreign),
        Err(e) => Err(Error::io(&path)(e)),
        Ok(text) => {
            let head = text.lines().next().and_then(|line| serde_json::from_str::<Head>(line).ok());
            Ok(head.map_or(Found::Foreign, |head| Found::Plan(head.plan)))
        }
    }
}

impl Journal {
    /// Opens or begins the journal of a plan, and reads what it claims. A last line that a crash cut short is dropped.
    pub fn open(partial: &Path, digest: &str) -> Result<(Self, Vec<Claim>)> {
        let path = partial.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Merge(format!("{}: another mol-merge is at work there", partial.display())));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Error::io(&path))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines();
        let claims = match lines.next().map(serde_json::from_str::<Head>) {
            Some(Ok(head)) if head.plan == digest => lines.map_while(|line| serde_json::from_str(line).ok()).collect(),
            Some(_) => return Err(Error::Merge(format!("{}: work of another plan", partial.display()))),
            None => Vec::new(),
        };
        // Written anew from what could be read, so that nothing unreadable stands between good lines.
        file.set_len(0).and_then(|()| file.rewind()).map_err(Error::io(&path))?;
        let journal = Self { path, file: Mutex::new(file) };
        journal.line(&Head { journal: 1, plan: digest.to_owned() })?;
        Ok((journal, claims))
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
