//! Factors and weighted means.
use super::reductions::{Sum, reduced_numbers};
use super::rounding::{Round, fused, single};
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::delta::see;
use crate::methods::linear::Linear;
use crate::methods::scale::Scale;
use crate::real::Real;
use std::marker::PhantomData;

/// One source times a factor in f32, rounded once.
struct Scaled<R, D>(R, PhantomData<D>);

/// Returns the kernel of `passthrough`.
pub fn scaled<F: Lanes, D: Round>(method: &Scale) -> Box<dyn Kernel<F>> {
    Box::new(Each(Scaled::<F::Real, D>(single(method.factor), PhantomData)))
}

impl<R: Real, D: Round> Combine<R> for Scaled<R, D> {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let y = x[0].map(|x| D::round(x * self.0));
        (y, y)
    }
}

/// `sum(w_i x_i) / divisor` in f32, each product and sum rounded once, rounded to the dtype at the end.
struct Weighted<R, D> {
    weights: Vec<R>,
    divisor: Option<R>,
    dtype: PhantomData<D>,
}

/// Returns the kernel of `linear`.
pub fn linear<F: Lanes, D: Round>(method: &Linear) -> Box<dyn Kernel<F>> {
    let weights: Vec<f32> = method.weights.iter().map(|w| *w as f32).collect();
    let divisor = method.normalize.then(|| single(reduced_numbers::<Sum>(&weights).into()));
    let weights = weights.into_iter().map(|w| single(w.into())).collect();
    Box::new(Each(Weighted { weights, divisor, dtype: PhantomData::<D> }))
}

impl<R: Real, D: Round> Combine<R> for Weighted<R, D> {
    type Stretch = ();

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (mut sum, mut witness) = ([R::default(); N], [R::default(); N]);
        for (weight, x) in self.weights.iter().zip(x.iter()) {
            see(&mut witness, x);
            for j in 0..N {
                sum[j] = fused(x[j], *weight, sum[j]);
            }
        }
        if let Some(divisor) = self.divisor {
            sum = sum.map(|sum| sum / divisor);
        }
        (sum.map(D::round), witness)
    }
}
