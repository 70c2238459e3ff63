//! A memory-mapped file, whose bytes are returned in place. One of the two modules with `unsafe`.
#![allow(unsafe_code)]

use super::Store;
use memmap2::{Advice, Mmap, MmapOptions};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

/// A memory-mapped file. Truncation by another process, or a failing disk, ends this process with SIGBUS.
#[derive(Debug)]
pub(super) struct Mapped {
    map: Mmap,
    /// Whether `mincore` reports which pages are cached. For a file of another user it reports all as cached.
    reports: bool,
}

/// The usual page size. With larger pages `mincore` refuses the unaligned address.
const PAGE: usize = 4096;

impl Mapped {
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only and private, and lives as long as `self`. Another process may still change
        // or truncate the file: then values are wrong (size, times and inode are checked again before any result based
        // on them counts) or the kernel stops the process with SIGBUS; the documentation says so, and the partial
        // output can still be resumed. `Read` avoids both.
        let map = unsafe { MmapOptions::new().map_copy_read_only(file) }?;
        let reports = cfg!(target_os = "linux") && file.metadata()?.uid() == rustix::process::geteuid().as_raw();
        Ok(Self { map, reports })
    }

    /// Returns whether the byte before `end` is in memory, as far as the system reports it.
    fn is_cached(&self, end: usize) -> bool {
        if !self.reports || end == 0 {
            return false;
        }
        let page = self.map[(end - 1) / PAGE * PAGE..].as_ptr().cast_mut().cast();
        let mut found = 0;
        // SAFETY: it asks about one page of this map, and the buffer holds the one byte of the answer.
        let status = unsafe { nix::libc::mincore(page, 1, &raw mut found) };
        status == 0 && found & 1 == 1
    }
}

impl Store for Mapped {
    fn in_place(&self) -> bool {
        true
    }

    fn lend<'s>(&'s self, at: Range<usize>, _: &'s mut Vec<u8>) -> io::Result<&'s [u8]> {
        Ok(&self.map[at])
    }

    /// An error of the system changes nothing. A range whose end is in memory most likely is all in memory: then skip
    /// the advice, for which the system would look up every page in every sweep, a tenth of a merge's CPU time.
    fn fetch(&self, at: Range<usize>) {
        if self.is_cached(at.end) {
            return;
        }
        let _advice = self.map.advise_range(Advice::WillNeed, at.start, at.len());
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_map_is_private_and_read_only() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"\x02\0\0\0\0\0\0\0{}").unwrap();
        let _mapped = Mapped::new(file.as_file()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with(&*file.path().to_string_lossy())).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some("r--p"), "{line}");
    }

    #[test]
    fn pages_in_memory_are_told_from_others() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 5000]).unwrap();
        // A hole, which nothing has read.
        file.as_file().set_len(1 << 22).unwrap();
        let mapped = Mapped::new(file.as_file()).unwrap();
        assert_eq!([0, 1, 4096, 5000, 1 << 22].map(|end| mapped.is_cached(end)), [false, true, true, true, false]);
        mapped.fetch(0..1 << 22);
        let other = Mapped { reports: false, ..mapped };
        assert!(!other.is_cached(1), "of a file of somebody else nothing is believed");
    }
}
