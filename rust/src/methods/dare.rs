//! DARE (Yu et al., 2024): elements of each task vector are dropped at random, then as task arithmetic (`dare_linear`) or
//! with an election of signs as TIES (`dare_ties`). Where mol, like mergekit, differs from the paper: survivors are
//! rescaled to the L1 norm of the whole, not by 1 / density.
use super::delta::{Keep, added};
use super::marked::{Held, Marked, factors, held};
use super::{Checked, Merge, finite, numbered, shares, weighs};
use crate::bits::{Bits, WORD};
use crate::draw::{Draws, Survivors, limit};
use crate::error::Result;
use crate::lanes::{At, Kernel, Lanes};
use crate::real::Real;
use crate::simd::Simd;
use crate::source::Settings;
use crate::sweep::Sweep;
use std::ops::Range;
use std::sync::Arc;

/// Base (the first source) plus weighted task vectors, randomly thinned; with `ELECT` only those that have the elected
/// sign.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dare<const ELECT: bool> {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Fraction of elements kept, one per model.
    pub densities: Vec<f64>,
    /// Number of each model in its random counters, so that its draws stay the same when another model is removed.
    pub models: Vec<u32>,
    /// Divide by the sum of the weights, with `ELECT` of those that agree.
    pub normalize: bool,
    /// Rescale survivors so that each task vector keeps its L1 norm.
    pub rescale: bool,
    /// Factor on what is added.
    pub lambda: f64,
}

/// Elements whose draws are made at once where they are not held.
const SPAN: usize = 4096;

/// An element survives if its draw is below a limit.
struct Drawn {
    /// Per model, its draws and the limit; none if all its elements survive.
    models: Vec<Option<(Draws, u32)>>,
    elements: usize,
    simd: Simd,
    held: Held,
}

impl Drawn {
    /// Draws for elements `at`, which start with a multiple of a word of bits.
    fn draw(&self, at: Range<usize>) -> Marked {
        let of_model = |(draws, limit)| {
            let mut bits = Bits::new(at.start, at.len());
            self.simd.run(Survivors { draws, limit, at: at.clone(), bits: &mut bits });
            bits
        };
        Marked(self.models.iter().map(|model| model.map(of_model)).collect())
    }
}

impl<R: Real> Keep<R> for Drawn {
    type Stretch = Arc<Marked>;
    const UNROLLED: bool = true;

    fn stretch(&self, from: usize) -> (Arc<Marked>, usize) {
        if let Some((end, marked)) = self.held.at(from) {
            return (marked.clone(), *end);
        }
        let at = from / WORD * WORD..(from + 1).next_multiple_of(SPAN).min(self.elements);
        (Arc::new(self.draw(at.clone())), at.end)
    }

    #[inline(always)]
    fn apply<const N: usize>(&self, marked: &Arc<Marked>, at: At, model: usize, _: [R; N], v: [R; N]) -> [R; N] {
        marked.keep(at, model, v)
    }
}

impl<const ELECT: bool> Merge for Dare<ELECT> {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        numbered(&self.models, self.weights.len())?;
        shares(&self.densities, sources).and(finite("lambda", &[self.lambda]))
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        held(rows, columns, 1, sources - 1)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let Settings { key, simd, .. } = sweep.settings;
        let of_model =
            |(density, model): (&f64, &u32)| (*density < 1.0).then(|| (Draws { key, model: *model }, limit(*density)));
        let models = self.densities.iter().zip(&self.models).map(of_model).collect();
        let mut keep = Drawn { models, elements: sweep.len(), simd, held: Held::default() };
        let Self { ref weights, normalize, rescale, lambda, .. } = *self;
        let mut rescaled = weights.clone();
        if rescale {
            (rescaled, keep.held) = factors(sweep, weights, 1, |tile| Ok(keep.draw(tile)))?;
        }
        Ok(added::<F, _, ELECT>(keep, weights, &rescaled, normalize, lambda))
    }
}
