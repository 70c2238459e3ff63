//! Weighted sum of models, divided by the sum of weights where asked (model soups, Wortsman et al., 2022), and the
//! interpolation of two models that slerp ends in.
use super::{Map, Peaks, STRIP, sweep};
use crate::dtype::Format;
use crate::real::Real;
use crate::simd::{Simd, Task};

/// `sum(w_i x_i) / divisor`, summed in the order of the models.
#[derive(Clone, Debug)]
pub struct Linear<R> {
    weights: Vec<R>,
    divisor: Option<R>,
}

#[derive(Clone, Copy)]
struct Weighted<R, const N: usize, const DIVIDE: bool> {
    weights: [R; N],
    divisor: R,
}

impl<R: Real, const N: usize, const DIVIDE: bool> Map<R, N> for Weighted<R, N, DIVIDE> {
    #[inline(always)]
    fn call(&self, x: [R; N]) -> (R, R) {
        let mut y = self.weights[0] * x[0];
        for k in 1..N {
            y = y + self.weights[k] * x[k];
        }
        if DIVIDE {
            y = y / self.divisor;
        }
        (y, y)
    }
}

impl<R: Real> Linear<R> {
    /// Weights of any sign. With `normalize` the sum is divided by the sum of the weights, which must not be zero.
    pub fn new(weights: &[f64], normalize: bool) -> Self {
        let sum: f64 = weights.iter().sum();
        Self {
            weights: weights.iter().map(|w| R::from_f64(*w)).collect(),
            divisor: (normalize && sum != 1.0).then(|| R::from_f64(sum)),
        }
    }

    fn fused<F: Format<Real = R>, const N: usize>(&self, simd: Simd, x: &[&[u8]], y: &mut [u8]) -> Peaks<R> {
        let weights = std::array::from_fn(|k| self.weights[k]);
        match self.divisor {
            None => sweep::<F, _, N>(simd, Weighted::<R, N, false> { weights, divisor: R::ONE }, x, y),
            Some(divisor) => sweep::<F, _, N>(simd, Weighted::<R, N, true> { weights, divisor }, x, y),
        }
    }

    /// See [`Kernel::apply`].
    pub fn apply<F: Format<Real = R>>(&self, simd: Simd, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<R> {
        match inputs.len() {
            1 => self.fused::<F, 1>(simd, inputs, output),
            2 => self.fused::<F, 2>(simd, inputs, output),
            3 => self.fused::<F, 3>(simd, inputs, output),
            4 => self.fused::<F, 4>(simd, inputs, output),
            5 => self.fused::<F, 5>(simd, inputs, output),
            _ => simd.run(Strip::<F> { kernel: self, inputs, output }),
        }
    }
}

/// The same sum for any number of models, one strip at a time.
struct Strip<'a, F: Format> {
    kernel: &'a Linear<F::Real>,
    inputs: &'a [&'a [u8]],
    output: &'a mut [u8],
}

impl<F: Format> Task for Strip<'_, F> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        let mut sums = [F::Real::default(); STRIP];
        let sums = &mut sums[..self.output.len() / F::BYTES];
        for (k, (x, weight)) in self.inputs.iter().zip(&self.kernel.weights).enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                let term = *weight * F::get(x, i);
                *sum = if k == 0 { term } else { *sum + term };
            }
        }
        let divisor = self.kernel.divisor;
        let mut peaks = Peaks::default();
        for (sum, y) in sums.iter().zip(self.output.chunks_exact_mut(F::BYTES)) {
            let value = divisor.map_or(*sum, |d| *sum / d);
            peaks = peaks.see(value, value);
            F::put(value, y);
        }
        peaks
    }
}
