//! Ends a merge: syncs a finished `OUT.partial`, renames it to OUT, and removes what is left over.
use super::head::Line;
use super::lock::Lock;
use super::paths::{above, inode, remove};
use crate::error::{Error, Result};
use crate::store::SCRATCH;
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Syncs a directory if the file system can, so that files created or renamed in it are on disk.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    match File::open(path).and_then(|directory| directory.sync_all()) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF)) => Ok(()),
        // A directory with write but no read permission cannot be opened: sync everything instead.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            rustix::fs::sync();
            Ok(())
        }
        result => result.map_err(Error::io(path)),
    }
}

/// Syncs everything below a directory.
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

/// Returns whether a directory exists and is not empty.
pub(crate) fn is_occupied(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(directory)(e)),
    }
}

/// Explains why OUT cannot be replaced, and the way out.
pub(crate) fn cannot_rename(out: &Path, why: &io::Error) -> Error {
    let (out, why) = (out.display(), why.to_string());
    let why = why.split(" (os error").next().unwrap_or_default();
    Error::Merge(format!(
        "{out}: cannot be replaced by a rename ({why}), as a mount point or a lower layer of an overlay file system \
         cannot; choose another OUT"
    ))
}

/// Describes the system's error from a rename.
fn refused(out: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |e| match Errno::from_io_error(&e) {
        Some(Errno::XDEV | Errno::BUSY) => cannot_rename(out, &e),
        _ => Error::io(out)(e),
    }
}

/// Renames a finished partial directory to `out`. With `overwrite` an existing `out` is exchanged for it and then
/// removed; without, it is refused. With `sync` everything is on disk before the rename, and the rename before the old
/// `out` is removed. Returns what could not be cleaned up and why: the new `out` is complete all the same.
pub fn commit(lock: &mut Lock, out: &Path, overwrite: bool, sync: bool) -> Result<Option<(PathBuf, Error)>> {
    let partial = lock.partial().to_path_buf();
    let contents = lock.contents()?;
    if !contents.is_complete(&partial)? {
        let partial = partial.display();
        return Err(Error::Merge(format!(
            "{partial}: contains no finished merge; run the same command again to finish it"
        )));
    }
    let occupied = is_occupied(out)?;
    if occupied && !overwrite {
        let out = out.display();
        return Err(Error::Merge(format!("{out}: exists and is not empty; choose another OUT or pass --overwrite")));
    }
    remove(&partial.join(SCRATCH))?;
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
        // If it cannot be removed now, the next merge to this OUT removes it.
        let out = out.display();
        return Err(Error::Merge(format!("{out}: the new model is complete, but may not be on disk yet: {e}")));
    }
    let mut left = replaced.and_then(|old| discard(old, &partial));
    if let Err(e) = contents.remove_journals(out) {
        left = left.or_else(|| Some((out.to_owned(), e)));
    }
    if sync {
        // Only removals are unsynced: after a power cut the next merge to this OUT would repeat them.
        let gone = sync_directory(out).and_then(|()| sync_directory(above(out)));
        left = left.or_else(|| gone.err().map(|e| (out.to_owned(), e)));
    }
    Ok(left)
}

/// Removes an old OUT, or returns where it is and why it could not be removed: never at the path of the next partial
/// directory.
fn discard(old: PathBuf, partial: &Path) -> Option<(PathBuf, Error)> {
    let error = fs::remove_dir_all(&old).map_err(Error::io(&old)).err()?;
    let aside = aside(partial);
    match fs::rename(&old, &aside) {
        Ok(()) => Some((aside, error)),
        Err(_) => Some((old, error)),
    }
}

/// Returns where an old OUT is moved if it cannot stay at `OUT.partial`.
fn numbered(partial: &Path) -> impl Iterator<Item = PathBuf> {
    (0..).map(|n| partial.with_extension(if n == 0 { "replaced".into() } else { format!("replaced-{n}") }))
}

fn aside(partial: &Path) -> PathBuf {
    numbered(partial).find(|path| inode(path).is_none()).unwrap_or_else(|| partial.to_owned())
}

/// Returns the paths at which an old OUT may be after an interrupted commit.
pub(crate) fn paths_of_the_replaced(partial: &Path) -> impl Iterator<Item = PathBuf> {
    let aside = numbered(partial).take_while(|path| inode(path).is_some());
    std::iter::once(partial.to_owned()).chain(aside)
}

/// Moves `partial` to `out`: atomically if the system can exchange directories, else with a moment in between in which
/// `out` is missing. Returns where the old `out` is.
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
