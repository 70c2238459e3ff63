//! DELLA (Deep et al., 2024): elements of each task vector are dropped at random, the smaller ones of a row more often, then
//! as task arithmetic (`della_linear`) or with an election of signs as TIES (`della`). Where mol, like mergekit, differs
//! from the paper: survivors are rescaled to the L1 norm of the whole, not by 1 / probability. Where it differs from
//! mergekit: a row is of the last axis, of equal magnitudes the lowest index ranks highest, and an element that is a row by
//! itself survives with the density as probability.
use super::delta::{Keep, added};
use super::ranked::Magnitude;
use super::{Checked, Merge, finite, numbered, portions, shares, weighs};
use crate::draw::draw;
use crate::error::Result;
use crate::lanes::{At, Kernel, Lanes, W};
use crate::real::Real;
use crate::simd::Task;
use crate::sweep::Sweep;
use crate::sweep::ranks::{Bits, held};

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

/// Elements survive whose bit is set; all survive for a model without bits.
pub struct Marked(pub Vec<Option<Bits>>);

impl<R: Real> Keep<R> for Marked {
    type Stretch = ();

    fn stretch(&self, _: usize) -> ((), usize) {
        ((), usize::MAX)
    }

    #[inline(always)]
    fn apply<const N: usize>(&self, (): &(), at: At, model: usize, _: [R; N], mut v: [R; N]) -> [R; N] {
        if let Some(bits) = &self.0[model] {
            let survives = bits.lanes::<N>(at);
            for j in 0..N {
                v[j] = v[j].keep_if(survives[j]);
            }
        }
        v
    }
}

/// Random words of the elements of a row, from a multiple of four on: then each counter is computed once for its four.
struct Draws<'a> {
    key: [u32; 2],
    model: u32,
    from: usize,
    drawn: &'a mut [[u32; W]],
}

impl Task for Draws<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (i, drawn) in self.drawn.iter_mut().enumerate() {
            *drawn = draw::<W>(self.key, self.model, At { first: self.from + i * W, step: 1 });
        }
    }
}

/// Returns the limit out of 2^31 below which a draw keeps each rank of a row, largest element first.
fn limits(density: f64, epsilon: f64, columns: usize) -> Vec<u32> {
    let last = columns.saturating_sub(1);
    let of_rank = |rank: usize| {
        let share = if last == 0 { density } else { density - epsilon + 2.0 * epsilon * (rank as f64 / last as f64) };
        (share * f64::from(1_u32 << 31)).round() as u32
    };
    (0..columns).rev().map(of_rank).collect()
}

impl<const ELECT: bool> Della<ELECT> {
    fn bits<F: Lanes>(&self, sweep: &Sweep<F>, model: usize) -> Result<Option<Bits>> {
        let density = self.densities[model];
        if density >= 1.0 {
            return Ok(None);
        }
        let limits =
            if density > 0.0 { limits(density, self.epsilons[model], sweep.columns) } else { vec![0; sweep.columns] };
        let mark = |first: usize, order: &[u32], survives: &mut [bool]| {
            let skip = first % 4;
            let mut drawn = vec![[0; W]; (skip + order.len()).div_ceil(W)];
            let draws =
                Draws { key: sweep.settings.key, model: self.models[model], from: first - skip, drawn: &mut drawn };
            sweep.settings.simd.run(draws);
            let drawn = &drawn.as_flattened()[skip..];
            for (column, limit) in order.iter().zip(&limits) {
                survives[*column as usize] = drawn[*column as usize] >> 1 < *limit;
            }
        };
        Ok(Some(sweep.by_rank(&Magnitude(model), mark)?))
    }
}

impl<const ELECT: bool> Merge for Della<ELECT> {
    const SWEEPS: u64 = 3;
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
        let bits = sources.saturating_sub(1).saturating_mul(Bits::bytes(rows.saturating_mul(columns)));
        bits.saturating_add(held(columns)).saturating_add(columns.saturating_mul(2 * size_of::<u32>()))
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let keep = Marked((0..self.weights.len()).map(|model| self.bits(sweep, model)).collect::<Result<_>>()?);
        added::<F, _, ELECT>(sweep, keep, &self.weights, self.normalize, self.rescale, self.lambda)
    }
}
