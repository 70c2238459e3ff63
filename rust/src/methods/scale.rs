//! One source times a factor.
use super::weighted::weighted;
use super::{Checked, Merge, expect, finite};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;

/// One source times a factor.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The factor.
    pub factor: f64,
}

impl Merge for Scale {
    const SWEEPS: u64 = 1;

    fn check(&self, sources: usize) -> Checked<(), String> {
        expect(sources, 1).and(finite("factor", &[self.factor]))
    }

    fn prepare<F: Lanes>(&self, _: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(weighted(&[self.factor], None))
    }
}
