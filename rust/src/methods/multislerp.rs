//! Barycentric interpolation on the sphere (Goddard, 2025): the weighted mean direction of the models, or of their task
//! vectors, scaled to their weighted mean length. mol differs from mergekit in two points: if all models equal the base, the
//! result is the base, and a single model is multiplied by its weight without `normalize`.
use super::delta::{All, Total};
use super::weighted::weighted;
use super::{Checked, Merge, not_negative, weighs};
use crate::error::{Error, Result};
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;
use crate::sweep::gram::{CANCELLED, Gram};

/// The weighted mean direction of all models; with one source more than weights, the first is the base.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Multislerp {
    /// One per model, the base excluded.
    pub weights: Vec<f64>,
    /// Divide the weights by their sum.
    pub normalize: bool,
    /// Added to norms before they divide; a shorter mean has no direction.
    pub eps: f64,
}

impl Merge for Multislerp {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, usize::from(sources > self.weights.len()), sources)?;
        if self.normalize && self.weights.iter().sum::<f64>() == 0.0 {
            return Err("weights sum to zero, and `normalize` divides by their sum".into());
        }
        not_negative("eps", self.eps)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let based = sweep.sources().len() > self.weights.len();
        let factors = self.factors(&sweep.gram(based)?)?;
        Ok(if based { Total::new(All, &factors, &factors, false, 1.0).kernel() } else { weighted(&factors, None) })
    }
}

impl Multislerp {
    /// Returns the factors of the models, or of their task vectors.
    fn factors(&self, gram: &Gram) -> Result<Vec<f64>> {
        let sum: f64 = if self.normalize { self.weights.iter().sum() } else { 1.0 };
        let weights: Vec<f64> = self.weights.iter().map(|weight| weight / sum).collect();
        let norms: Vec<f64> = (0..gram.len()).map(|model| gram.norm(model)).collect();
        if weights.len() == 1 || norms.iter().all(|norm| *norm == 0.0) {
            return Ok(weights);
        }
        let divisors = norms.iter().map(|norm| if *norm > 0.0 { norm + self.eps } else { 1.0 });
        let mut mean: Vec<f64> = weights.iter().zip(divisors).map(|(weight, divisor)| weight / divisor).collect();
        let length = gram.length(&mean);
        let mass: f64 = mean.iter().zip(&norms).map(|(coefficient, norm)| coefficient.abs() * norm).sum();
        if length < self.eps || length <= mass * CANCELLED {
            if weights.len() == 2 {
                return Ok(weights);
            }
            return Err(Error::Merge(format!(
                "the directions of {} models cancel, and multislerp has no mean direction; change the weights",
                weights.len()
            )));
        }
        // The formula takes one more step along the sphere, by the models' mean deviation from the mean direction. That
        // deviation is zero, and `eps` is added to the angle.
        let whole: f64 = weights.iter().zip(&norms).map(|(weight, norm)| weight * norm).sum();
        let scale = whole * libm::cos(self.eps) / length;
        for coefficient in &mut mean {
            *coefficient *= scale;
        }
        Ok(mean)
    }
}
