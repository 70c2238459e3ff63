//! Weighted sum of models, optionally divided by the sum of weights (model soups, Wortsman et al., 2022).
use super::weighted::weighted;
use super::{Checked, Merge, weighs};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;

/// Weighted sum, divided by the sum of weights with `normalize`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// One per source.
    pub weights: Vec<f64>,
    /// Divide by their sum.
    pub normalize: bool,
}

impl Merge for Linear {
    const SWEEPS: u64 = 1;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 0, sources)?;
        if self.normalize && self.weights.iter().sum::<f64>() == 0.0 {
            return Err("weights sum to zero, and `normalize` divides by their sum".into());
        }
        Ok(())
    }

    fn prepare<F: Lanes>(&self, _: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let sum: f64 = self.weights.iter().sum();
        Ok(weighted(&self.weights, (self.normalize && sum != 1.0).then_some(sum)))
    }
}
