//! The end of a merge: a finished `OUT.partial` is on the disk, becomes OUT by one rename, and leaves nothing behind.
use super::head::Line;
use super::lock::Lock;
use super::place::{above, inode};
use crate::error::{Error, Result};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Syncs a directory, where the file system can: that what was made or renamed in it is on the disk.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    match File::open(path).and_then(|directory| directory.sync_all()) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF)) => Ok(()),
        // A directory that may be written in, and not read: all is synced instead of it.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            rustix::fs::sync();
            Ok(())
        }
        result => result.map_err(Error::io(path)),
    }
}

/// Syncs everything under a directory.
fn sync_tree(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io(directory))? {
        let entry = entry.map_err(Error::io(directory))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(directory))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
        }
    }
    sync_directory(directory)
}

/// Whether a directory is there and holds anything.
pub(crate) fn is_occupied(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(directory)(e)),
    }
}

/// Why OUT cannot be replaced, and the way out.
pub(crate) fn cannot_rename(out: &Path, why: &io::Error) -> Error {
    let (out, why) = (out.display(), why.to_string());
    let why = why.split(" (os error").next().unwrap_or_default();
    Error::Merge(format!(
        "{out}: cannot be replaced by a rename ({why}), as a mount point or a lower layer of an overlay file system \
         cannot; choose another OUT"
    ))
}

/// What the system said to a rename.
fn refused(out: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |e| match Errno::from_io_error(&e) {
        Some(Errno::XDEV | Errno::BUSY) => cannot_rename(out, &e),
        _ => Error::io(out)(e),
    }
}

/// Turns a finished partial directory into `out` by one rename. With `overwrite` an earlier `out` is exchanged for it and
/// then removed; without it, it is refused. With `sync` all of it is on the disk before the rename, and the rename before
/// the earlier `out` is removed. Returns what could not be cleaned up and why: the new one is in its place all the same.
pub fn commit(lock: &mut Lock, out: &Path, overwrite: bool, sync: bool) -> Result<Option<(PathBuf, Error)>> {
    let partial = lock.partial().to_path_buf();
    let contents = lock.contents()?;
    if !contents.is_complete(&partial)? {
        let partial = partial.display();
        return Err(Error::Merge(format!(
            "{partial}: holds no finished merge; run the same command again to finish it"
        )));
    }
    let occupied = is_occupied(out)?;
    if occupied && !overwrite {
        let out = out.display();
        return Err(Error::Merge(format!("{out}: exists and is not empty; choose another place or pass --overwrite")));
    }
    lock.append(&Line::Finished { finished: true })?;
    if occupied {
        let replaces = fs::symlink_metadata(out).map_err(Error::io(out))?.ino();
        lock.append(&Line::Replaces { replaces })?;
    }
    if sync {
        sync_tree(&partial)?;
    }
    let replaced = if occupied {
        Some(swap(&partial, out)?)
    } else {
        // A rename replaces an empty directory.
        fs::rename(&partial, out).map_err(refused(out))?;
        None
    };
    if sync && let Err(e) = sync_directory(above(out)) {
        // An earlier one is kept until it is known: the next merge to this OUT removes it.
        let out = out.display();
        return Err(Error::Merge(format!(
            "{out}: the new model is in its place, but whether it is on the disk is not known: {e}"
        )));
    }
    let mut left = replaced.and_then(|old| discard(old, &partial));
    if let Err(e) = contents.remove_journals(out) {
        left = left.or_else(|| Some((out.to_owned(), e)));
    }
    if sync {
        // Only that things are gone: after a power cut the next merge to this OUT would remove them again.
        let gone = sync_directory(out).and_then(|()| sync_directory(above(out)));
        left = left.or_else(|| gone.err().map(|e| (out.to_owned(), e)));
    }
    Ok(left)
}

/// Removes an earlier OUT, or returns where it is and why it could not be removed: that is never the place of the next
/// unfinished work.
fn discard(old: PathBuf, partial: &Path) -> Option<(PathBuf, Error)> {
    let error = fs::remove_dir_all(&old).map_err(Error::io(&old)).err()?;
    let aside = aside(partial);
    match fs::rename(&old, &aside) {
        Ok(()) => Some((aside, error)),
        Err(_) => Some((old, error)),
    }
}

/// Where an earlier OUT is put that cannot stay at `OUT.partial`.
fn numbered(partial: &Path) -> impl Iterator<Item = PathBuf> {
    (0..).map(|n| partial.with_extension(if n == 0 { "replaced".into() } else { format!("replaced-{n}") }))
}

fn aside(partial: &Path) -> PathBuf {
    numbered(partial).find(|place| inode(place).is_none()).unwrap_or_else(|| partial.to_owned())
}

/// Where an earlier OUT may be when a commit was cut short.
pub(crate) fn places_of_the_replaced(partial: &Path) -> impl Iterator<Item = PathBuf> {
    let aside = numbered(partial).take_while(|place| inode(place).is_some());
    std::iter::once(partial.to_owned()).chain(aside)
}

/// Puts `partial` in the place of `out`: at once where the system can, else with a moment in between where `out` is
/// missing. Returns where the earlier `out` is.
fn swap(partial: &Path, out: &Path) -> Result<PathBuf> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, partial, CWD, out, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(partial.to_owned()),
            Err(Errno::INVAL | Errno::NOSYS) => {}
            Err(errno) => return Err(refused(out)(errno.into())),
        }
    }
    let aside = aside(partial);
    fs::rename(out, &aside).map_err(refused(out))?;
    if let Err(e) = fs::rename(partial, out) {
        fs::rename(&aside, out).map_err(Error::io(&aside))?;
        return Err(refused(out)(e));
    }
    Ok(aside)
}
