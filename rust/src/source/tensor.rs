//! A float tensor of a mapped file, lent in place.
use super::{Slot, Source, two};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::shard::{self, Shard};
use crate::simd::Simd;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A float tensor of a mapped file. It keeps the file mapped, so a file is unmapped when the last task that reads it ends.
#[derive(Clone, Debug)]
pub struct Tensor {
    shard: Arc<Shard>,
    index: usize,
    float: Float,
}

impl Tensor {
    /// A tensor by name; one that is not of a float format is refused.
    pub fn new(shard: &Arc<Shard>, name: &str) -> Result<Self> {
        let index = shard.index(name)?;
        let float = Float::of(shard.tensors[index].dtype).ok_or_else(|| {
            let reason = format!("tensor `{name}` is {}, which is not a float format", shard.tensors[index].dtype);
            Error::checkpoint(&shard.path, reason)
        })?;
        Ok(Self { shard: shard.clone(), index, float })
    }

    /// Name, dtype, shape and place, as the header states them.
    pub fn entry(&self) -> &shard::Tensor {
        &self.shard.tensors[self.index]
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shard.path
    }

    /// The bytes of some elements.
    pub fn slice(&self, at: Range<usize>) -> &[u8] {
        let size = self.float.bytes();
        &self.shard.bytes(self.entry())[at.start * size..at.end * size]
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
        true
    }

    fn lease<'s>(&'s self, _: Simd, at: Range<usize>, _: &'s mut Slot) -> Result<&'s [u8]> {
        Ok(self.slice(at))
    }

    fn fetch(&self, at: Range<usize>) {
        let size = self.float.bytes();
        self.shard.fetch(self.entry(), at.start * size..at.end * size);
    }

    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        visit(self);
    }
}
