//! W + scale * B A, computed element by element; `DoRA` needs the norms of its rows first, in a sweep of its own.
use super::{Settings, Slot, Source, Tensor, lease_as};
use crate::dtype::{F64, Float, Format};
use crate::error::{Error, Result};
use crate::simd::{Simd, Task};
use crate::sweep::{STRIP, sums::Sum};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a row that are summed together, in registers and the first-level cache.
const CHUNK: usize = 256;

/// W + scale * B A. Sums are f64, so an element is rounded once, to the format returned.
pub(super) struct Lora {
    pub of: Box<dyn Source>,
    /// A (rank, columns), B (rows, rank), and for `DoRA` the magnitude of each row.
    pub factors: [Box<dyn Source>; 2],
    pub magnitude: Option<Box<dyn Source>>,
    pub scale: f64,
    pub rank: usize,
    pub made: Option<Numbers>,
}

/// What is held while the task runs.
pub(super) struct Numbers {
    a: Vec<f64>,
    b: Vec<f64>,
    /// Factor of each row.
    rows: Option<Vec<f64>>,
}

/// Reads all elements of a source.
pub(super) fn whole(source: &mut dyn Source, settings: &Settings) -> Result<Vec<f64>> {
    source.prepare(settings)?;
    let (mut values, mut slot) = (Vec::with_capacity(source.len()), Slot::default());
    for start in (0..source.len()).step_by(STRIP) {
        settings.watch.check()?;
        let strip = start..source.len().min(start + STRIP);
        let bytes = lease_as(source, Float::F64, settings.simd, strip.clone(), &mut slot)?;
        values.extend((0..strip.len()).map(|i| F64::get(bytes, i)));
    }
    Ok(values)
}

/// A stretch of one row: `y = (w + s * sum_k b_k a_k) * m`, in order of k.
struct Stretch<'a> {
    w: &'a [[u8; 8]],
    /// The first row of A, from the stretch's first column on.
    a: &'a [f64],
    columns: usize,
    b: &'a [f64],
    scale: f64,
    multiply: Option<f64>,
    y: &'a mut [[u8; 8]],
}

impl Task for Stretch<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (start, y) in (0..).step_by(CHUNK).zip(self.y.chunks_mut(CHUNK)) {
            let mut sums = [0.0; CHUNK];
            for (k, b) in self.b.iter().enumerate() {
                let a = &self.a[k * self.columns + start..][..y.len()];
                for (sum, a) in sums.iter_mut().zip(a) {
                    *sum += *b * *a;
                }
            }
            for (i, y) in y.iter_mut().enumerate() {
                let value = f64::from_le_bytes(self.w[start + i]) + self.scale * sums[i];
                *y = self.multiply.map_or(value, |m| value * m).to_le_bytes();
            }
        }
    }
}

impl Lora {
    /// Computes elements `at` in f64.
    fn make<'s>(&self, numbers: &Numbers, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let (_, columns) = self.shape();
        let (inner, bytes) = slot.split(1, at.len() * 8);
        let w = lease_as(&*self.of, Float::F64, simd, at.clone(), &mut inner[0])?.as_chunks().0;
        let mut start = at.start;
        while start < at.end {
            let (row, column) = (start / columns, start % columns);
            let end = at.end.min((row + 1) * columns);
            let here = start - at.start..end - at.start;
            simd.run(Stretch {
                w: &w[here.clone()],
                a: &numbers.a[column..],
                columns,
                b: &numbers.b[row * self.rank..(row + 1) * self.rank],
                scale: self.scale,
                multiply: numbers.rows.as_ref().map(|rows| rows[row]),
                y: &mut bytes.as_chunks_mut().0[here],
            });
            start = end;
        }
        Ok(bytes)
    }

    /// Computes the norm of a row of W + scale * B A.
    fn norm(&self, numbers: &Numbers, settings: &Settings, row: usize) -> Result<f64> {
        settings.watch.check()?;
        let (_, columns) = self.shape();
        let (mut sum, mut slot) = (Sum::default(), Slot::default());
        for start in (0..columns).step_by(STRIP) {
            let end = columns.min(start + STRIP);
            let values = self.make(numbers, settings.simd, row * columns + start..row * columns + end, &mut slot)?;
            for i in 0..end - start {
                let value = F64::get(values, i);
                sum.add_one(start + i, value * value);
            }
        }
        Ok(sum.total().sqrt())
    }
}

impl Source for Lora {
    fn float(&self) -> Float {
        if self.of.float() == Float::F64 { Float::F64 } else { Float::F32 }
    }

    fn shape(&self) -> (usize, usize) {
        self.of.shape()
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let numbers =
            self.made.as_ref().ok_or_else(|| Error::Panic("an adapter is read before it is prepared".into()))?;
        if self.float() == Float::F64 {
            return self.make(numbers, simd, at, slot);
        }
        let (inner, bytes) = slot.split(1, at.len() * 4);
        let exact = self.make(numbers, simd, at, &mut inner[0])?;
        crate::dtype::transcode(simd, Float::F64, exact, Float::F32, bytes);
        Ok(bytes)
    }

    fn fetch(&self, at: Range<usize>) {
        self.of.fetch(at);
    }

    fn resident(&self) -> usize {
        let factors = self.factors.iter().chain(&self.magnitude);
        self.of.resident() + factors.map(|factor| factor.resident() + factor.len() * size_of::<f64>()).sum::<usize>()
    }

    fn prepare(&mut self, settings: &Settings) -> Result<()> {
        self.of.prepare(settings)?;
        let [a, b] = &mut self.factors;
        let mut numbers = Numbers { a: whole(&mut **a, settings)?, b: whole(&mut **b, settings)?, rows: None };
        if let Some(magnitude) = &mut self.magnitude {
            let magnitudes = whole(&mut **magnitude, settings)?;
            let (this, known) = (&*self, &numbers);
            let norms = (0..this.shape().0).into_par_iter().map(|row| this.norm(known, settings, row));
            let norms = norms.collect::<Result<Vec<f64>>>()?;
            numbers.rows = Some(magnitudes.iter().zip(norms).map(|(magnitude, norm)| magnitude / norm).collect());
        }
        self.made = Some(numbers);
        Ok(())
    }

    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        self.of.leaves(visit);
        self.factors.iter().chain(&self.magnitude).for_each(|factor| factor.leaves(visit));
    }
}
