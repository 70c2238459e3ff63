//! CABS, conflict-aware and balanced sparsification (Yang et al., 2025): of every `m` neighbours in a row the `n` largest of
//! a task vector survive, those that a model before it has kept only where a block has too few others (appendix B.3); then
//! as task arithmetic. Where mol differs from the paper: blocks do not cross rows of the last axis, and zeros never survive,
//! so a model that leaves a block as it is takes nothing from the others.
use super::della::of_rows;
use super::delta::Total;
use super::marked::Marked;
use super::ranked::Magnitude;
use super::{Checked, Merge, finite, weighs};
use crate::bits::Bits;
use crate::error::Result;
use crate::lanes::{Each, Kernel, Lanes, Peaks};
use crate::simd::Simd;
use crate::sweep::Sweep;
use crate::sweep::blocks::{self, Blocks, Row};
use std::ops::Range;

/// Base (the first source) plus weighted task vectors of which `n` of `m` elements survive, of two models the same only where others are too few.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cabs {
    /// One per model, base excluded, in the order in which they choose.
    pub weights: Vec<f64>,
    /// Elements of a block that survive of a model.
    pub n: u32,
    /// Elements of a block; the last one of a row may have fewer.
    pub m: u32,
    /// Factor on the sum.
    pub lambda: f64,
}

impl Cabs {
    /// Marks what survives of each model of a row, least what those before it have kept. `x` holds the row of all
    /// sources, the first element of which is `first`.
    fn choose<F: Lanes>(
        &self,
        simd: Simd,
        first: usize,
        x: &[&[u8]],
        blocks: &mut Blocks<F::Real>,
        marked: &mut Marked,
    ) {
        let (n, m) = (self.n as usize, self.m as usize);
        for model in 0..self.weights.len() {
            let (before, [Some(bits), ..]) = marked.0.split_at_mut(model) else { continue };
            let row = Row { score: &Magnitude(model), x: [x[0], x[model + 1]], first, n, m };
            blocks.mark::<F, _, 2>(simd, &row, before, bits);
        }
    }
}

/// The kernel: what is chosen of the rows, then what is made of it.
struct Chosen {
    cabs: Cabs,
    columns: usize,
}

impl<F: Lanes> Kernel<F> for Chosen {
    fn whole_rows(&self) -> bool {
        true
    }

    fn run(&self, simd: Simd, at: Range<usize>, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<F::Real> {
        let Cabs { weights, lambda, .. } = &self.cabs;
        let mut marked = Marked(weights.iter().map(|_| Some(Bits::new(at.start, at.len()))).collect());
        let mut blocks = Blocks::default();
        for row in at.clone().step_by(self.columns) {
            let bytes = (row - at.start) * F::BYTES..(row + self.columns - at.start) * F::BYTES;
            let x: Vec<&[u8]> = inputs.iter().map(|input| &input[bytes.clone()]).collect();
            self.cabs.choose::<F>(simd, row, &x, &mut blocks, &mut marked);
        }
        let formula = Total::<F::Real, _>::new(&marked, weights, weights, false, *lambda);
        Kernel::<F>::run(&Each(formula), simd, at, inputs, output)
    }
}

impl Merge for Cabs {
    const SWEEPS: u64 = 1;
    // Magnitudes are ranked as f32, as those of TIES.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        if self.n > self.m || self.m == 0 {
            return Err(format!("{} of {} elements cannot survive", self.n, self.m));
        }
        finite("lambda", &[self.lambda])
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        of_rows(rows, columns, sources, blocks::held(columns))
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(Box::new(Chosen { cabs: self.clone(), columns: sweep.columns.max(1) }))
    }
}
