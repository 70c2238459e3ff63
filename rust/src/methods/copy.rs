//! Copies one source.
use super::scale::Scale;
use super::{Checked, Merge};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;

/// Copies the first source, cast if the dtypes differ; further sources must be byte-equal to it. If dtypes are equal
/// the bytes are copied and no kernel is used.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {}

impl Merge for Copy {
    const SWEEPS: u64 = 1;

    fn check(&self, sources: usize) -> Checked<(), String> {
        if sources == 0 { Err("no source".into()) } else { Ok(()) }
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Scale { factor: 1.0 }.prepare(sweep)
    }
}
