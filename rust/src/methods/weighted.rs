//! What sums and interpolations end in: `sum(w_i x_i) / divisor`, in the order of the models.
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;

/// `sum(w_i x_i) / divisor`.
pub struct Weighted<R> {
    weights: Vec<R>,
    divisor: Option<R>,
}

impl<R: Real> Weighted<R> {
    /// One weight a source.
    pub fn new(weights: &[f64], divisor: Option<f64>) -> Self {
        Self { weights: weights.iter().map(|w| R::from_f64(*w)).collect(), divisor: divisor.map(R::from_f64) }
    }

    /// As a kernel.
    pub fn kernel<F: Lanes<Real = R>>(self) -> Box<dyn Kernel<F>> {
        Box::new(Each(self))
    }
}

impl<R: Real> Combine<R> for Weighted<R> {
    type Stretch = ();
    const UNROLLED: bool = true;

    fn stretch(&self, _: usize) -> ((), usize) {
        ((), usize::MAX)
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let weights = &self.weights[..x.len()];
        let mut y = x[0].map(|x| weights[0] * x);
        for k in 1..x.len() {
            for j in 0..N {
                y[j] = y[j] + weights[k] * x[k][j];
            }
        }
        if let Some(divisor) = self.divisor {
            for j in 0..N {
                y[j] = y[j] / divisor;
            }
        }
        (y, y)
    }
}
