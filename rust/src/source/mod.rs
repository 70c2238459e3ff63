//! Provides the elements that a task reads: a tensor of a file, or an expression over other sources.
mod build;
mod gather;
mod lora;
mod mean;
mod merged;
mod scaled;
mod shape;
mod spilled;
mod tensor;

pub use build::{build, measured};
pub use spilled::{Stages, repeated};
pub use tensor::Tensor;

use crate::dtype::{Float, transcode};
use crate::error::{Error, Result};
use crate::simd::Simd;
use crate::sweep::STRIP;
use crate::watch::Watch;
use std::ops::Range;

/// Settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Elements per tile, a multiple of 65,536.
    pub tile: usize,
    /// Instruction set.
    pub simd: Simd,
    /// Progress and cancellation.
    pub watch: &'a Watch,
    /// Key of the random numbers, from the seed and the tensor's name.
    pub key: [u32; 2],
}

/// Reusable buffers of a source that computes what it returns, nested as its sources are.
#[derive(Debug, Default)]
pub struct Slot {
    bytes: Vec<u8>,
    inner: Vec<Slot>,
}

impl Slot {
    /// Returns `inner` slots for nested sources, and a buffer of `bytes`.
    pub fn split(&mut self, inner: usize, bytes: usize) -> (&mut [Slot], &mut [u8]) {
        if self.inner.len() < inner {
            self.inner.resize_with(inner, Slot::default);
        }
        if self.bytes.len() < bytes {
            self.bytes.resize(bytes, 0);
        }
        (&mut self.inner[..inner], &mut self.bytes[..bytes])
    }
}

/// A source of elements, read strip by strip in row order.
pub trait Source: Send + Sync {
    /// Returns the format of its elements.
    fn float(&self) -> Float;

    /// Returns rows (the product of all leading axes) and columns.
    fn shape(&self) -> (usize, usize);

    /// Returns the number of elements.
    fn len(&self) -> usize {
        let (rows, columns) = self.shape();
        rows * columns
    }

    /// Returns whether it has no elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether any range is available in place at no cost; other sources compute elements, so small strips are
    /// requested.
    fn ready(&self) -> bool {
        false
    }

    /// Ranges start and end at multiples of this, or at the last element; [`lease_as`] takes care of it.
    fn unit(&self) -> usize {
        1
    }

    /// Returns the number of elements up to which longer strips cost less for each element.
    fn strip(&self) -> usize {
        self.parts().iter().map(|part| part.strip()).fold(STRIP, usize::max)
    }

    /// Returns elements `at` as bytes in format `float()`, in place or computed in the slot.
    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]>;

    /// Prefetches elements. A hint only.
    fn fetch(&self, _at: Range<usize>) {}

    /// Returns the sources directly below. A source with more than one list of them overrides the three methods below.
    fn parts(&self) -> &[Box<dyn Source>] {
        &[]
    }

    /// Returns the sources directly below, mutably, to prepare them.
    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        &mut []
    }

    /// Returns the bytes of heap held for the whole task, nested sources included.
    fn resident(&self) -> usize {
        self.parts().iter().map(|part| part.resident()).sum()
    }

    /// Computes what is needed of the whole tensor before elements can be returned; nested sources first.
    fn prepare(&mut self, settings: &Settings) -> Result<()> {
        self.parts_mut().iter_mut().try_for_each(|part| part.prepare(settings))
    }

    /// Visits every file tensor below it, to find the one that holds a non-finite value.
    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        self.parts().iter().for_each(|part| part.leaves(visit));
    }
}

/// Returns rows (the product of all leading axes) and columns of a shape. A vector is one row, as methods that rank or
/// weigh rows take it; to the plan, which cuts and stacks vectors, it is a column ([`crate::plan::matrix`]).
pub fn two(shape: &[usize]) -> (usize, usize) {
    match shape.split_last() {
        Some((columns, rows)) => (rows.iter().product(), *columns),
        None => (1, 1),
    }
}

/// Finds the first non-finite element of the first tensor below some sources that has one. Slow and deterministic; `check`
/// runs in between.
pub fn first_nonfinite(
    sources: &[Box<dyn Source>],
    simd: Simd,
    check: &dyn Fn() -> Result<()>,
) -> Result<Option<Error>> {
    let mut leaves = Vec::new();
    for source in sources {
        source.leaves(&mut |leaf| leaves.push(leaf));
    }
    for leaf in leaves {
        let found = leaf.nonfinite(simd, check)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Returns elements `at` of a source in format `float`, whatever the source's unit.
pub fn lease_as<'s>(
    source: &'s dyn Source,
    float: Float,
    simd: Simd,
    at: Range<usize>,
    slot: &'s mut Slot,
) -> Result<&'s [u8]> {
    if source.float() == float {
        return lease_any(source, simd, at, slot);
    }
    let (inner, bytes) = slot.split(1, at.len() * float.bytes());
    transcode(simd, source.float(), lease_any(source, simd, at, &mut inner[0])?, float, bytes);
    Ok(bytes)
}

/// Requests whole units around `at` and returns the requested part.
fn lease_any<'s>(source: &'s dyn Source, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
    let unit = source.unit();
    if unit == 1 {
        return source.lease(simd, at, slot);
    }
    let start = at.start / unit * unit;
    let end = at.end.next_multiple_of(unit).min(source.len());
    let size = source.float().bytes();
    Ok(&source.lease(simd, start..end, slot)?[(at.start - start) * size..(at.end - start) * size])
}
