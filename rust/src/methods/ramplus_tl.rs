//! RAM+ (Yuan et al., 2026) at tensor level: like `ram`, but changes of a single model are amplified by the ratio of its
//! shared changes to those it makes alone. Like mergekit, mol differs from the paper: changes are counted per tensor.
use super::ram::{changed, check_changes};
use super::{Checked, Merge, finite, not_negative};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes, W};
use crate::real::Real;
use crate::simd::Task;
use crate::sweep::{STRIP, Sweep};
use std::marker::PhantomData;

/// Base (the first source) plus, per element, the mean of the task vectors that change it, or the only one times its
/// factor.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamplusTl {
    /// Differences up to this are no change.
    pub epsilon: f64,
    /// Growth of the factor with the ratio of shared to unique changes.
    pub r: f64,
    /// Upper limit of that ratio.
    pub alpha: f64,
}

impl Merge for RamplusTl {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        check_changes(self.epsilon, sources)?;
        finite("r", &[self.r]).and(not_negative("alpha", self.alpha))
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        // A model without unique changes has no use for its factor.
        let factor = |[shared, unique]: [u64; 2]| {
            let ratio = shared as f64 / unique.max(1) as f64;
            1.0 + self.r * ratio.min(self.alpha)
        };
        let factors: Vec<f64> = self.counts(sweep)?.into_iter().map(factor).collect();
        Ok(changed(self.epsilon, Some(&factors)))
    }
}

impl RamplusTl {
    /// Counts per model the elements that it changes together with others, and alone.
    fn counts<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Vec<[u64; 2]>> {
        let all = sweep.all();
        let epsilon = F::Real::from_f64(self.epsilon).key();
        let of_tile = |tile| {
            let mut counts = vec![[0; 2]; all.len() - 1];
            sweep.strips(&all, tile, STRIP, |_, inputs| {
                sweep.settings.simd.run(Count::<F> { inputs, epsilon, counts: &mut counts, format: PhantomData });
                Ok(())
            })?;
            Ok(counts)
        };
        let mut totals = vec![[0; 2]; all.len() - 1];
        for counts in sweep.tiles(of_tile)? {
            for (total, count) in totals.as_flattened_mut().iter_mut().zip(counts.as_flattened()) {
                *total += count;
            }
        }
        Ok(totals)
    }
}

/// Counts the changes in one strip.
struct Count<'a, F: Lanes> {
    inputs: &'a [&'a [u8]],
    epsilon: <F::Real as Real>::Key,
    counts: &'a mut [[u64; 2]],
    format: PhantomData<F>,
}

impl<F: Lanes> Task for Count<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let elements = self.inputs[0].len() / F::BYTES;
        let whole = elements / W * W;
        let models = &self.inputs[1..];
        let mut changes = vec![[0_u32; W]; models.len()];
        let mut lanes = vec![[[0_u32; W]; 2]; models.len()];
        for i in (0..whole).step_by(W) {
            let base: [F::Real; W] = F::in_order(self.inputs[0], i);
            let mut together = [0_u32; W];
            for (model, changes) in models.iter().zip(&mut changes) {
                let x: [F::Real; W] = F::in_order(model, i);
                for j in 0..W {
                    changes[j] = u32::from((x[j] - base[j]).key() > self.epsilon);
                    together[j] += changes[j];
                }
            }
            for (changes, lanes) in changes.iter().zip(&mut lanes) {
                for j in 0..W {
                    lanes[0][j] += changes[j] & u32::from(together[j] > 1);
                    lanes[1][j] += changes[j] & u32::from(together[j] == 1);
                }
            }
        }
        for (counts, lanes) in self.counts.iter_mut().zip(&lanes) {
            for which in 0..2 {
                counts[which] += u64::from(lanes[which].iter().sum::<u32>());
            }
        }
        for i in whole..elements {
            let base = F::get(self.inputs[0], i);
            let changes = |model: &&[u8]| (F::get(model, i) - base).key() > self.epsilon;
            let together = models.iter().filter(|model| changes(model)).count();
            for (counts, model) in self.counts.iter_mut().zip(models) {
                counts[usize::from(together == 1)] += u64::from(changes(model));
            }
        }
    }
}
