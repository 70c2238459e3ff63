//! Base plus a weighted sum of task vectors (task arithmetic, Ilharco et al., 2023).
use super::{Map, Peaks, STRIP, sweep};
use crate::dtype::Format;
use crate::real::Real;
use crate::simd::{Simd, Task};

/// `base + scale * sum(w_i (x_i - base))`; input 0 is the base.
#[derive(Clone, Debug)]
pub struct TaskArithmetic<R> {
    weights: Vec<R>,
    scale: R,
}

#[derive(Clone, Copy)]
struct Weighted<R, const N: usize> {
    /// Entry 0 belongs to the base and is not used.
    weights: [R; N],
    scale: R,
}

impl<R: Real, const N: usize> Map<R, N> for Weighted<R, N> {
    #[inline(always)]
    fn call(&self, x: [R; N]) -> (R, R) {
        let mut mix = self.weights[1] * (x[1] - x[0]);
        for k in 2..N {
            mix = mix + self.weights[k] * (x[k] - x[0]);
        }
        let y = x[0] + mix * self.scale;
        (y, y)
    }
}

impl<R: Real> TaskArithmetic<R> {
    /// Weights of any sign, one a model. With `normalize` the sum is divided by the sum of the weights (by 1 where that
    /// is below 1e-8), then multiplied by `lambda`.
    pub fn new(weights: &[f64], normalize: bool, lambda: f64) -> Self {
        let sum: f64 = weights.iter().sum();
        let divisor = if normalize && sum.abs() >= 1e-8 { sum } else { 1.0 };
        let weights = std::iter::once(0.0).chain(weights.iter().copied()).map(R::from_f64).collect();
        Self { weights, scale: R::from_f64(lambda / divisor) }
    }

    fn fused<F: Format<Real = R>, const N: usize>(&self, simd: Simd, x: &[&[u8]], y: &mut [u8]) -> Peaks<R> {
        let weights = std::array::from_fn(|k| self.weights[k]);
        sweep::<F, _, N>(simd, Weighted { weights, scale: self.scale }, x, y)
    }

    /// See [`Kernel::apply`].
    pub fn apply<F: Format<Real = R>>(&self, simd: Simd, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<R> {
        match inputs.len() {
            2 => self.fused::<F, 2>(simd, inputs, output),
            3 => self.fused::<F, 3>(simd, inputs, output),
            4 => self.fused::<F, 4>(simd, inputs, output),
            5 => self.fused::<F, 5>(simd, inputs, output),
            _ => simd.run(Strip::<F> { kernel: self, inputs, output }),
        }
    }
}

/// The same for any number of models, one strip at a time.
struct Strip<'a, F: Format> {
    kernel: &'a TaskArithmetic<F::Real>,
    inputs: &'a [&'a [u8]],
    output: &'a mut [u8],
}

impl<F: Format> Task for Strip<'_, F> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        let (base, models) = (self.inputs[0], &self.inputs[1..]);
        let mut sums = [F::Real::default(); STRIP];
        let sums = &mut sums[..self.output.len() / F::BYTES];
        for (k, (x, weight)) in models.iter().zip(&self.kernel.weights[1..]).enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                let term = *weight * (F::get(x, i) - F::get(base, i));
                *sum = if k == 0 { term } else { *sum + term };
            }
        }
        let mut peaks = Peaks::default();
        for (i, (sum, y)) in sums.iter().zip(self.output.chunks_exact_mut(F::BYTES)).enumerate() {
            let value = F::get(base, i) + *sum * self.kernel.scale;
            peaks = peaks.see(value, value);
            F::put(value, y);
        }
        peaks
    }
}
