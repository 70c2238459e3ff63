//! Locks a file for this process, or records its owner in the file if the file system has no locks.
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A process, identified across this and other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    host: String,
    pid: u32,
}

impl Owner {
    pub fn this() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { host, pid: std::process::id() }
    }

    /// Returns whether it is another process of this machine that is still running.
    pub fn is_at_work(&self) -> bool {
        let this = Self::this();
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let runs = |pid| !matches!(rustix::process::test_kill_process(pid), Err(Errno::SRCH));
        self.host == this.host && self.pid != this.pid && pid.is_some_and(runs)
    }
}

/// Opens an existing journal if it is a regular file with a single name: no symbolic link, no second hard link.
pub(super) fn open_journal(path: &Path) -> Result<Option<File>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => {
            let meta = file.metadata().map_err(Error::io(path))?;
            Ok((meta.is_file() && meta.nlink() <= 1).then_some(file))
        }
        Err(e)
            if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR)) =>
        {
            Ok(None)
        }
        Err(e) => Err(Error::io(path)(e)),
    }
}

pub(super) fn read(file: &File, path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let mut text = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut text, 0)?;
        Ok(text)
    };
    read().map_err(Error::io(path))
}

/// Appends a line to a file.
pub(super) fn append(file: &File, path: &Path, line: &str) -> Result<()> {
    let write = || file.write_all_at(line.as_bytes(), file.metadata()?.len());
    write().map_err(Error::io(path))
}

/// Locks a file without waiting: returns whether the file system could, or `None` if another process holds the lock.
pub(super) fn flock_now(file: &File, path: &Path, how: FlockOperation) -> Result<Option<bool>> {
    match rustix::io::retry_on_intr(|| flock(file, how)) {
        Ok(()) => Ok(Some(true)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK | Errno::INVAL | Errno::BADF) => Ok(Some(false)),
        Err(errno) => Err(Error::io(path)(errno.into())),
    }
}
