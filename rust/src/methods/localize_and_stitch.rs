//! Localize-and-Stitch in the form without data (He et al., 2024): of each task vector the largest elements are kept, and
//! where those of several models overlap, their mean is added to the base. Where mol differs from the paper: the largest
//! elements are those of each tensor, not of the whole model.
use super::delta::{Keep, see};
use super::ranked::{Largest, held};
use super::{Checked, Merge, based, shares};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;

/// Base (the first source) plus the mean of those task vectors that keep an element.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalizeAndStitch {
    /// Fraction of elements kept, one per model.
    pub densities: Vec<f64>,
}

/// `base + sum(d_k) / count` over those that survive.
struct Stitched(Largest);

impl<R: Real> Combine<R> for Stitched {
    type Stretch = Vec<R::Key>;

    fn stretch(&self, from: usize) -> (Vec<R::Key>, usize) {
        Keep::<R>::stretch(&self.0, from)
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, keys: &Vec<R::Key>, at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (mut sum, mut count) = ([R::default(); N], [R::default(); N]);
        let mut witness = x[0];
        for k in 1..x.len() {
            see(&mut witness, &x[k]);
            let mut d = x[k];
            for j in 0..N {
                d[j] = d[j] - x[0][j];
            }
            let (v, one) = (self.0.apply(keys, at, k - 1, d, d), self.0.apply(keys, at, k - 1, d, [R::ONE; N]));
            for j in 0..N {
                sum[j] = sum[j] + v[j];
                count[j] = count[j] + one[j];
            }
        }
        let mut y = x[0];
        for j in 0..N {
            let several = count[j] > R::ONE;
            y[j] = y[j] + sum[j] / (count[j].keep_if(several) + R::ONE.keep_if(!several));
        }
        (y, witness)
    }
}

impl Merge for LocalizeAndStitch {
    const SWEEPS: u64 = 2;
    // Magnitudes are ranked as f32, as those of TIES.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        based(sources)?;
        shares(&self.densities, sources)
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        held(sources, rows, columns)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(Box::new(Each(Stitched(Largest::of_densities(sweep, &self.densities)?))))
    }
}
