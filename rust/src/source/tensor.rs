//! A float tensor of a file.
use super::{Slot, Source, two};
use crate::container::{Container, Entry};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::simd::Simd;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A float tensor of a file. It keeps the file open, so a file is closed when the last task that reads it ends.
#[derive(Clone, Debug)]
pub struct Tensor {
    file: Arc<Container>,
    index: usize,
    float: Float,
}

impl Tensor {
    /// A tensor by name; one that is not of a float format is refused.
    pub fn new(file: &Arc<Container>, name: &str) -> Result<Self> {
        let index = file.header.index(name)?;
        let dtype = file.header.tensors[index].dtype;
        let float = Float::of(dtype).ok_or_else(|| {
            let reason = format!("tensor `{name}` is {dtype}, which is not a float format");
            Error::checkpoint(&file.header.path, reason)
        })?;
        Ok(Self { file: file.clone(), index, float })
    }

    /// Name, dtype, shape and place, as the header states them.
    pub fn entry(&self) -> &Entry {
        &self.file.header.tensors[self.index]
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.header.path
    }
}

impl Source for Tensor {
    fn float(&self) -> Float {
        self.float
    }

    fn shape(&self) -> (usize, usize) {
        two(&self.entry().shape)
    }

    fn ready(&self) -> bool {
        self.file.in_place()
    }

    fn lease<'s>(&'s self, _: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let size = self.float.bytes();
        self.file.lend(self.entry(), at.start * size..at.end * size, &mut slot.bytes)
    }

    fn fetch(&self, at: Range<usize>) {
        let size = self.float.bytes();
        self.file.fetch(self.entry(), at.start * size..at.end * size);
    }

    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        visit(self);
    }
}
