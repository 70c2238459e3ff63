//! A mapped file, whose bytes are lent in place. One of the two places with `unsafe`.
#![allow(unsafe_code)]

use super::Store;
use memmap2::{Advice, Mmap, MmapOptions};
use std::fs::File;
use std::io;
use std::ops::Range;

/// A mapped file. What another process cuts off it under the map, or the disk cannot give, ends this one with SIGBUS.
#[derive(Debug)]
pub(super) struct Mapped(Mmap);

impl Mapped {
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only and private, and lives as long as `self`. Another process may still change or
        // cut the file under it: then values are wrong (size, times and inode are looked at again before anything made of
        // them counts) or the kernel stops us with SIGBUS; the documentation says so, and the partial output stays
        // resumable. `Read` does without.
        unsafe { MmapOptions::new().map_copy_read_only(file) }.map(Self)
    }
}

impl Store for Mapped {
    fn in_place(&self) -> bool {
        true
    }

    fn lend<'s>(&'s self, at: Range<usize>, _: &'s mut Vec<u8>) -> io::Result<&'s [u8]> {
        Ok(&self.0[at])
    }

    /// A refusal by the system changes nothing.
    fn fetch(&self, at: Range<usize>) {
        let _advice = self.0.advise_range(Advice::WillNeed, at.start, at.len());
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
}
