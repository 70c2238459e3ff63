//! DARE (Yu et al., 2024): elements of each task vector are dropped at random, then as task arithmetic (`dare_linear`) or
//! with an election of signs as TIES (`dare_ties`). Where mol, like mergekit, differs from the paper: survivors are
//! rescaled to the L1 norm of the whole, not by 1 / density.
use super::delta::{Keep, Marked, added};
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

/// Elements whose draws are made at once.
const SPAN: usize = 4096;

/// An element survives if its draw is below a limit.
struct Drawn {
    /// Per model, its draws and the limit; none if all its elements survive.
    models: Vec<Option<(Draws, u32)>>,
    elements: usize,
    simd: Simd,
}

impl Drawn {
    /// Returns the elements to draw for from one on, the first a multiple of a word of bits.
    fn span(&self, from: usize) -> Range<usize> {
        from / WORD * WORD..(from + 1).next_multiple_of(SPAN).min(self.elements)
    }

    /// Draws for a model: the bits of elements `at`, as `span` returns them.
    fn draw(&self, model: usize, at: Range<usize>) -> Option<Bits> {
        self.models[model].map(|(draws, limit)| {
            let mut bits = Bits::new(at.start, at.len());
            self.simd.run(Survivors { draws, limit, at, bits: &mut bits });
            bits
        })
    }
}

impl<R: Real> Keep<R> for Drawn {
    type Stretch = Marked;

    fn stretch(&self, from: usize) -> (Marked, usize) {
        let at = self.span(from);
        (Marked((0..self.models.len()).map(|model| self.draw(model, at.clone())).collect()), at.end)
    }

    fn stretch_of(&self, from: usize, one: usize) -> (Marked, usize) {
        let at = self.span(from);
        let draw = |model| if model == one { self.draw(model, at.clone()) } else { None };
        (Marked((0..self.models.len()).map(draw).collect()), at.end)
    }

    #[inline(always)]
    fn apply<const N: usize>(&self, marked: &Marked, at: At, model: usize, _: [R; N], v: [R; N]) -> [R; N] {
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

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let Settings { key, simd, .. } = sweep.settings;
        let of_model =
            |(density, model): (&f64, &u32)| (*density < 1.0).then(|| (Draws { key, model: *model }, limit(*density)));
        let models = self.densities.iter().zip(&self.models).map(of_model).collect();
        let keep = Drawn { models, elements: sweep.len(), simd };
        added::<F, _, ELECT>(sweep, keep, &self.weights, self.normalize, self.rescale, self.lambda)
    }
}
