//! What stands behind the elements of a task: a tensor of a file, or what is made of other sources.
mod build;
mod gather;
mod lora;
mod merged;
mod scaled;
mod shape;
mod tensor;

pub use build::{Open, build};
pub use tensor::Tensor;

use crate::dtype::{Float, transcode};
use crate::error::Result;
use crate::simd::Simd;
use crate::watch::Watch;
use std::ops::Range;

/// How a task is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Elements of a tile, a multiple of 65,536.
    pub tile: usize,
    /// Instruction set.
    pub simd: Simd,
    /// Progress and cancel.
    pub watch: &'a Watch,
    /// Key of what is drawn, from the seed and the tensor's name.
    pub key: [u32; 2],
}

/// Room for what a source makes before it can lend it, as deep as the sources are nested. Kept and used again.
#[derive(Debug, Default)]
pub struct Slot {
    bytes: Vec<u8>,
    inner: Vec<Slot>,
}

impl Slot {
    /// Slots for `inner` sources below, and room for `bytes`.
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

/// Something that gives its elements a piece at a time, in row order.
pub trait Source: Send + Sync {
    /// The format of what is lent.
    fn float(&self) -> Float;

    /// Rows (of all leading axes) and columns.
    fn shape(&self) -> (usize, usize);

    /// Elements.
    fn len(&self) -> usize {
        let (rows, columns) = self.shape();
        rows * columns
    }

    /// Whether it has no elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any number of elements can be lent in place at no cost; others make them, so are asked for small pieces.
    fn ready(&self) -> bool {
        false
    }

    /// Pieces begin and end at multiples of this, or at the last element; [`lease_as`] sees to it.
    fn unit(&self) -> usize {
        1
    }

    /// Elements `at` as bytes in format `float()`, in place or made in the slot.
    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]>;

    /// Asks for elements ahead of their use. Advice only.
    fn fetch(&self, _at: Range<usize>) {}

    /// The sources that it is made of. A source with more than one list of them has its own of the three methods below.
    fn parts(&self) -> &[Box<dyn Source>] {
        &[]
    }

    /// The same, to prepare them.
    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        &mut []
    }

    /// Bytes of heap held for the whole task, those of its parts included.
    fn resident(&self) -> usize {
        self.parts().iter().map(|part| part.resident()).sum()
    }

    /// Finds what must be known of the whole before an element can be had; its parts first.
    fn prepare(&mut self, settings: &Settings) -> Result<()> {
        self.parts_mut().iter_mut().try_for_each(|part| part.prepare(settings))
    }

    /// Visits every tensor of a file below it, to tell which one holds a value that is not finite.
    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        self.parts().iter().for_each(|part| part.leaves(visit));
    }
}

/// Rows (of all leading axes) and columns of a shape.
pub fn two(shape: &[usize]) -> (usize, usize) {
    match shape.split_last() {
        Some((columns, rows)) => (rows.iter().product(), *columns),
        None => (1, 1),
    }
}

/// Elements `at` of a source in format `float`, wherever they begin and end.
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

/// Leases whole units around `at`, and gives what was asked for of them.
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
