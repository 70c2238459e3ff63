//! RAM: per element, the mean of the task vectors that change it.
use super::added::{in_order, over_models};
use super::rounding::Round;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::ram::Ram;
use crate::real::Real;
use std::marker::PhantomData;

struct Changed<R: Real, D> {
    epsilon: R::Key,
    /// See [`in_order`].
    rest: usize,
    dtype: PhantomData<D>,
}

/// Returns the kernel of `ram`.
pub fn ram<F: Lanes, D: Round>(method: &Ram, len: usize) -> Box<dyn Kernel<F>> {
    let epsilon = D::number::<F::Real>(method.epsilon).key();
    Box::new(Each(Changed::<F::Real, D> { epsilon, rest: in_order::<D>(len), dtype: PhantomData }))
}

impl<R: Real, D: Round> Combine<R> for Changed<R, D> {
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
                // The key of a NaN is the largest, so it counts as a change and reaches the sum.
                x[j] = d.keep_if(d.key() > self.epsilon);
                count[j] = count[j] + R::ONE.keep_if(d.key() > self.epsilon);
            }
        }
        // Each is divided, then they are summed.
        let divisor = count.map(|count| if count > R::ONE { count } else { R::ONE });
        let part = |k: usize| -> [R; N] { std::array::from_fn(|j| D::round(x[k + 1][j] / divisor[j])) };
        let sum = over_models(x.len() - 1, *fourth, part);
        for j in 0..N {
            y[j] = D::round(y[j] + D::round(sum[j]));
        }
        (y, y)
    }
}
