//! TIES: trim, elect sign, disjoint mean (Yadav et al., 2023). Where mol, like mergekit, differs from the paper:
//! trimming is per tensor, and the weighted task vectors vote and are averaged by weight.
use super::delta::{Elect, factors};
use super::ranked::{Largest, held};
use super::{Checked, Merge, finite, shares, weighs};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;

/// How the sign of an element is elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sign of the sum of the weighted deltas; plus if they cancel.
    Total,
    /// The sign of the majority of the weighted deltas; plus in a draw.
    Count,
}

/// Trim, elect sign, disjoint mean over the base (the first source).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ties {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Fraction of elements kept, one per model.
    pub densities: Vec<f64>,
    /// Divide by the sum of the agreeing weights.
    pub normalize: bool,
    /// Rescale survivors so that each task vector keeps its L1 norm.
    pub rescale: bool,
    /// Factor on the mean.
    pub lambda: f64,
    /// How signs are elected.
    pub majority_sign_method: MajoritySign,
}

impl Merge for Ties {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;
    // Magnitudes are ranked as f32, so that a density means the same for every output dtype.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        shares(&self.densities, sources).and(finite("lambda", &[self.lambda]))
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        held(sources, rows, columns)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let keep = Largest::of_densities(sweep, &self.densities)?;
        let Self { ref weights, normalize, rescale, lambda, .. } = *self;
        let factors = factors(sweep, &keep, weights, rescale)?;
        Ok(match self.majority_sign_method {
            MajoritySign::Total => Elect::<_, _, false>::new(keep, weights, &factors, normalize, lambda).kernel(),
            MajoritySign::Count => Elect::<_, _, true>::new(keep, weights, &factors, normalize, lambda).kernel(),
        })
    }
}
