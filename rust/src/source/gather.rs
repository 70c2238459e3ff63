//! Rows in another order, some of them filled: a re-indexed vocabulary.
use super::{Settings, Slot, Source, Tensor, lease_as};
use crate::dtype::{F64, Float, Format, transcode};
use crate::error::Result;
use crate::simd::Simd;
use std::ops::Range;
use std::slice;

/// The origin of rows of a gather.
pub(super) enum From {
    /// Consecutive rows of the source, from this one on.
    Run(usize),
    /// Zeros.
    Zero,
    /// The mean of rows of other sources; computed when the task starts.
    Mean(Vec<(Box<dyn Source>, usize)>, Vec<u8>),
}

/// Some rows of the result: the first, their number, and their origin.
pub(super) type Segment = (usize, usize, From);

/// Rows of a source in another order.
pub(super) struct Gather {
    pub of: Box<dyn Source>,
    /// All rows of the result, in order.
    pub segments: Vec<Segment>,
    /// Format of its elements.
    pub float: Float,
    /// Elements per row.
    pub row: usize,
    pub shape: (usize, usize),
}

impl Gather {
    /// Calls `take(elements, segment)` for each segment that `at` overlaps, in order.
    fn split(&self, at: &Range<usize>, mut take: impl FnMut(Range<usize>, &Segment) -> Result<()>) -> Result<()> {
        let first = self.segments.partition_point(|(to, rows, _)| (to + rows) * self.row <= at.start);
        for segment in self.segments[first..].iter().take_while(|(to, ..)| to * self.row < at.end) {
            take(at.start.max(segment.0 * self.row)..at.end.min((segment.0 + segment.1) * self.row), segment)?;
        }
        Ok(())
    }

    /// Returns the source's elements for elements of a run.
    fn behind(&self, elements: &Range<usize>, to: usize, from: usize) -> Range<usize> {
        let shift = |element: usize| element - to * self.row + from * self.row;
        shift(elements.start)..shift(elements.end)
    }
}

impl Source for Gather {
    fn float(&self) -> Float {
        self.float
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let size = self.float().bytes();
        let (inner, bytes) = slot.split(1, at.len() * size);
        self.split(&at, |elements, (to, _, from)| {
            let out = &mut bytes[(elements.start - at.start) * size..(elements.end - at.start) * size];
            match from {
                From::Run(row) => {
                    let behind = self.behind(&elements, *to, *row);
                    out.copy_from_slice(lease_as(&*self.of, self.float(), simd, behind, &mut inner[0])?);
                }
                From::Zero => out.fill(0),
                From::Mean(_, mean) => {
                    let start = elements.start - to * self.row;
                    out.copy_from_slice(&mean[start * size..(start + elements.len()) * size]);
                }
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    fn fetch(&self, at: Range<usize>) {
        let _always = self.split(&at, |elements, (to, _, from)| {
            if let From::Run(row) = from {
                self.of.fetch(self.behind(&elements, *to, *row));
            }
            Ok(())
        });
    }

    fn resident(&self) -> usize {
        let of_segment = |(.., from): &Segment| match from {
            From::Mean(rows, _) => {
                self.row * size_of::<f64>() + rows.iter().map(|(source, _)| source.resident()).sum::<usize>()
            }
            _ => 0,
        };
        let table = self.segments.len() * size_of::<Segment>();
        self.of.resident() + table + self.segments.iter().map(of_segment).sum::<usize>()
    }

    fn prepare(&mut self, settings: &Settings) -> Result<()> {
        self.of.prepare(settings)?;
        let (float, row) = (self.float(), self.row);
        for (.., from) in &mut self.segments {
            let From::Mean(rows, mean) = from else { continue };
            settings.watch.check()?;
            let (mut sums, mut slot) = (vec![0.0; row], Slot::default());
            for (source, at) in &mut *rows {
                source.prepare(settings)?;
                let values = lease_as(&**source, Float::F64, settings.simd, *at * row..(*at + 1) * row, &mut slot)?;
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += F64::get(values, i);
                }
            }
            let count = rows.len() as f64;
            let exact: Vec<u8> = sums.iter().flat_map(|sum| (sum / count).to_le_bytes()).collect();
            *mean = vec![0; row * float.bytes()];
            transcode(settings.simd, Float::F64, &exact, float, mean);
        }
        Ok(())
    }

    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        self.of.leaves(visit);
        for (.., from) in &self.segments {
            if let From::Mean(rows, _) = from {
                for (source, _) in rows {
                    source.leaves(visit);
                }
            }
        }
    }
}

/// A source rounded to another format.
pub(super) struct Cast {
    pub of: Box<dyn Source>,
    pub to: Float,
}

impl Source for Cast {
    fn float(&self) -> Float {
        self.to
    }

    fn shape(&self) -> (usize, usize) {
        self.of.shape()
    }

    fn unit(&self) -> usize {
        self.of.unit()
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        lease_as(&*self.of, self.to, simd, at, slot)
    }

    fn fetch(&self, at: Range<usize>) {
        self.of.fetch(at);
    }

    fn parts(&self) -> &[Box<dyn Source>] {
        slice::from_ref(&self.of)
    }

    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        slice::from_mut(&mut self.of)
    }
}
