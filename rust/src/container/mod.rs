//! A file as a table of tensors: what each is called, its element type and shape, and where its bytes are.
mod safetensors;

use crate::error::{Error, Result};
use crate::store::{self, Stamp, Store, Unopened};
use ::safetensors::Dtype;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a piece of a tensor that is read as it is.
const PIECE: usize = 1 << 20;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

impl Entry {
    /// Its bytes in pieces that a reader takes one after another, or several threads at once: ranges for [`Container::lend`].
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let bytes = self.bytes.len();
        (0..bytes).step_by(PIECE).map(|start| start..bytes.min(start + PIECE)).collect()
    }
}

/// What a file says of itself, checked. The file is not open.
#[derive(Debug)]
pub struct Header {
    /// Where it is.
    pub path: PathBuf,
    /// What tells whether the file changes from now on.
    pub stamp: Stamp,
    /// BLAKE3 of the header.
    pub digest: String,
    /// Its tensors, by offset.
    pub tensors: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl Header {
    /// Reads and checks the header of a file.
    pub fn read(path: &Path) -> Result<Self> {
        // Never mapped: a disk that fails is an error here at least.
        let (store, stamp) = store::open(path, Some(false))?;
        let (tensors, digest) = safetensors::read(path, &*store, stamp.size())?;
        let by_name = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        Ok(Self { path: path.to_path_buf(), stamp, digest, tensors, by_name })
    }

    /// A tensor by name, as an index into `tensors`.
    pub fn index(&self, name: &str) -> Result<usize> {
        let index = self.by_name.get(name).copied();
        index.ok_or_else(|| Error::checkpoint(&self.path, format!("tensor `{name}` is not in this file")))
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Result<&Entry> {
        Ok(&self.tensors[self.index(name)?])
    }
}

/// A file whose header is known, and the store that lends its bytes.
#[derive(Debug)]
pub struct Container {
    /// What the file says of itself.
    pub header: Arc<Header>,
    store: Box<dyn Store>,
}

impl Container {
    /// Opens a file whose header was read, mapped or to be read, as is asked or else as suits its file system; one that is
    /// not the same any more is refused.
    pub fn open(header: &Arc<Header>, mmap: Option<bool>) -> Result<Self> {
        let (store, stamp) = store::open(&header.path, mmap)?;
        if stamp != header.stamp {
            return Err(Error::checkpoint(&header.path, "it was written to or replaced after its header was read"));
        }
        Ok(Self { header: header.clone(), store })
    }

    /// A file of which nothing but the header is asked for.
    pub fn unopened(header: &Arc<Header>) -> Self {
        Self { header: header.clone(), store: Box::new(Unopened) }
    }

    /// Whether any number of bytes is lent in place, at no cost.
    pub fn in_place(&self) -> bool {
        self.store.in_place()
    }

    /// Some bytes of a tensor, in place or in `room`.
    pub fn lend<'s>(&'s self, tensor: &Entry, at: Range<usize>, room: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let bytes = tensor.bytes.start + at.start..tensor.bytes.start + at.end;
        self.store.lend(bytes, room).map_err(|source| {
            let (path, tensor) = (self.header.path.clone(), tensor.name.clone());
            Error::Read { path, tensor, source }
        })
    }

    /// All bytes before the first tensor's.
    pub fn prefix<'s>(&'s self, room: &'s mut Vec<u8>) -> Result<&'s [u8]> {
        let end = self.header.tensors.first().map_or(self.header.stamp.size() as usize, |tensor| tensor.bytes.start);
        self.store.lend(0..end, room).map_err(Error::io(&self.header.path))
    }

    /// Asks for some bytes of a tensor ahead of their use. Advice only.
    pub fn fetch(&self, tensor: &Entry, at: Range<usize>) {
        let (from, to) = (tensor.bytes.start + at.start, (tensor.bytes.start + at.end).min(tensor.bytes.end));
        if from < to {
            self.store.fetch(from..to);
        }
    }
}
