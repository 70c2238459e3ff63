//! Directory operations of a run that go beyond file names: inodes, mount points, creation and removal.
use crate::error::{Error, Result};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns the inode of what is at a path, without following a link; `None` if nothing is.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

/// Returns whether a path is the root of a mount, which no rename replaces.
pub(crate) fn is_mount_point(path: &Path) -> bool {
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

/// Creates a directory and its parents; with `sync` each directory entry is on disk.
pub(crate) fn create_directories(directory: &Path, sync: bool) -> Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    for made in missing.iter().filter(|_| sync) {
        super::commit::sync_directory(above(made))?;
    }
    Ok(())
}

/// Returns the parent directory of a path.
pub(crate) fn above(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes whatever is at a path; of a link, the link and not its target.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(Error::io(path)),
        Ok(_) => fs::remove_file(path).map_err(Error::io(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(path)(e)),
    }
}
