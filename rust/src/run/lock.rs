//! Ownership of `OUT.partial`: the journal in it marks it as mol's, and a lock on that file reserves it for one process
//! from the first check until the commit is done. The lock stays with the journal through the rename. Processes that
//! write disjoint outputs share it.
use super::flock::{Owner, append, flock_now, open_journal, read};
use super::head::{Contents, Line, NAME, json};
use super::paths::{above, create_directories, inode, is_mount_point, remove};
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Exclusive or shared ownership of a directory: its journal, locked, once there is one.
#[derive(Debug)]
pub struct Lock {
    pub(super) partial: PathBuf,
    out: Option<PathBuf>,
    /// Whether other processes may write other outputs there meanwhile.
    shared: bool,
    pub(super) journal: Option<File>,
    /// The locked claims of this process's outputs in a shared directory.
    pub(super) kept: Vec<(PathBuf, File)>,
    /// Whether the file system does not support locks.
    pub(super) unlocked: bool,
}

impl Lock {
    /// Checks a directory for the first time: locks what an earlier run left there, and completes an interrupted
    /// commit. Creates nothing; [`Lock::hold`] does.
    pub fn look(partial: &Path, out: Option<&Path>) -> Result<Self> {
        let mut lock = Self::of(partial, out, false)?;
        lock.find()?;
        Ok(lock)
    }

    /// Creates the lock of a directory in which this process writes some outputs while others write others. Nothing is
    /// locked yet.
    pub fn shared(partial: &Path) -> Result<Self> {
        Self::of(partial, None, true)
    }

    fn of(partial: &Path, out: Option<&Path>, shared: bool) -> Result<Self> {
        for path in out.into_iter().chain([partial]) {
            if is_mount_point(path) {
                let path = path.display();
                return Err(Error::Merge(format!(
                    "{path}: is a mount point, and a merge appears by a rename, which cannot replace one; name a \
                     directory below it, such as {path}/merged"
                )));
            }
        }
        let (partial, out) = (partial.into(), out.map(Into::into));
        Ok(Self { partial, out, shared, journal: None, kept: Vec::new(), unlocked: false })
    }

    /// Locks an existing journal unless it is locked already; completes an interrupted commit.
    pub(crate) fn find(&mut self) -> Result<()> {
        if self.journal.is_some() {
            return Ok(());
        }
        match fs::symlink_metadata(&self.partial) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&self.partial)(e)),
            Ok(meta) if meta.is_dir() => {}
            Ok(meta) => {
                let (path, what) = (self.partial.display(), if meta.is_symlink() { "a link" } else { "a file" });
                return Err(Error::Merge(format!(
                    "{path}: is needed for the unfinished work, but is {what}; remove it, or choose another OUT"
                )));
            }
        }
        self.end_commit()?;
        while let Some(file) = open_journal(&self.path())? {
            if self.locks(&file, &self.path(), FlockOperation::NonBlockingLockExclusive)? {
                self.journal = Some(file);
                return Ok(());
            }
        }
        // It may have been exchanged for OUT since.
        self.end_commit()
    }

    pub(super) fn path(&self) -> PathBuf {
        self.partial.join(NAME)
    }

    /// Returns the directory.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Returns a warning if nothing keeps other processes out.
    pub fn warning(&self) -> Option<String> {
        self.unlocked.then(|| {
            format!(
                "{}: this file system has no locks (flock), so only merges on this machine are kept from working there \
                 at the same time",
                self.partial.display()
            )
        })
    }

    /// Returns this process, if the journal must name it because locks are not supported.
    pub(crate) fn owner(&self) -> Option<Owner> {
        self.unlocked.then(Owner::this)
    }

    /// Returns an error that says why this process may not work there now.
    pub(crate) fn busy(&self, why: &str) -> Error {
        Error::Busy(format!("{}: {why}; wait for it, or choose another OUT", self.partial.display()))
    }

    pub(crate) fn busy_with_a_merge(&self) -> Error {
        self.busy("another mol-merge is working there")
    }

    /// Locks a journal; returns false if the path names another file by now.
    pub(super) fn locks(&mut self, file: &File, path: &Path, how: FlockOperation) -> Result<bool> {
        let Some(locked) = flock_now(file, path, how)? else { return Err(self.busy_with_a_merge()) };
        if !locked {
            self.unlocked = true;
            let contents = Contents::of(&read(file, path)?);
            let owners = if how == FlockOperation::NonBlockingLockShared {
                contents.owner.into_iter().collect()
            } else {
                contents.owners(above(path))?
            };
            if owners.iter().any(Owner::is_at_work) {
                return Err(self.busy_with_a_merge());
            }
        }
        Ok(inode(path) == Some(file.metadata().map_err(Error::io(path))?.ino()))
    }

    /// Returns whether other processes may write other outputs meanwhile.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Completes a commit that was interrupted after its rename: a finished journal is in OUT, and the directory
    /// exchanged for it may still exist.
    fn end_commit(&mut self) -> Result<()> {
        let Some(out) = &self.out.clone() else { return Ok(()) };
        let path = out.join(NAME);
        let Some(file) = open_journal(&path)? else { return Ok(()) };
        let contents = Contents::of(&read(&file, &path)?);
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        if !contents.is_committed(out)? || !self.locks(&file, &path, exclusive)? {
            return Ok(());
        }
        if let Some(old) = contents.replaces {
            super::commit::sync_directory(above(out))?;
            for path in super::commit::paths_of_the_replaced(&self.partial) {
                if inode(&path) == Some(old) {
                    fs::remove_dir_all(&path).map_err(Error::io(&path))?;
                }
            }
        }
        contents.remove_journals(out)
    }

    /// Returns the bytes of the journal, if there is one that mol wrote or may have written.
    pub(crate) fn journal_bytes(&self) -> Result<Option<Vec<u8>>> {
        self.journal.as_ref().map(|file| read(file, &self.path())).transpose()
    }

    pub(crate) fn contents(&self) -> Result<Contents> {
        Ok(Contents::of(&self.journal_bytes()?.unwrap_or_default()))
    }

    /// Returns whether the directory contains nothing but, perhaps, the locked journal.
    pub(crate) fn is_vacant(&self) -> Result<bool> {
        match fs::read_dir(&self.partial) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(Error::io(&self.partial)(e)),
            Ok(mut entries) => {
                let held = |entry: &fs::DirEntry| self.journal.is_some() && entry.file_name() == NAME;
                Ok(entries.all(|entry| entry.is_ok_and(|entry| held(&entry))))
            }
        }
    }

    /// Creates the directory and its journal if needed, and locks it.
    pub(crate) fn hold(&mut self, sync: bool) -> Result<File> {
        if self.journal.is_none() {
            let path = self.path();
            create_directories(&self.partial, sync)?;
            let flags = OFlags::NOFOLLOW.bits() as i32;
            let made = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(&path);
            let file = match made {
                // Created by another process since the first check.
                Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                    return Err(self.busy_with_a_merge());
                }
                made => made.map_err(Error::io(&path))?,
            };
            if !self.locks(&file, &path, FlockOperation::NonBlockingLockExclusive)? {
                return Err(self.busy_with_a_merge());
            }
            self.journal = Some(file);
            self.end_commit()?;
        }
        self.probe()?;
        let file = self.journal.as_ref().map(File::try_clone);
        file.unwrap_or_else(|| Err(io::Error::other("no journal"))).map_err(Error::io(&self.path()))
    }

    /// Refuses, before the run, an OUT in the lower layer of an overlay, which cannot be renamed. The attempt moves
    /// nothing: a rename never replaces a non-empty directory, and ours holds the journal.
    fn probe(&self) -> Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(out) = &self.out
            && rustix::fs::statfs(out).is_ok_and(|found| u64::try_from(found.f_type) == Ok(OVERLAY))
            && super::commit::is_occupied(out)?
            && let Err(e) = fs::rename(out, &self.partial)
            && Errno::from_io_error(&e) == Some(Errno::XDEV)
        {
            return Err(super::commit::cannot_rename(out, &e));
        }
        Ok(())
    }

    /// Removes everything in the directory except the journal, which is truncated: the directory stays locked and is
    /// empty.
    pub(crate) fn clear(&mut self) -> Result<()> {
        for entry in fs::read_dir(&self.partial).map_err(Error::io(&self.partial))? {
            let entry = entry.map_err(Error::io(&self.partial))?;
            if entry.file_name() != NAME {
                remove(&entry.path())?;
            }
        }
        self.journal.as_ref().map_or(Ok(()), |file| file.set_len(0)).map_err(Error::io(&self.path()))
    }

    /// Syncs the journal and its directory entry.
    pub(crate) fn sync_journal(&self) -> Result<()> {
        self.journal.as_ref().map_or(Ok(()), File::sync_all).map_err(Error::io(&self.path()))?;
        super::commit::sync_directory(&self.partial)
    }

    /// Appends a line to the journal.
    pub(crate) fn append(&self, line: &Line) -> Result<()> {
        self.journal.as_ref().map_or(Ok(()), |file| append(file, &self.path(), &json(line)?))
    }

    /// Releases the journal; other threads may still use it.
    pub(crate) fn leave(&mut self) {
        self.journal = None;
    }

    /// Records, if locks are not supported, that this process has stopped working there. Its exit implies the same.
    fn sign_off(&self) -> Result<()> {
        let Some(left) = self.owner() else { return Ok(()) };
        let is_owner = self.journal.is_some() && self.contents()?.owner.as_ref() == Some(&left);
        let line = Line::Left { left };
        for (path, file) in &self.kept {
            append(file, path, &json(&line)?)?;
        }
        if is_owner { self.append(&line) } else { Ok(()) }
    }

    /// Releases the directory; a journal that was never written is removed, and the directory with it.
    pub fn release(&mut self) {
        let _ = self.sign_off();
        let begun = |file: &File| file.metadata().map_or(true, |meta| meta.len() > 0 || meta.nlink() == 0);
        if let Some(file) = &self.journal
            && !begun(file)
            && self.is_vacant().unwrap_or(false)
        {
            // What cannot be removed is an empty directory, which no run objects to.
            let _ = fs::remove_file(self.path()).and_then(|()| fs::remove_dir(&self.partial));
        }
        self.kept.clear();
        self.journal = None;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.release();
    }
}

/// The `f_type` of overlayfs.
#[cfg(target_os = "linux")]
const OVERLAY: u64 = 0x794c_7630;
