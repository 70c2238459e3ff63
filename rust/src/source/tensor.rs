//! A tensor of a file, of floats or of codes.
use super::{Slot, Source, two};
use crate::codes::{Codes, codes};
use crate::container::{Container, Entry};
use crate::dtype::{Float, first_nonfinite};
use crate::error::{Error, Result};
use crate::simd::Simd;
use crate::sweep::BLOCK;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A tensor of a file. It keeps the file open, so a file is closed when the last task that reads it ends.
#[derive(Clone, Debug)]
pub struct Tensor {
    file: Arc<Container>,
    index: usize,
    float: Float,
    /// The values of its codes, if it stores codes.
    codes: Option<&'static Codes>,
}

impl Tensor {
    /// Finds a float tensor by name; refuses other dtypes.
    pub fn new(file: &Arc<Container>, name: &str) -> Result<Self> {
        let index = file.header.index(name)?;
        let dtype = file.header.tensors[index].dtype;
        let float = Float::of(dtype).ok_or_else(|| {
            let reason = format!("tensor `{name}` is {dtype}, which is not a float format");
            Error::checkpoint(&file.header.path, reason)
        })?;
        Ok(Self { file: file.clone(), index, float, codes: None })
    }

    /// Finds a tensor of codes by name; refuses other dtypes.
    pub fn coded(file: &Arc<Container>, name: &str) -> Result<Self> {
        let index = file.header.index(name)?;
        let dtype = file.header.tensors[index].dtype;
        let codes = codes(dtype).ok_or_else(|| {
            let reason = format!("tensor `{name}` is {dtype}, wanted codes, F8_E4M3 or F8_E5M2");
            Error::checkpoint(&file.header.path, reason)
        })?;
        Ok(Self { file: file.clone(), index, float: Float::F32, codes: Some(codes) })
    }

    /// Returns the byte range of elements in the tensor.
    fn stored(&self, at: &Range<usize>) -> Range<usize> {
        let size = if self.codes.is_some() { 1 } else { self.float.bytes() };
        at.start * size..at.end * size
    }

    /// Returns name, dtype, shape and byte range, from the header.
    pub fn entry(&self) -> &Entry {
        &self.file.header.tensors[self.index]
    }

    /// Returns the error that names the first element that is not finite, if there is one. Slow; `check` runs in between.
    pub fn nonfinite(&self, simd: Simd, check: impl Fn() -> Result<()>) -> Result<Option<Error>> {
        let mut slot = Slot::default();
        for start in (0..self.len()).step_by(BLOCK) {
            check()?;
            let bytes = self.lease(simd, start..self.len().min(start + BLOCK), &mut slot)?;
            if let Some((index, value)) = first_nonfinite(self.float, bytes) {
                let (path, name, element) = (self.path().display(), &self.entry().name, start + index);
                return Ok(Some(Error::NonFinite(format!(
                    "{path}: tensor `{name}` holds {value} at element {element}; repair the checkpoint, or pass \
                     --allow-nonfinite"
                ))));
            }
        }
        Ok(None)
    }

    /// Returns the path of the file.
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
