//! The mean of all rows of a source, as one row: what rows get that nothing is known of.
use super::{Settings, Slot, Source, Tensor, lease_as};
use crate::dtype::{F64, Float, Format, transcode};
use crate::error::{Error, Result};
use crate::simd::Simd;
use crate::sweep::STRIP;
use rayon::prelude::*;
use std::ops::Range;

/// Parts that are summed apart, in parallel; their number is fixed, so the sum does not depend on threads.
const PARTS: usize = 64;

/// The mean of rows. Sums are f64, so an element is rounded once, to the format returned.
pub(super) struct Mean {
    pub of: Box<dyn Source>,
    /// Of a vector each element is a row.
    pub rows: usize,
    pub columns: usize,
    pub made: Option<Vec<u8>>,
}

impl Mean {
    /// Sums rows by column.
    fn sum(&self, settings: &Settings, rows: Range<usize>) -> Result<Vec<f64>> {
        let columns = self.columns;
        let (mut sums, mut slot) = (vec![0.0; columns], Slot::default());
        for start in (rows.start * columns..rows.end * columns).step_by(STRIP) {
            settings.watch.check()?;
            let strip = start..(rows.end * columns).min(start + STRIP);
            let values = lease_as(&*self.of, Float::F64, settings.simd, strip.clone(), &mut slot)?;
            for (i, element) in strip.enumerate() {
                sums[element % columns] += F64::get(values, i);
            }
        }
        Ok(sums)
    }
}

impl Source for Mean {
    fn float(&self) -> Float {
        if self.of.float() == Float::F64 { Float::F64 } else { Float::F32 }
    }

    fn shape(&self) -> (usize, usize) {
        (1, self.columns)
    }

    fn lease<'s>(&'s self, _: Simd, at: Range<usize>, _: &'s mut Slot) -> Result<&'s [u8]> {
        let row = self.made.as_ref().ok_or_else(|| Error::Panic("a mean is read before it is prepared".into()))?;
        let size = self.float().bytes();
        Ok(&row[at.start * size..at.end * size])
    }

    fn resident(&self) -> usize {
        self.of.resident() + self.columns * size_of::<f64>() * (PARTS + 1)
    }

    fn prepare(&mut self, settings: &Settings) -> Result<()> {
        self.of.prepare(settings)?;
        let (rows, columns) = (self.rows, self.columns);
        let part = |i: usize| rows * i / PARTS..rows * (i + 1) / PARTS;
        let this = &*self;
        let sums: Result<Vec<_>> = (0..PARTS).into_par_iter().map(|i| this.sum(settings, part(i))).collect();
        let mut total = vec![0.0; columns];
        for sums in sums? {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        let exact: Vec<u8> = total.iter().flat_map(|sum| (sum / rows as f64).to_le_bytes()).collect();
        let mut row = vec![0; columns * self.float().bytes()];
        transcode(settings.simd, Float::F64, &exact, self.float(), &mut row);
        self.made = Some(row);
        Ok(())
    }

    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        self.of.leaves(visit);
    }
}
