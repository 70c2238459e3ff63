//! A float tensor of a file, or one of codes.
use super::{Slot, Source, two};
use crate::codes::{Codes, codes};
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
    /// Of a tensor that stores codes: what they stand for.
    codes: Option<&'static Codes>,
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
        Ok(Self { file: file.clone(), index, float, codes: None })
    }

    /// A tensor of codes by name; one that stores anything else is refused.
    pub fn coded(file: &Arc<Container>, name: &str) -> Result<Self> {
        let index = file.header.index(name)?;
        let dtype = file.header.tensors[index].dtype;
        let codes = codes(dtype).ok_or_else(|| {
            let reason = format!("tensor `{name}` is {dtype}, wanted codes, F8_E4M3 or F8_E5M2");
            Error::checkpoint(&file.header.path, reason)
        })?;
        Ok(Self { file: file.clone(), index, float: Float::F32, codes: Some(codes) })
    }

    /// Where elements are among the tensor's bytes.
    fn stored(&self, at: &Range<usize>) -> Range<usize> {
        let size = if self.codes.is_some() { 1 } else { self.float.bytes() };
        at.start * size..at.end * size
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
        self.codes.is_none() && self.file.in_place()
    }

    fn lease<'s>(&'s self, _: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let Some(codes) = self.codes else {
            return self.file.lend(self.entry(), self.stored(&at), &mut slot.bytes);
        };
        let (inner, numbers) = slot.split(1, at.len() * 4);
        let stored = self.file.lend(self.entry(), self.stored(&at), &mut inner[0].bytes)?;
        for (code, number) in stored.iter().zip(numbers.as_chunks_mut().0) {
            *number = codes[usize::from(*code)].to_le_bytes();
        }
        Ok(numbers)
    }

    fn fetch(&self, at: Range<usize>) {
        self.file.fetch(self.entry(), self.stored(&at));
    }

    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        visit(self);
    }
}
