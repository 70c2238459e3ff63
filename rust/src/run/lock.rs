//! Who works in `OUT.partial`: the directory is mol's by the journal in it, and one process's at a time by a lock on that
//! file, from the first look until the commit is done. The lock goes with the journal through the rename.
use super::journal::{self, Contents};
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The inode of what stands at a path itself, no link followed; `None` where nothing does.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

/// A process, told apart from others of this and of other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    host: String,
    pid: u32,
}

impl Owner {
    fn this() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { host, pid: std::process::id() }
    }

    /// Whether it is another process of this machine that still runs.
    fn is_at_work(&self) -> bool {
        let this = Self::this();
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let runs = |pid| !matches!(rustix::process::test_kill_process(pid), Err(Errno::SRCH));
        self.host == this.host && self.pid != this.pid && pid.is_some_and(runs)
    }
}

/// What is held of a place: its journal, locked, once there is one.
#[derive(Debug)]
pub struct Lock {
    partial: PathBuf,
    out: Option<PathBuf>,
    journal: Option<File>,
    /// Whether the file system refuses to lock.
    unlocked: bool,
}

fn busy(partial: &Path) -> Error {
    Error::Merge(format!(
        "{}: another mol-merge is at work there; wait for it, or choose another OUT",
        partial.display()
    ))
}

/// Opens a journal that is there, if it is a file of its own: no link, and no second name of another file.
fn open_journal(path: &Path) -> Result<Option<File>> {
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

fn read_journal(file: &File, path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let mut text = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut text, 0)?;
        Ok(text)
    };
    read().map_err(Error::io(path))
}

/// Whether a path is the root of a mount, which no rename replaces.
fn is_mount_point(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        if let Ok(found) = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)
            && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        {
            return found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        }
    }
    let above = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    match (fs::symlink_metadata(path), above.map(fs::metadata)) {
        (Ok(here), Some(Ok(above))) => here.dev() != above.dev(),
        _ => false,
    }
}

impl Lock {
    /// Looks at a place for the first time: locks what an earlier run left there, and ends a commit that was cut short.
    /// Where there is nothing, nothing is made: that is [`Lock::hold`]'s.
    pub fn look(partial: &Path, out: Option<&Path>) -> Result<Self> {
        let mut lock = Self { partial: partial.into(), out: out.map(Into::into), journal: None, unlocked: false };
        for place in out.into_iter().chain([partial]) {
            if is_mount_point(place) {
                let place = place.display();
                return Err(Error::Merge(format!(
                    "{place}: is a mount point, and a merge appears by a rename, which cannot replace one; name a \
                     directory below it, such as {place}/merged"
                )));
            }
        }
        lock.find()?;
        Ok(lock)
    }

    /// Locks the journal that is there, if none is held yet; ends a commit that was cut short.
    pub(crate) fn find(&mut self) -> Result<()> {
        if self.journal.is_some() {
            return Ok(());
        }
        match fs::symlink_metadata(&self.partial) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&self.partial)(e)),
            Ok(meta) if meta.is_dir() => {}
            Ok(meta) => {
                let (place, what) = (self.partial.display(), if meta.is_symlink() { "a link" } else { "a file" });
                return Err(Error::Merge(format!(
                    "{place}: is needed for the unfinished work, but is {what}; remove it, or choose another OUT"
                )));
            }
        }
        self.end_commit()?;
        while let Some(file) = open_journal(&self.path())? {
            if self.locks(&file, &self.path())? {
                self.journal = Some(file);
                return Ok(());
            }
        }
        // It may have been exchanged for OUT since.
        self.end_commit()
    }

    fn path(&self) -> PathBuf {
        self.partial.join(journal::NAME)
    }

    /// The directory.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Why nothing keeps another process out, where nothing does.
    pub fn warning(&self) -> Option<String> {
        self.unlocked.then(|| {
            format!(
                "{}: this file system has no locks (flock), so only a merge on this machine is kept from working there \
                 at the same time",
                self.partial.display()
            )
        })
    }

    /// This process, where the journal must say so because nothing can be locked.
    pub(crate) fn owner(&self) -> Option<Owner> {
        self.unlocked.then(Owner::this)
    }

    /// Locks a journal; false where the path names another file by now.
    fn locks(&mut self, file: &File, path: &Path) -> Result<bool> {
        match rustix::io::retry_on_intr(|| flock(file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(busy(&self.partial)),
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK | Errno::INVAL | Errno::BADF) => {
                self.unlocked = true;
                let owner = Contents::of(&read_journal(file, path)?).owner;
                if owner.is_some_and(|owner| owner.is_at_work()) {
                    return Err(busy(&self.partial));
                }
            }
            Err(errno) => return Err(Error::io(path)(errno.into())),
        }
        Ok(inode(path) == Some(file.metadata().map_err(Error::io(path))?.ino()))
    }

    /// Ends a commit that was cut short after its rename: a finished journal is in OUT, and what OUT was exchanged for may
    /// still be there.
    fn end_commit(&mut self) -> Result<()> {
        let Some(out) = &self.out.clone() else { return Ok(()) };
        let path = out.join(journal::NAME);
        let Some(file) = open_journal(&path)? else { return Ok(()) };
        let contents = Contents::of(&read_journal(&file, &path)?);
        if !contents.is_committed(out)? || !self.locks(&file, &path)? {
            return Ok(());
        }
        if let Some(old) = contents.replaces {
            super::commit::sync_directory(above(out))?;
            for place in super::commit::places_of_the_replaced(&self.partial) {
                if inode(&place) == Some(old) {
                    fs::remove_dir_all(&place).map_err(Error::io(&place))?;
                }
            }
        }
        contents.remove_journals(out)
    }

    /// The bytes of the journal, if there is one of mol's own making or that may be.
    pub(crate) fn journal_bytes(&self) -> Result<Option<Vec<u8>>> {
        self.journal.as_ref().map(|file| read_journal(file, &self.path())).transpose()
    }

    /// Whether nothing is in the directory but perhaps the journal that is held.
    pub(crate) fn is_vacant(&self) -> Result<bool> {
        match fs::read_dir(&self.partial) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(Error::io(&self.partial)(e)),
            Ok(mut entries) => {
                let held = |entry: &fs::DirEntry| self.journal.is_some() && entry.file_name() == journal::NAME;
                Ok(entries.all(|entry| entry.is_ok_and(|entry| held(&entry))))
            }
        }
    }

    /// Makes the directory and its journal where they are not there, and locks it.
    pub(crate) fn hold(&mut self, sync: bool) -> Result<File> {
        if self.journal.is_none() {
            let path = self.path();
            create_directories(&self.partial, sync)?;
            let flags = OFlags::NOFOLLOW.bits() as i32;
            let made = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(&path);
            let file = match made {
                // Begun by another process since the first look.
                Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                    return Err(busy(&self.partial));
                }
                made => made.map_err(Error::io(&path))?,
            };
            if !self.locks(&file, &path)? {
                return Err(busy(&self.partial));
            }
            self.journal = Some(file);
            self.end_commit()?;
        }
        self.probe()?;
        let file = self.journal.as_ref().map(File::try_clone);
        file.unwrap_or_else(|| Err(io::Error::other("no journal"))).map_err(Error::io(&self.path()))
    }

    /// Refuses an OUT of an overlay's lower layer before the run: it cannot be renamed. Nothing moves by this, since a
    /// rename never replaces a directory that is not empty, and the journal is in ours.
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

    /// Removes all that is in the directory but the journal, which then is empty: the place is held, and nothing in it.
    pub(crate) fn clear(&mut self) -> Result<()> {
        for entry in fs::read_dir(&self.partial).map_err(Error::io(&self.partial))? {
            let entry = entry.map_err(Error::io(&self.partial))?;
            if entry.file_name() != journal::NAME {
                remove(&entry.path())?;
            }
        }
        self.journal.as_ref().map_or(Ok(()), |file| file.set_len(0)).map_err(Error::io(&self.path()))
    }

    /// Waits until the journal, and that it is there, are on the disk.
    pub(crate) fn sync_journal(&self) -> Result<()> {
        self.journal.as_ref().map_or(Ok(()), File::sync_all).map_err(Error::io(&self.path()))?;
        super::commit::sync_directory(&self.partial)
    }

    /// Appends a line to the journal.
    pub(crate) fn append(&self, line: &journal::Line) -> Result<()> {
        let Some(file) = &self.journal else { return Ok(()) };
        let text = journal::json(line)?;
        let write = || file.write_all_at(text.as_bytes(), file.metadata()?.len());
        write().map_err(Error::io(&self.path()))
    }

    /// Gives the place up; a journal that was never begun goes, and the directory with it.
    pub fn release(&mut self) {
        let begun = |file: &File| file.metadata().map_or(true, |meta| meta.len() > 0 || meta.nlink() == 0);
        if let Some(file) = &self.journal
            && !begun(file)
            && self.is_vacant().unwrap_or(false)
        {
            // What cannot be removed is an empty directory, and no run minds one.
            let _ = fs::remove_file(self.path()).and_then(|()| fs::remove_dir(&self.partial));
        }
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

/// Makes a directory and those above it; with `sync` each is on the disk under its name.
fn create_directories(directory: &Path, sync: bool) -> Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|place| !place.exists()).collect();
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    for made in missing.iter().filter(|_| sync) {
        super::commit::sync_directory(above(made))?;
    }
    Ok(())
}

/// The directory that holds a path.
pub(crate) fn above(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what stands at a path, whatever it is; a link, not what it leads to.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(Error::io(path)),
        Ok(_) => fs::remove_file(path).map_err(Error::io(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(path)(e)),
    }
}
