//! Where the bytes of an input come from, by range: a file that is mapped, or one that is read.
mod mapped;
mod read;

use crate::error::{Error, Result};
use mapped::Mapped;
use read::Read;
use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of one file by range. What cannot be had is an error, and never a signal but where a store says so.
///
/// Nothing here needs a file: a store of objects behind a network fits as well. Its `fetch` begins to get the blocks that
/// hold a range, its `lend` waits for them and copies what is asked for into `room`, and calls come from several threads.
pub trait Store: Debug + Send + Sync {
    /// Whether any number of bytes is lent in place, at no cost.
    fn in_place(&self) -> bool {
        false
    }

    /// Bytes `at`, in place or in `room`.
    fn lend<'s>(&'s self, at: Range<usize>, room: &'s mut Vec<u8>) -> io::Result<&'s [u8]>;

    /// Asks for bytes ahead of their use. Advice only.
    fn fetch(&self, at: Range<usize>);
}

/// A store that is not opened, of files whose headers are all that is asked about.
#[derive(Debug)]
pub(crate) struct Unopened;

impl Store for Unopened {
    fn lend<'s>(&'s self, _: Range<usize>, _: &'s mut Vec<u8>) -> io::Result<&'s [u8]> {
        Err(io::Error::other("it is read before it is opened"))
    }

    fn fetch(&self, _: Range<usize>) {}
}

/// What tells a file that was written to, or replaced, from the one that was opened. The time of the last change of its
/// status cannot be set back, unlike that of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    size: u64,
    content: (i64, i64),
    status: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.len(),
            content: (meta.mtime(), meta.mtime_nsec()),
            status: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Time of last change, nanoseconds since 1970.
    pub fn mtime_ns(&self) -> i64 {
        self.content.0.saturating_mul(1_000_000_000).saturating_add(self.content.1)
    }

    /// Why what is at a path is not the file any more that has this stamp, if it is not.
    pub fn changed(&self, path: &Path) -> Option<Error> {
        match std::fs::metadata(path) {
            Ok(meta) if Self::of(&meta) == *self => None,
            Ok(meta) if meta.ino() != self.inode.1 => Some(Error::checkpoint(path, "another file is in its place")),
            Ok(_) => Some(Error::checkpoint(path, "it was written to, or its times or rights were changed")),
            Err(e) => Some(Error::io(path)(e)),
        }
    }
}

/// Opens a file: mapped, or to be read.
pub(crate) fn open(path: &Path, mmap: bool) -> Result<(Box<dyn Store>, Stamp)> {
    // Asked before it is opened, which for a pipe would wait for whoever writes into it.
    if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::checkpoint(path, "not a file"));
    }
    let open = || {
        let file = File::open(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let store: Box<dyn Store> = if mmap { Box::new(Mapped::new(&file)?) } else { Box::new(Read::new(file)) };
        Ok((store, stamp))
    };
    open().map_err(Error::io(path))
}
