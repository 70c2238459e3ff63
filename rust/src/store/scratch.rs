//! A file that only a task needs. It loses its name as soon as it has one, so it goes with the process, however that
//! ends.
use super::{Store, allocate, is_remote, of_file};
use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// Directory below `OUT.partial` in which such files have their names. A process that is killed at that moment leaves
/// an empty file.
pub const SCRATCH: &str = ".scratch";

/// A file of a task, while it is written.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    /// Creates the file, its directory if needed, and claims the disk space for it.
    pub fn create(path: PathBuf, bytes: usize) -> Result<Self> {
        let create = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600).custom_flags(flags);
            let file = options.open(&path)?;
            fs::remove_file(&path)?;
            allocate(&file, bytes as u64)?;
            Ok(file)
        };
        match create() {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(Error::io(&path)(error)),
        }
    }

    /// Writes bytes at an offset.
    pub fn write(&self, bytes: &[u8], at: usize) -> Result<()> {
        self.file.write_all_at(bytes, at as u64).map_err(Error::io(&self.path))
    }

    /// Ends writing; returns what was written, mapped or read as an input would be, and the path for messages.
    pub fn finish(self, mmap: Option<bool>) -> Result<(Box<dyn Store>, PathBuf)> {
        let finish = || -> io::Result<_> {
            let remote = is_remote(&self.file);
            // There only a sync reports failed writes.
            if remote.unwrap_or(true) {
                self.file.sync_data()?;
            }
            of_file(self.file, mmap.unwrap_or(remote != Some(true)))
        };
        match finish() {
            Ok(store) => Ok((store, self.path)),
            Err(error) => Err(Error::io(&self.path)(error)),
        }
    }
}
