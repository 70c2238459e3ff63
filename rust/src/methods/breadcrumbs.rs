//! Model breadcrumbs (Davari and Belilovsky, 2023): of each task vector the largest values and the smallest are dropped,
//! then as task arithmetic (`breadcrumbs`) or with an election of signs as TIES (`breadcrumbs_ties`). Where mol, like
//! mergekit, differs from the paper: `gamma` is the fraction of the largest, and `density` that of all that survive.
use super::delta::{added, factors};
use super::ranked::{Band, Magnitude, held};
use super::{Checked, Merge, finite, portions, shares, weighs};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;

/// Base (the first source) plus weighted task vectors without their extremes; with `ELECT` only those that have the
/// elected sign.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breadcrumbs<const ELECT: bool> {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Fraction of elements kept, one per model.
    pub densities: Vec<f64>,
    /// Fraction of elements dropped because they are the largest, one per model.
    pub gammas: Vec<f64>,
    /// Divide by the sum of the weights, with `ELECT` of those that agree.
    pub normalize: bool,
    /// Rescale survivors so that each task vector keeps its L1 norm.
    pub rescale: bool,
    /// Factor on what is added.
    pub lambda: f64,
}

impl<const ELECT: bool> Merge for Breadcrumbs<ELECT> {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;
    // Magnitudes are ranked as f32, as those of TIES.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        portions("gamma", &self.gammas, sources)?;
        shares(&self.densities, sources).and(finite("lambda", &[self.lambda]))
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        held(2 * sources, rows, columns)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let keep = Band::by(sweep, &self.densities, &self.gammas, Magnitude)?;
        let factors = factors(sweep, &keep, &self.weights, self.rescale)?;
        Ok(added::<F, _, ELECT>(keep, &self.weights, &factors, self.normalize, self.lambda))
    }
}
