//! The formula shared by sums and interpolations: `sum(w_i x_i) / divisor`, in the order of the models.
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;

/// `sum(w_i x_i) / divisor`.
pub struct Weighted<R, const DIVIDE: bool> {
    weights: Vec<R>,
    divisor: R,
}

/// Returns the kernel of one weight per source.
pub fn weighted<F: Lanes>(weights: &[f64], divisor: Option<f64>) -> Box<dyn Kernel<F>> {
    let weights = weights.iter().map(|w| F::Real::from_f64(*w)).collect();
    match divisor.map(F::Real::from_f64) {
        Some(divisor) => Box::new(Each(Weighted::<_, true> { weights, divisor })),
        None => Box::new(Each(Weighted::<_, false> { weights, divisor: F::Real::ONE })),
    }
}

impl<R: Real, const DIVIDE: bool> Combine<R> for Weighted<R, DIVIDE> {
    type Stretch = ();
    const UNROLLED: bool = true;
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let weights = &self.weights[..x.len()];
        let mut y = x[0].map(|x| weights[0] * x);
        for k in 1..x.len() {
            for j in 0..N {
                y[j] = y[j] + weights[k] * x[k][j];
            }
        }
        if DIVIDE {
            for j in 0..N {
                y[j] = y[j] / self.divisor;
            }
        }
        (y, y)
    }
}
