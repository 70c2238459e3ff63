//! DELLA (Deep et al., 2024): elements of each task vector are dropped at random, the smaller ones of a row more often, then
//! as task arithmetic (`della_linear`) or with an election of signs as TIES (`della`). Where mol, like mergekit, differs
//! from the paper: survivors are rescaled to the L1 norm of the whole, not by 1 / probability. Where it differs from
//! mergekit: a row is of the last axis, of equal magnitudes the lowest index ranks highest, and an element that is a row by
//! itself survives with the density as probability.
use super::delta::{Elect, Total};
use super::marked::{Held, Marked, factors, held};
use super::ranked::Magnitude;
use super::{Checked, Merge, finite, numbered, portions, shares, weighs};
use crate::bits::Bits;
use crate::draw::{Draws, limit};
use crate::error::Result;
use crate::lanes::{Each, Kernel, Lanes, Peaks};
use crate::simd::Simd;
use crate::sweep::ranks::{self, Ranks, Row, rankable};
use crate::sweep::{BLOCK, STRIP, Sweep};
use std::ops::Range;

/// Base (the first source) plus weighted task vectors, randomly thinned by rank; with `ELECT` only those that have the
/// elected sign.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Della<const ELECT: bool> {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Fraction of elements kept, one per model.
    pub densities: Vec<f64>,
    /// By how much the probability of the largest of a row is above the density, and that of the smallest below.
    pub epsilons: Vec<f64>,
    /// Number of each model in its random counters, so that its draws stay the same when another model is removed.
    pub models: Vec<u32>,
    /// Divide by the sum of the weights, with `ELECT` of those that agree.
    pub normalize: bool,
    /// Rescale survivors so that each task vector keeps its L1 norm.
    pub rescale: bool,
    /// Factor on what is added.
    pub lambda: f64,
}

/// Returns the bytes that a method holds which marks elements of whole rows, `row` of them to do so.
pub(super) fn of_rows(rows: usize, columns: usize, sources: usize, row: usize) -> usize {
    // The elements of a row, which may be longer than a strip, as read and as f64; the bits for each model of a tile at least.
    let bits = Bits::bytes(columns.saturating_mul(2).max(4 * BLOCK).min(rows.saturating_mul(columns)));
    let read = columns.saturating_mul(2 * size_of::<f64>());
    row.saturating_add(sources.saturating_mul(read.saturating_add(bits)))
}

/// Returns the limit below which a draw keeps each rank of a row, largest element first.
fn limits(density: f64, epsilon: f64, columns: usize) -> Vec<u32> {
    let last = columns.saturating_sub(1);
    let of_rank = |rank: usize| {
        limit(if last == 0 { density } else { density - epsilon + 2.0 * epsilon * (rank as f64 / last as f64) })
    };
    (0..columns).rev().map(of_rank).collect()
}

/// Draws which elements of whole rows survive.
struct Thinning<const ELECT: bool> {
    della: Della<ELECT>,
    key: [u32; 2],
    columns: usize,
    /// Per model, the limits of the ranks; none if all its elements survive.
    limits: Vec<Option<Vec<u32>>>,
    held: Held,
}

impl<const ELECT: bool> Thinning<ELECT> {
    fn new(della: &Della<ELECT>, key: [u32; 2], columns: usize) -> Self {
        let limits = della.densities.iter().zip(&della.epsilons).map(|(density, epsilon)| match *density {
            d if d >= 1.0 => None,
            d if d <= 0.0 => Some(vec![0; columns]),
            d => Some(limits(d, *epsilon, columns)),
        });
        Self { della: della.clone(), key, columns, limits: limits.collect(), held: Held::default() }
    }

    /// Marks no element yet of the rows that hold elements `at`.
    fn none(&self, at: &Range<usize>) -> Marked {
        let bits = |limits: &Option<Vec<u32>>| limits.is_some().then(|| Bits::new(at.start, at.len()));
        Marked(self.limits.iter().map(bits).collect())
    }

    /// Marks what survives of rows `at`, of which `inputs` holds the elements of all sources.
    fn mark<F: Lanes>(
        &self,
        simd: Simd,
        at: Range<usize>,
        inputs: &[&[u8]],
        ranks: &mut Ranks<F::Real>,
        marked: &mut Marked,
    ) {
        for (model, (limits, bits)) in self.limits.iter().zip(&mut marked.0).enumerate() {
            let (Some(limits), Some(bits)) = (limits, bits) else { continue };
            for first in at.clone().step_by(self.columns) {
                let bytes = (first - at.start) * F::BYTES..(first + self.columns - at.start) * F::BYTES;
                let x = [0, model + 1].map(|source| &inputs[source][bytes.clone()]);
                let draws = Draws { key: self.key, model: self.della.models[model] };
                ranks.mark::<F, _, 2>(simd, &Row { score: &Magnitude(model), x, first, limits, draws }, bits);
            }
        }
    }

    /// Marks what survives of the rows that hold elements `at`.
    fn mark_rows<F: Lanes>(&self, rows: &Sweep<F>, at: &Range<usize>) -> Result<Marked> {
        let at = at.start / self.columns * self.columns..at.end.next_multiple_of(self.columns);
        let (mut ranks, mut marked) = (Ranks::default(), self.none(&at));
        rows.strips(&rows.all(), at, STRIP, |strip, inputs| {
            self.mark::<F>(rows.settings.simd, strip, inputs, &mut ranks, &mut marked);
            Ok(())
        })?;
        Ok(marked)
    }
}

/// The kernel: what is drawn of the rows, then what is made of the survivors.
struct Thinned<const ELECT: bool> {
    thinning: Thinning<ELECT>,
    factors: Vec<f64>,
}

impl<F: Lanes, const ELECT: bool> Kernel<F> for Thinned<ELECT> {
    fn whole_rows(&self) -> bool {
        true
    }

    fn run(&self, simd: Simd, at: Range<usize>, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<F::Real> {
        let Thinning { della, columns, held, .. } = &self.thinning;
        let Della { weights, normalize, lambda, .. } = della;
        let (mut peaks, mut start) = (Peaks::default(), at.start);
        let mut drawn;
        while start < at.end {
            let (end, keep) = if let Some((end, marked)) = held.at(start) {
                (at.end.min(*end), &**marked)
            } else {
                let rows = start / columns * columns..at.end;
                let inputs: Vec<&[u8]> = inputs.iter().map(|x| &x[(rows.start - at.start) * F::BYTES..]).collect();
                drawn = self.thinning.none(&rows);
                self.thinning.mark::<F>(simd, rows, &inputs, &mut Ranks::default(), &mut drawn);
                (at.end, &drawn)
            };
            let bytes = (start - at.start) * F::BYTES..(end - at.start) * F::BYTES;
            let inputs: Vec<&[u8]> = inputs.iter().map(|x| &x[bytes.clone()]).collect();
            let (part, output) = (start..end, &mut output[bytes]);
            peaks = peaks.join(if ELECT {
                let formula = Elect::<F::Real, _, false>::new(keep, weights, &self.factors, *normalize, *lambda);
                Kernel::<F>::run(&Each(formula), simd, part, &inputs, output)
            } else {
                let formula = Total::<F::Real, _>::new(keep, weights, &self.factors, *normalize, *lambda);
                Kernel::<F>::run(&Each(formula), simd, part, &inputs, output)
            });
            start = end;
        }
        peaks
    }
}

impl<const ELECT: bool> Merge for Della<ELECT> {
    const SWEEPS: u64 = 3;
    const DIRECT: bool = true;
    // Magnitudes are ranked as f32, as those of TIES.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        numbered(&self.models, self.weights.len())?;
        shares(&self.densities, sources)?;
        portions("epsilon", &self.epsilons, sources)?;
        for (density, epsilon) in self.densities.iter().zip(&self.epsilons) {
            let (least, most) = (density - epsilon, density + epsilon);
            if *density > 0.0 && *density < 1.0 && (least <= 0.0 || most >= 1.0) {
                return Err(format!(
                    "density {density} with epsilon {epsilon}: {least} to {most} is not within (0, 1)"
                ));
            }
        }
        finite("lambda", &[self.lambda])
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        let limits = columns.saturating_mul(sources * size_of::<u32>());
        of_rows(rows, columns, sources, ranks::held(columns).saturating_add(limits))
            + held(rows, columns, columns.max(1), sources - 1)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        rankable(sweep.columns)?;
        let mut thinning = Thinning::new(self, sweep.settings.key, sweep.columns.max(1));
        let mut rescaled = self.weights.clone();
        if self.rescale {
            let rows = Sweep::<F>::new(sweep.sources(), sweep.settings).in_rows();
            let mark = |tile| thinning.mark_rows(&rows, &tile);
            (rescaled, thinning.held) = factors(sweep, &self.weights, thinning.columns, mark)?;
        }
        Ok(Box::new(Thinned { thinning, factors: rescaled }))
    }
}
