//! Karcher mean: the point on the sphere with the smallest sum of squared angles to all models (Grove and Karcher, 1973),
//! scaled to their mean length. Each step stays in the span of the models, so the iteration runs on coefficients and their
//! Gram matrix, and the tensors are read twice for any number of steps.
use super::weighted::weighted;
use super::{Checked, Merge, not_negative};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;
use crate::sweep::gram::{CANCELLED, Gram};

/// The mean of all sources on the sphere.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Karcher {
    /// Maximum number of steps.
    pub max_iter: u32,
    /// Angle of a step below which the iteration stops, and norm up to which a source has no direction.
    pub tol: f64,
}

/// Cosine below which a vector counts as opposite to the mean.
const OPPOSITE: f64 = -1.0 + 1e-8;

impl Merge for Karcher {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        if sources == 0 { Err("no source".into()) } else { not_negative("tol", self.tol) }
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(weighted(&self.weights(&sweep.gram(false)?), None))
    }
}

impl Karcher {
    /// Returns the weights of the sources.
    fn weights(&self, gram: &Gram) -> Vec<f64> {
        let norms: Vec<f64> = (0..gram.len()).map(|source| gram.norm(source)).collect();
        let share = 1.0 / norms.len() as f64;
        let length = share * norms.iter().sum::<f64>();
        if !length.is_finite() {
            // A source that is not finite is found in the result.
            return vec![f64::NAN; norms.len()];
        }
        let scales: Vec<f64> = norms.iter().map(|norm| if *norm > self.tol { 1.0 / norm } else { 0.0 }).collect();
        let directed: Vec<usize> = (0..norms.len()).filter(|source| scales[*source] > 0.0).collect();
        if directed.is_empty() {
            return vec![share; norms.len()];
        }
        let mean = self.mean(&gram.scaled(&scales), &directed);
        mean.iter().zip(scales).map(|(coefficient, scale)| length * coefficient * scale).collect()
    }

    /// Returns the coefficients of the mean of those unit vectors that have a direction.
    fn mean(&self, units: &Gram, directed: &[usize]) -> Vec<f64> {
        let share = 1.0 / directed.len() as f64;
        let mut mean = vec![0.0; units.len()];
        for unit in directed {
            mean[*unit] = share;
        }
        if units.length(&mean) < self.tol.max(CANCELLED) {
            mean.fill(0.0);
            mean[directed[0]] = 1.0;
        }
        normalize(&mut mean, units);
        for _ in 0..self.max_iter {
            // The mean of the vectors' logarithms at the current point, and the part of them along that point.
            let (mut step, mut along) = (vec![0.0; units.len()], 0.0);
            for unit in directed {
                let cosine = units.along(*unit, &mean).clamp(-1.0, 1.0);
                let angle = libm::acos(cosine);
                // No single direction leads to an opposite vector.
                if angle < self.tol || cosine < OPPOSITE {
                    continue;
                }
                let stretched = if cosine < 1.0 { share * angle / libm::sin(angle) } else { share };
                step[*unit] += stretched;
                along += stretched * cosine;
            }
            step.iter_mut().zip(&mean).for_each(|(step, mean)| *step -= along * mean);
            let angle = units.length(&step);
            if angle < self.tol || angle == 0.0 {
                break;
            }
            let (forward, sideward) = (libm::cos(angle), libm::sin(angle) / angle);
            mean.iter_mut().zip(&step).for_each(|(mean, step)| *mean = forward * *mean + sideward * step);
            normalize(&mut mean, units);
        }
        mean
    }
}

/// Scales coefficients to a vector of length 1.
fn normalize(coefficients: &mut [f64], units: &Gram) {
    let length = units.length(coefficients);
    for coefficient in coefficients.iter_mut() {
        *coefficient /= length;
    }
}
