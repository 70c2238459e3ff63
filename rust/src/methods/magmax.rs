//! `MagMax` (Marczak et al., 2024): the base plus, per element, the task vector with the largest magnitude.
use super::delta::see;
use super::{Checked, Merge, based, finite};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;

/// Base (the first source) plus the largest task vector of each element; of equal magnitudes the first model's.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Magmax {
    /// Factor on the task vector.
    pub lambda: f64,
}

/// `base + lambda * d` with the largest `|d|`.
struct Most<R>(R);

impl<R: Real> Combine<R> for Most<R> {
    type Stretch = ();

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let mut most = [R::default(); N];
        let mut witness = x[0];
        for k in 1..x.len() {
            see(&mut witness, &x[k]);
            for j in 0..N {
                let d = x[k][j] - x[0][j];
                most[j] = if d.key() > most[j].key() { d } else { most[j] };
            }
        }
        let mut y = x[0];
        for j in 0..N {
            y[j] = y[j] + most[j] * self.0;
        }
        (y, witness)
    }
}

impl Merge for Magmax {
    const SWEEPS: u64 = 1;
    const DIRECT: bool = true;
    // Magnitudes are compared as f32, so that the same model is taken whatever the dtype of the result.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        based(sources)?;
        finite("lambda", &[self.lambda])
    }

    fn prepare<F: Lanes>(&self, _: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(Box::new(Each(Most(F::Real::from_f64(self.lambda)))))
    }
}
