//! RAM, reinforced agent merging (Yuan et al., 2026): the base plus, per element, the mean of those task vectors that change
//! it, so that changes of a single model are not diluted.
use super::{Checked, Merge, based, not_negative};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;

/// Base (the first source) plus, per element, the mean of the task vectors that change it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ram {
    /// Differences up to this are no change.
    pub epsilon: f64,
}

/// `base + sum(d_k) / count` over the `count` deltas larger than `epsilon`; a single one is multiplied by its factor.
pub struct Changed<R: Real, const RESCALED: bool> {
    epsilon: R::Key,
    factors: Vec<R>,
}

impl<R: Real, const RESCALED: bool> Combine<R> for Changed<R, RESCALED> {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let zero = [R::default(); N];
        let (mut sum, mut alone, mut count) = (zero, zero, zero);
        for k in 1..x.len() {
            for j in 0..N {
                let d = x[k][j] - x[0][j];
                // The key of a NaN is the largest, so it counts as a change and reaches the sum.
                let changes = d.key() > self.epsilon;
                let d = d.keep_if(changes);
                sum[j] = sum[j] + d;
                count[j] = count[j] + R::ONE.keep_if(changes);
                if RESCALED {
                    alone[j] = alone[j] + d * self.factors[k - 1];
                }
            }
        }
        let mut y = x[0];
        for j in 0..N {
            let several = count[j] > R::ONE;
            let mean = sum[j] / (count[j].keep_if(several) + R::ONE.keep_if(!several));
            y[j] = y[j] + if RESCALED { mean.keep_if(several) + alone[j].keep_if(!several) } else { mean };
        }
        (y, y)
    }
}

/// Returns the kernel; `factors`, one per model, apply to the elements that only this model changes.
pub fn changed<F: Lanes>(epsilon: f64, factors: Option<&[f64]>) -> Box<dyn Kernel<F>> {
    let epsilon = F::Real::from_f64(epsilon).key();
    match factors {
        None => Box::new(Each(Changed::<F::Real, false> { epsilon, factors: Vec::new() })),
        Some(factors) => {
            let factors = factors.iter().map(|factor| F::Real::from_f64(*factor)).collect();
            Box::new(Each(Changed::<F::Real, true> { epsilon, factors }))
        }
    }
}

/// Checks that there is a model in addition to the base, and the threshold of changes.
pub fn check_changes(epsilon: f64, sources: usize) -> Checked<(), String> {
    based(sources)?;
    not_negative("epsilon", epsilon)
}

impl Merge for Ram {
    const SWEEPS: u64 = 1;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        check_changes(self.epsilon, sources)
    }

    fn prepare<F: Lanes>(&self, _: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(changed(self.epsilon, None))
    }
}
