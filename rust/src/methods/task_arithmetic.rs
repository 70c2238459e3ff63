//! Base plus a weighted sum of task vectors (task arithmetic, Ilharco et al., 2023).
use super::delta::{All, Total};
use super::{Checked, Merge, finite, weighs};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;

/// Base (the first source) plus weighted task vectors.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskArithmetic {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Divide by the sum of the weights.
    pub normalize: bool,
    /// Factor on the sum.
    pub lambda: f64,
}

impl Merge for TaskArithmetic {
    const SWEEPS: u64 = 1;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources).and(finite("lambda", &[self.lambda]))
    }

    fn prepare<F: Lanes>(&self, _: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(Total::new(All, &self.weights, &self.weights, self.normalize, self.lambda).kernel())
    }
}
