//! Nearswap.
use super::rounding::{Round, single};
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::nearswap::Nearswap;
use crate::real::Real;
use std::marker::PhantomData;

/// The first source, moved towards the second.
struct Step<R, D> {
    t: R,
    least: R,
    dtype: PhantomData<D>,
}

/// Returns the kernel of `nearswap`.
pub fn nearswap<F: Lanes, D: Round>(method: &Nearswap) -> Box<dyn Kernel<F>> {
    Box::new(Each(Step::<F::Real, D> { t: single(method.t), least: D::number(1e-6), dtype: PhantomData }))
}

impl<R: Real, D: Round> Combine<R> for Step<R, D> {
    type Stretch = ();

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (a, b, mut y) = (x[0], x[1], x[0]);
        for j in 0..N {
            let gap = D::round(a[j] - b[j]).magnitude();
            let gap = if gap < self.least { self.least } else { gap };
            // A number over a tensor is its reciprocal, times the number.
            let share = D::round(self.t * D::round(R::ONE / gap));
            let share = if share > R::ONE { R::ONE } else { share };
            y[j] = D::round(D::round(share * b[j]) + D::round(D::round(R::ONE - share) * a[j]));
        }
        (y, y)
    }
}
