//! DARE (Yu et al., 2024): elements of each task vector are dropped at random, then as task arithmetic (`dare_linear`) or
//! with an election of signs as TIES (`dare_ties`). Where mol, like mergekit, differs from the paper: survivors are
//! rescaled to the L1 norm of the whole, not by 1 / density.
use super::delta::{Keep, added};
use super::{Checked, Merge, finite, numbered, shares, weighs};
use crate::draw::draw;
use crate::error::Result;
use crate::lanes::{At, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;

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

/// An element survives if the upper 31 bits of its random word are below a limit, one per model.
struct Drawn {
    key: [u32; 2],
    models: Vec<u32>,
    limits: Vec<u32>,
}

impl<R: Real> Keep<R> for Drawn {
    type Stretch = ();

    fn stretch(&self, _: usize) -> ((), usize) {
        ((), usize::MAX)
    }

    #[inline(always)]
    fn apply<const N: usize>(&self, (): &(), at: At, model: usize, _: [R; N], mut v: [R; N]) -> [R; N] {
        let drawn = draw::<N>(self.key, self.models[model], at);
        let limit = self.limits[model];
        for j in 0..N {
            v[j] = v[j].keep_if(drawn[j] >> 1 < limit);
        }
        v
    }
}

impl<const ELECT: bool> Merge for Dare<ELECT> {
    const SWEEPS: u64 = 2;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        numbered(&self.models, self.weights.len())?;
        shares(&self.densities, sources).and(finite("lambda", &[self.lambda]))
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let limits = self.densities.iter().map(|density| (density * f64::from(1_u32 << 31)).round() as u32).collect();
        let keep = Drawn { key: sweep.settings.key, models: self.models.clone(), limits };
        added::<F, _, ELECT>(sweep, keep, &self.weights, self.normalize, self.rescale, self.lambda)
    }
}
