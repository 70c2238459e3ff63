//! RAM+ at tensor level: parts are rounded as those of `ram`; what follows is in f32 for every dtype, as is the result.
use super::added::{in_order, over_models};
use super::rounding::{Round, single};
use crate::dtype::F32;
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::ramplus_tl::RamplusTl;
use crate::real::Real;
use crate::sweep::{STRIP, Sweep};
use std::marker::PhantomData;

struct Amplified<R: Real, D> {
    epsilon: R::Key,
    /// One per model, for what it changes alone.
    factors: Vec<R>,
    /// See [`in_order`].
    rest: usize,
    dtype: PhantomData<D>,
}

/// Returns the kernel of `ramplus_tl`.
pub fn ramplus_tl<F: Lanes, D: Round>(method: &RamplusTl, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
    let epsilon = D::number::<F::Real>(method.epsilon).key();
    let factor = |[shared, alone]: [u64; 2]| {
        let ratio = shared as f32 / (alone as f32).max(method.epsilon as f32);
        single((1.0 + method.r as f32 * ratio.clamp(0.0, method.alpha as f32)).into())
    };
    let factors = counts::<F, D>(sweep, epsilon)?.into_iter().map(factor).collect();
    Ok(Box::new(Each(Amplified::<F::Real, D> {
        epsilon,
        factors,
        rest: in_order::<F32>(sweep.len()),
        dtype: PhantomData,
    })))
}

/// Counts per model the elements that it changes together with others, and alone.
fn counts<F: Lanes, D: Round>(sweep: &Sweep<F>, epsilon: <F::Real as Real>::Key) -> Result<Vec<[u64; 2]>> {
    let all = sweep.all();
    let none = vec![[0; 2]; all.len() - 1];
    let of_tile = |tile| {
        let mut counts = none.clone();
        sweep.strips(&all, tile, STRIP, |strip, inputs| {
            for i in 0..strip.len() {
                let base = F::get(inputs[0], i);
                let changes = |model: usize| D::round(F::get(inputs[model + 1], i) - base).key() > epsilon;
                let together = (0..counts.len()).filter(|model| changes(*model)).count();
                for (model, count) in counts.iter_mut().enumerate() {
                    count[usize::from(together == 1)] += u64::from(changes(model));
                }
            }
            Ok(())
        })?;
        Ok(counts)
    };
    let mut totals = none.clone();
    for counts in sweep.tiles(of_tile)? {
        for (total, count) in totals.as_flattened_mut().iter_mut().zip(counts.as_flattened()) {
            *total += count;
        }
    }
    Ok(totals)
}

impl<R: Real, D: Round> Combine<R> for Amplified<R, D> {
    /// Whether every fourth model is summed first.
    type Stretch = bool;
    const WITNESS: bool = false;

    fn stretch(&self, from: usize) -> (bool, usize) {
        if from < self.rest { (false, self.rest) } else { (true, usize::MAX) }
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, fourth: &bool, _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (mut count, mut y) = ([R::default(); N], x[0]);
        for x in &mut x[1..] {
            for j in 0..N {
                let d = D::round(x[j] - y[j]);
                x[j] = d.keep_if(d.key() > self.epsilon);
                count[j] = count[j] + R::ONE.keep_if(d.key() > self.epsilon);
            }
        }
        let part = |k: usize| -> [R; N] {
            std::array::from_fn(|j| match count[j] {
                several if several > R::ONE => D::round(x[k + 1][j] / several),
                one if one == R::ONE => x[k + 1][j] * self.factors[k],
                none => none,
            })
        };
        let sum = over_models(self.factors.len(), *fourth, part);
        for j in 0..N {
            y[j] = y[j] + sum[j];
        }
        (y, y)
    }
}
