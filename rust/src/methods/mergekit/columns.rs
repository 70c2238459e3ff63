//! Norms and sums down the columns of a matrix in f32 as torch's CPU kernels make them: eight lanes, one thread. A square
//! is rounded before it is added, and which sums lie side by side hangs on the column.
use super::reductions::{Cascade, LANES, SIDE};
use super::rounding::Round;
use crate::error::Result;
use crate::lanes::Lanes;
use crate::real::Real;
use crate::sweep::{STRIP, Sweep};
use rayon::prelude::*;
use std::ops::Range;

/// Columns that are summed at a time.
const PANEL: usize = 1024;

/// Columns that are reduced at a time.
pub struct Panel {
    columns: Range<usize>,
    /// Whether their sums are `SIDE` sums side by side.
    sides: bool,
    /// The matrix.
    rows: usize,
    width: usize,
}

/// Runs `visit` for panels of columns of a tensor of this many rows, in parallel; returns the results in order.
pub fn each_panel<F: Lanes, D: Round, T: Send>(
    sweep: &Sweep<F>,
    rows: usize,
    visit: impl Fn(&Panel) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let width = sweep.len().checked_div(rows).unwrap_or(0);
    // Four vectors of columns at a time, or four columns where there is no vector; the last ones otherwise.
    let vector = if D::SINGLE { LANES } else { 2 * LANES };
    let group = if width < vector { 4 } else { 4 * LANES };
    let whole = width / group * group;
    let mut panels: Vec<_> = (0..whole)
        .step_by(PANEL)
        .map(|from| Panel { columns: from..whole.min(from + PANEL), sides: false, rows, width })
        .collect();
    panels.extend((whole < width).then_some(Panel { columns: whole..width, sides: true, rows, width }));
    panels.into_par_iter().map(|panel| visit(&panel)).collect()
}

impl Panel {
    /// Calls `take` with the values of all sources of the elements of each row, which are transposed: one element's lie
    /// together.
    fn rows<F: Lanes>(&self, sweep: &Sweep<F>, mut take: impl FnMut(&[f32])) -> Result<()> {
        let all = sweep.all();
        let mut x = Vec::new();
        for row in 0..self.rows {
            sweep.settings.watch.check()?;
            let start = row * self.width;
            x.clear();
            sweep.strips(&all, start + self.columns.start..start + self.columns.end, STRIP, |strip, inputs| {
                x.extend((0..strip.len()).flat_map(|i| inputs.iter().map(move |input| F::get(input, i).to_f32())));
                Ok(())
            })?;
            take(&x);
        }
        Ok(())
    }

    /// Returns the norms of two vectors of dtype `D` per column; `vectors` computes their elements of the sources'.
    pub fn norms<F: Lanes, D: Round>(
        &self,
        sweep: &Sweep<F>,
        vectors: impl Fn(&[f32]) -> [f32; 2],
    ) -> Result<Vec<[f32; 2]>> {
        let mut sums = vec![[0.0; 2]; self.columns.len()];
        self.rows(sweep, |x| {
            for (sums, x) in sums.iter_mut().zip(x.chunks_exact(sweep.sources().len())) {
                let terms = vectors(x);
                (0..2).for_each(|k| sums[k] += terms[k] * terms[k]);
            }
        })?;
        Ok(sums.into_iter().map(|sums| sums.map(|sum: f32| D::narrow(sum.sqrt()))).collect())
    }

    /// Returns the sums of terms of dtype `D` per column; `term` computes one of a column of the panel and the sources.
    pub fn sums<F: Lanes, D: Round>(&self, sweep: &Sweep<F>, term: impl Fn(usize, &[f32]) -> f32) -> Result<Vec<f32>> {
        let sums = if self.sides { self.summed::<F, SIDE>(sweep, term)? } else { self.summed::<F, 1>(sweep, term)? };
        Ok(sums.into_iter().map(D::narrow).collect())
    }

    fn summed<F: Lanes, const N: usize>(
        &self,
        sweep: &Sweep<F>,
        term: impl Fn(usize, &[f32]) -> f32,
    ) -> Result<Vec<f32>> {
        let mut terms = vec![0.0; self.columns.len()];
        let mut sums = Cascade::<_, N>::new(&terms, self.rows);
        self.rows(sweep, |x| {
            for (column, x) in x.chunks_exact(sweep.sources().len()).enumerate() {
                terms[column] = term(column, x);
            }
            sums.add(&terms);
        })?;
        Ok(sums.total())
    }
}
