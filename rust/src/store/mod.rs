//! Provides the bytes of an input by range: from a mapped file, or from one that is read.
mod mapped;
mod read;
mod scratch;

use crate::error::{Error, Result};
use mapped::Mapped;
use read::Read;
pub use scratch::{SCRATCH, Scratch};
use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of one file by range. Failures are errors, never signals, unless a store says otherwise.
///
/// Nothing here requires a file, so a store of remote objects can be added. Its `fetch` starts downloading the blocks
/// that hold a range, its `lend` waits for them and copies the requested bytes into `room`; calls come from several
/// threads.
pub trait Store: Debug + Send + Sync {
    /// Whether any range is available in place, at no cost.
    fn in_place(&self) -> bool {
        false
    }

    /// Returns bytes `at`, in place or copied into `room`.
    fn lend<'s>(&'s self, at: Range<usize>, room: &'s mut Vec<u8>) -> io::Result<&'s [u8]>;

    /// Prefetches bytes. A hint only.
    fn fetch(&self, at: Range<usize>);
}

/// A store that is never opened, for files of which only the header is used.
#[derive(Debug)]
pub(crate) struct Unopened;

impl Store for Unopened {
    fn lend<'s>(&'s self, _: Range<usize>, _: &'s mut Vec<u8>) -> io::Result<&'s [u8]> {
        Err(io::Error::other("it is read before it is opened"))
    }

    fn fetch(&self, _: Range<usize>) {}
}

/// Identifies a file's state, to detect that it was written to or replaced. Its ctime cannot be set back, unlike its
/// mtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// None if it is remote: user-space file systems may number a file anew once nobody has it open.
    inode: Option<(u64, u64)>,
    size: u64,
    content: (i64, i64),
    status: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata, remote: bool) -> Self {
        Self {
            inode: (!remote).then(|| (meta.dev(), meta.ino())),
            size: meta.len(),
            content: (meta.mtime(), meta.mtime_nsec()),
            status: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Time of last modification, nanoseconds since 1970.
    pub fn mtime_ns(&self) -> i64 {
        self.content.0.saturating_mul(1_000_000_000).saturating_add(self.content.1)
    }

    /// Returns why the file at a path no longer matches this stamp, or `None` if it does. Fails if the system does not
    /// report the status.
    pub fn changed(&self, path: &Path) -> Result<Option<Error>> {
        match std::fs::metadata(path).map(|meta| Self::of(&meta, self.inode.is_none())) {
            Ok(now) if now == *self => Ok(None),
            Ok(now) if now.inode != self.inode => Ok(Some(Error::checkpoint(path, "it was replaced by another file"))),
            Ok(_) => Ok(Some(Error::checkpoint(path, "it was written to, or its times or permissions were changed"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Some(Error::io(path)(e))),
            Err(e) => Err(Error::io(path)(e)),
        }
    }
}

/// File systems whose files are kept by another machine or a user-space program: their `f_type`, in 32 bits.
#[cfg(target_os = "linux")]
const REMOTE: [(&str, u32); 24] = [
    ("9p", 0x0102_1997),
    ("acfs", 0x6163_6673),
    ("afs", 0x5346_414f),
    ("beegfs", 0x1983_0326),
    ("ceph", 0x00c3_6400),
    ("cifs", 0xff53_4d42),
    ("coda", 0x7375_7245),
    ("fuse", 0x6573_5546),
    ("gfs2", 0x0116_1970),
    ("gpfs", 0x4750_4653),
    ("ibrix", 0x0131_11a8),
    ("kafs", 0x6b41_4653),
    ("lustre", 0x0bd0_0bd0),
    ("ncp", 0x564c),
    ("nfs", 0x6969),
    ("ocfs2", 0x7461_636f),
    ("orangefs", 0x2003_0528),
    ("panfs", 0xaad7_aaea),
    ("prl_fs", 0x7c7c_6673),
    ("smb", 0x517b),
    ("smb2", 0xfe53_4d42),
    ("snfs", 0xbeef_dead),
    ("vboxsf", 0x786f_4256),
    ("vmhgfs", 0xbacb_acbc),
];

#[cfg(target_os = "linux")]
fn is_type_of_remote(f_type: u32) -> bool {
    REMOTE.iter().any(|(_, known)| *known == f_type)
}

/// Returns whether a file is kept by another machine or a user-space program. There a failing server raises SIGBUS in
/// processes that mapped the file, and only a sync or close reports whether writes were kept. `None` if the system does
/// not report it.
pub(crate) fn is_remote(file: &File) -> Option<bool> {
    #[cfg(target_os = "linux")]
    {
        // The type has another width and signedness on other processors.
        rustix::fs::fstatfs(file).ok().map(|found| is_type_of_remote(found.f_type as u32))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        None
    }
}

/// Allocates the disk space of a file if the file system can, which also keeps its blocks together.
pub(crate) fn allocate(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::{Errno, retry_on_intr};
        match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, size)) {
            Ok(()) => return file.set_len(size),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    file.set_len(size)
}

/// Opens a file: mapped or read as requested, otherwise mapped unless it is remote.
pub(crate) fn open(path: &Path, mmap: Option<bool>) -> Result<(Box<dyn Store>, Stamp)> {
    // Checked before opening, which would block on a pipe without a writer.
    if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::checkpoint(path, "not a file"));
    }
    let open = || {
        let file = File::open(path)?;
        let remote = is_remote(&file) == Some(true);
        let stamp = Stamp::of(&file.metadata()?, remote);
        Ok((of_file(file, mmap.unwrap_or(!remote))?, stamp))
    };
    open().map_err(Error::io(path))
}

/// Returns the bytes of an open file, mapped or read.
fn of_file(file: File, mmap: bool) -> io::Result<Box<dyn Store>> {
    Ok(if mmap { Box::new(Mapped::new(&file)?) } else { Box::new(Read::new(file)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_another_machine_may_keep_is_known_by_its_type() {
        for remote in [0x6969, 0x0bd0_0bd0, 0x6573_5546, 0xff53_4d42_u32, 0x0102_1997] {
            assert!(is_type_of_remote(remote), "{remote:#x}");
        }
        // ext4, xfs, btrfs, tmpfs, overlay, zfs
        for local in [0xef53, 0x5846_5342, 0x9123_683e_u32, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1] {
            assert!(!is_type_of_remote(local), "{local:#x}");
        }
        assert!(REMOTE.is_sorted_by(|a, b| a.0 < b.0 && a.1 != b.1));
    }

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn both_stores_lend_the_same_bytes() {
        let bytes: Vec<u8> = (0..9000_u32).map(|i| (i * 7) as u8).collect();
        let file = file_of(&bytes);
        let stores = [true, false].map(|mmap| open(file.path(), Some(mmap)).unwrap());
        assert_eq!(stores.each_ref().map(|(store, _)| store.in_place()), [true, false]);
        assert_eq!(stores[0].1, stores[1].1);
        for (store, _) in &stores {
            let mut room = vec![1; 10];
            for at in [0..9000, 8999..9000, 17..17, 4095..8193, 0..3] {
                store.fetch(at.clone());
                assert_eq!(store.lend(at.clone(), &mut room).unwrap(), &bytes[at]);
            }
        }
    }

    #[test]
    fn files_of_one_machine_are_told_apart_by_inode_and_remote_ones_by_size_and_times() {
        let [a, b] = [file_of(&[1; 10]), file_of(&[2; 10])];
        let meta = a.as_file().metadata().unwrap();
        for remote in [false, true] {
            let stamp = Stamp { status: (0, 0), content: (0, 0), ..Stamp::of(&meta, remote) };
            let other = Stamp { inode: Stamp::of(&b.as_file().metadata().unwrap(), remote).inode, ..stamp };
            assert_eq!(stamp == other, remote);
            assert_ne!(stamp, Stamp { status: (0, 1), ..stamp });
        }
    }

    #[test]
    fn a_file_that_is_read_and_became_shorter_is_an_error() {
        let file = file_of(&[5; 100]);
        let (store, stamp) = open(file.path(), Some(false)).unwrap();
        let mut room = Vec::new();
        assert_eq!(store.lend(90..100, &mut room).unwrap(), [5; 10]);
        assert!(stamp.changed(file.path()).unwrap().is_none());
        file.as_file().set_len(95).unwrap();
        assert_eq!(store.lend(85..95, &mut room).unwrap(), [5; 10]);
        let error = store.lend(90..100, &mut room).unwrap_err();
        assert_eq!(error.to_string(), "the file was truncated");
        assert!(stamp.changed(file.path()).unwrap().unwrap().to_string().contains("written to"));
    }
}
