//! A file as a table of tensors: their names, dtypes, shapes and byte ranges.
mod safetensors;

use crate::error::{Error, Result};
use crate::store::{self, Stamp, Store, Unopened};
use ::safetensors::Dtype;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Bytes per chunk when a tensor's stored bytes are read as they are.
const CHUNK: usize = 1 << 20;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// The dtype.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<usize>,
    /// Byte range in the file.
    pub bytes: Range<usize>,
}

impl Entry {
    /// Splits its bytes into chunks for sequential or parallel reading: ranges for [`Container::lend`].
    pub fn chunks(&self) -> Vec<Range<usize>> {
        let bytes = self.bytes.len();
        (0..bytes).step_by(CHUNK).map(|start| start..bytes.min(start + CHUNK)).collect()
    }
}

/// A file's header, checked. The file itself is not open.
#[derive(Debug)]
pub struct Header {
    /// Path.
    pub path: PathBuf,
    /// Identifies the file's current state, to detect later changes.
    pub stamp: Stamp,
    /// BLAKE3 of the header.
    pub digest: String,
    /// The tensors, by offset.
    pub tensors: Vec<Entry>,
    by_name: OnceLock<HashMap<String, usize>>,
}

impl Header {
    /// Reads and checks the header of a file.
    pub fn read(path: &Path) -> Result<Self> {
        let (header, _) = Self::read_unless(path, &HashSet::new())?;
        Ok(header)
    }

    /// Reads and checks the header of a file, unless one of the same digest, of a file of the same size, is `known`: then
    /// its tensors are the same too, are left out here, and false is returned with it.
    pub fn read_unless(path: &Path, known: &HashSet<(String, u64)>) -> Result<(Self, bool)> {
        // Never mapped, so a failing disk is an error here and not SIGBUS.
        let (store, stamp) = store::open(path, Some(false))?;
        let (tensors, digest) = safetensors::read(path, &*store, stamp.size(), known)?;
        let (new, tensors) = (tensors.is_some(), tensors.unwrap_or_default());
        Ok((Self { path: path.to_path_buf(), stamp, digest, tensors, by_name: OnceLock::new() }, new))
    }

    /// Finds a tensor by name; returns its index in `tensors`.
    pub fn index(&self, name: &str) -> Result<usize> {
        let named = || self.tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        let index = self.by_name.get_or_init(named).get(name).copied();
        index.ok_or_else(|| Error::checkpoint(&self.path, format!("tensor `{name}` is not in this file")))
    }

    /// Finds a tensor by name.
    pub fn tensor(&self, name: &str) -> Result<&Entry> {
        Ok(&self.tensors[self.index(name)?])
    }
}

/// A file with its header, and the store that provides its bytes.
#[derive(Debug)]
pub struct Container {
    /// The header.
    pub header: Arc<Header>,
    store: Box<dyn Store>,
}

impl Container {
    /// Opens a file whose header was read: mapped or read as requested, otherwise as suits its file system. Refuses a
    /// file that has changed since.
    pub fn open(header: &Arc<Header>, mmap: Option<bool>) -> Result<Self> {
        let (store, stamp) = store::open(&header.path, mmap)?;
        if stamp != header.stamp {
            return Err(Error::checkpoint(&header.path, "it was written to or replaced after its header was read"));
        }
        Ok(Self { header: header.clone(), store })
    }

    /// Creates a container of which only the header is used.
    pub fn unopened(header: &Arc<Header>) -> Self {
        Self { header: header.clone(), store: Box::new(Unopened) }
    }

    /// Whether any range is available in place, at no cost.
    pub fn in_place(&self) -> bool {
        self.store.in_place()
    }

    /// Returns some bytes of a tensor, in place or copied into `room`.
    pub fn lend<'s>(&'s self, tensor: &Entry, at: Range<usize>, room: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let bytes = tensor.bytes.start + at.start..tensor.bytes.start + at.end;
        self.store.lend(bytes, room).map_err(|source| {
            let (path, tensor) = (self.header.path.clone(), tensor.name.clone());
            Error::Read { path, tensor, source }
        })
    }

    /// Returns all bytes before the first tensor's.
    pub fn prefix<'s>(&'s self, room: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let end = self.header.tensors.first().map_or(self.header.stamp.size() as usize, |tensor| tensor.bytes.start);
        self.store.lend(0..end, room).map_err(Error::io(&self.header.path))
    }

    /// Prefetches some bytes of a tensor. A hint only.
    pub fn fetch(&self, tensor: &Entry, at: Range<usize>) {
        let (from, to) = (tensor.bytes.start + at.start, (tensor.bytes.start + at.end).min(tensor.bytes.end));
        if from < to {
            self.store.fetch(from..to);
        }
    }
}
