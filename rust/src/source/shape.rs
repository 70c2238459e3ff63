//! Sources that only rearrange elements: rows, columns, stacks, transposes.
use super::{Slot, Source, lease_any};
use crate::dtype::Float;
use crate::error::Result;
use crate::simd::Simd;
use crate::sweep::{BLOCK, STRIP};
use std::ops::Range;
use std::slice;

/// A range of whole rows of a source.
pub(super) struct Rows {
    pub of: Box<dyn Source>,
    /// First element.
    pub from: usize,
    pub shape: (usize, usize),
}

impl Rows {
    fn shift(&self, at: &Range<usize>) -> Range<usize> {
        at.start + self.from..at.end + self.from
    }
}

impl Source for Rows {
    fn float(&self) -> Float {
        self.of.float()
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn ready(&self) -> bool {
        self.of.ready()
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        lease_any(&*self.of, simd, self.shift(&at), slot)
    }

    fn fetch(&self, at: Range<usize>) {
        self.of.fetch(self.shift(&at));
    }

    fn parts(&self) -> &[Box<dyn Source>] {
        slice::from_ref(&self.of)
    }

    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        slice::from_mut(&mut self.of)
    }
}

/// A range of columns of a source.
pub(super) struct Columns {
    pub of: Box<dyn Source>,
    /// First column.
    pub from: usize,
    pub shape: (usize, usize),
}

impl Source for Columns {
    fn float(&self) -> Float {
        self.of.float()
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let ((_, columns), (_, wide)) = (self.shape, self.of.shape());
        let (inner, bytes) = slot.split(1, at.len() * self.float().bytes());
        fill(
            at,
            bytes,
            self.float(),
            |start| {
                let (row, column) = (start / columns, start % columns);
                ((row + 1) * columns, row * wide + self.from + column)
            },
            |elements, to| {
                to.copy_from_slice(lease_any(&*self.of, simd, elements, &mut inner[0])?);
                Ok(())
            },
        )?;
        Ok(bytes)
    }

    fn parts(&self) -> &[Box<dyn Source>] {
        slice::from_ref(&self.of)
    }

    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        slice::from_mut(&mut self.of)
    }
}

/// Fills elements `at` stretch by stretch: `stretch(element)` returns where the stretch ends and the source element it
/// starts with; `take` writes elements of that source.
fn fill(
    at: Range<usize>,
    bytes: &mut [u8],
    float: Float,
    stretch: impl Fn(usize) -> (usize, usize),
    mut take: impl FnMut(Range<usize>, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let (size, mut start) = (float.bytes(), at.start);
    while start < at.end {
        let (end, from) = stretch(start);
        let end = end.min(at.end);
        take(from..from + (end - start), &mut bytes[(start - at.start) * size..(end - at.start) * size])?;
        start = end;
    }
    Ok(())
}

/// Rows of several sources, concatenated.
pub(super) struct Stack {
    parts: Vec<Box<dyn Source>>,
    /// First element of each source, and the total.
    edges: Vec<usize>,
    shape: (usize, usize),
}

impl Stack {
    pub fn new(parts: Vec<Box<dyn Source>>, shape: (usize, usize)) -> Self {
        let mut edges = vec![0];
        for part in &parts {
            edges.push(edges[edges.len() - 1] + part.len());
        }
        Self { parts, edges, shape }
    }

    /// Calls `take(part, elements)` for each source that `at` overlaps.
    fn split(&self, at: Range<usize>, mut take: impl FnMut(usize, Range<usize>) -> Result<()>) -> Result<()> {
        for (part, edge) in self.edges.windows(2).enumerate() {
            let (start, end) = (at.start.max(edge[0]), at.end.min(edge[1]));
            if start < end {
                take(part, start - edge[0]..end - edge[0])?;
            }
        }
        Ok(())
    }
}

impl Source for Stack {
    fn float(&self) -> Float {
        self.parts[0].float()
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let (inner, bytes) = slot.split(1, at.len() * self.float().bytes());
        let mut rest = &mut *bytes;
        self.split(at, |part, elements| {
            let from = lease_any(&*self.parts[part], simd, elements, &mut inner[0])?;
            let (to, after) = std::mem::take(&mut rest).split_at_mut(from.len());
            to.copy_from_slice(from);
            rest = after;
            Ok(())
        })?;
        Ok(bytes)
    }

    fn fetch(&self, at: Range<usize>) {
        let _always = self.split(at, |part, elements| {
            self.parts[part].fetch(elements);
            Ok(())
        });
    }

    fn parts(&self) -> &[Box<dyn Source>] {
        &self.parts
    }

    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        &mut self.parts
    }
}

/// A matrix transposed.
pub(super) struct Transpose {
    pub of: Box<dyn Source>,
}

impl Source for Transpose {
    fn float(&self) -> Float {
        self.of.float()
    }

    fn shape(&self) -> (usize, usize) {
        let (rows, columns) = self.of.shape();
        (columns, rows)
    }

    /// From each row of a source that is not in place a call reads a range: a short strip makes it short.
    fn strip(&self) -> usize {
        if self.of.ready() { STRIP } else { BLOCK }
    }

    /// What is longer than a usual strip, as read and as returned.
    fn resident(&self) -> usize {
        self.of.resident() + 2 * (self.strip() - STRIP) * size_of::<f64>()
    }

    /// Reads the source row by row: from each row, the columns that are rows of the requested range.
    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let ((rows, columns), size) = (self.of.shape(), self.float().bytes());
        let (inner, bytes) = slot.split(1, at.len() * size);
        let (first, last) = (at.start / rows, (at.end.max(at.start + 1) - 1) / rows);
        for row in 0..rows {
            // The first and the last row of the range may be incomplete.
            let from = first + usize::from(first * rows + row < at.start);
            let to = last + usize::from(last * rows + row < at.end);
            if from >= to {
                continue;
            }
            let line = lease_any(&*self.of, simd, row * columns + from..row * columns + to, &mut inner[0])?;
            for (column, element) in (from..to).zip(line.chunks_exact(size)) {
                let offset = (column * rows + row - at.start) * size;
                bytes[offset..offset + size].copy_from_slice(element);
            }
        }
        Ok(bytes)
    }

    fn parts(&self) -> &[Box<dyn Source>] {
        slice::from_ref(&self.of)
    }

    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        slice::from_mut(&mut self.of)
    }
}
