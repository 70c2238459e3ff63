//! A file that is read on demand, so that a failing server or disk is an error.
use super::Store;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// A file that is read into the caller's buffer.
#[derive(Debug)]
pub(super) struct Read(File);

impl Read {
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl Store for Read {
    fn lend<'s>(&'s self, at: Range<usize>, room: &'s mut Vec<u8>) -> io::Result<&'s [u8]> {
        if room.len() < at.len() {
            room.resize(at.len(), 0);
        }
        let room = &mut room[..at.len()];
        match self.0.read_exact_at(room, at.start as u64) {
            Ok(()) => Ok(room),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(io::Error::new(e.kind(), "the file was truncated"))
            }
            Err(e) => Err(e),
        }
    }

    /// An error of the system changes nothing.
    fn fetch(&self, at: Range<usize>) {
        #[cfg(target_os = "linux")]
        {
            let length = std::num::NonZeroU64::new(at.len() as u64);
            let _advice = rustix::fs::fadvise(&self.0, at.start as u64, length, rustix::fs::Advice::WillNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = at;
    }
}
