//! What is computed for an element, and for a tensor before its elements can be. A kernel never sees a file, a dtype,
//! a thread or a name.
pub mod linear;
pub mod select;
pub mod slerp;
pub mod task_arithmetic;
pub mod ties;

use crate::dtype::Format;
use crate::real::Real;
use crate::simd::{PIECE, Simd, Task, prefetch};

/// Elements of a strip: `inputs + 1` strips of f32 stay in the first-level caches.
pub const STRIP: usize = 4096;

/// An element of the result from one element of each input.
pub trait Map<R: Real, const N: usize>: Copy {
    /// The result, and a witness that is not finite wherever an input is not.
    fn call(&self, x: [R; N]) -> (R, R);
}

/// A count over elements.
pub trait Fold<R: Real, const N: usize>: Copy {
    /// Takes one element of each input.
    #[must_use]
    fn step(self, x: [R; N]) -> Self;
}

/// The largest magnitudes met, as keys: they tell a NaN, an infinity and an overflow from good numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peaks<R: Real> {
    /// Of the results, before rounding to the output format.
    pub result: R::Key,
    /// Of the witnesses.
    pub witness: R::Key,
}

impl<R: Real> Peaks<R> {
    /// Takes one element.
    #[inline(always)]
    #[must_use]
    pub fn see(self, result: R, witness: R) -> Self {
        Self { result: self.result.max(result.key()), witness: self.witness.max(witness.key()) }
    }

    /// The larger of both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self { result: self.result.max(other.result), witness: self.witness.max(other.witness) }
    }
}

/// A method with everything resolved for one tensor.
#[derive(Clone, Debug)]
pub enum Kernel<R: Real> {
    /// One input, times a factor (1 for a copy).
    Scale(R),
    /// Weighted average or interpolation.
    Linear(linear::Linear<R>),
    /// Base plus weighted task vectors.
    TaskArithmetic(task_arithmetic::TaskArithmetic<R>),
    /// Trim, elect sign, disjoint mean. The thresholds belong to a run of elements.
    Ties(ties::Ties<R>),
}

/// `x * factor`.
#[derive(Clone, Copy)]
struct Scale<R>(R);
impl<R: Real> Map<R, 1> for Scale<R> {
    #[inline(always)]
    fn call(&self, [x]: [R; 1]) -> (R, R) {
        let y = x * self.0;
        (y, y)
    }
}

/// One `Map` over one run of elements.
struct Sweep<'a, F, M, const N: usize> {
    map: M,
    inputs: [&'a [u8]; N],
    output: &'a mut [u8],
    format: std::marker::PhantomData<F>,
}

impl<F: Format, M: Map<F::Real, N>, const N: usize> Task for Sweep<'_, F, M, N> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        let mut peaks = Peaks::default();
        for (i, output) in self.output.chunks_mut(PIECE).enumerate() {
            let piece = i * PIECE..i * PIECE + output.len();
            self.inputs.iter().for_each(|x| prefetch(x, piece.start));
            peaks = peaks.join(F::map(self.map, self.inputs.map(|x| &x[piece.clone()]), output));
        }
        peaks
    }
}

/// Runs a map over inputs whose count is `N`.
pub(crate) fn sweep<F: Format, M: Map<F::Real, N>, const N: usize>(
    simd: Simd,
    map: M,
    inputs: &[&[u8]],
    output: &mut [u8],
) -> Peaks<F::Real> {
    let inputs = std::array::from_fn(|k| inputs[k]);
    simd.run(Sweep::<F, M, N> { map, inputs, output, format: std::marker::PhantomData })
}

impl<R: Real> Kernel<R> {
    /// Inputs that one fused sweep can take; more go strip by strip.
    pub const FUSED: usize = 5;

    /// Combines a run of elements. `inputs` and `output` are in format `F` and hold the same count of elements: any
    /// count up to `FUSED` inputs, at most `STRIP` beyond.
    pub fn apply<F: Format<Real = R>>(&self, simd: Simd, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<R> {
        match self {
            Self::Scale(factor) => sweep::<F, _, 1>(simd, Scale(*factor), inputs, output),
            Self::Linear(kernel) => kernel.apply::<F>(simd, inputs, output),
            Self::TaskArithmetic(kernel) => kernel.apply::<F>(simd, inputs, output),
            Self::Ties(kernel) => kernel.apply::<F>(simd, inputs, output),
        }
    }
}

/// Sixteen f64 accumulators: element `i` of a block goes to accumulator `i % 16` on every instruction set, so a sum does
/// not depend on vector width. Runs of a block must be multiples of 16 elements, the last excepted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum([f64; 16]);

impl Sum {
    /// Adds sixteen terms.
    #[inline(always)]
    pub fn add16(&mut self, x: [f64; 16]) {
        for (sum, x) in self.0.iter_mut().zip(x) {
            *sum += x;
        }
    }

    /// Adds the last term `i` of a block.
    #[inline(always)]
    pub fn add_one(&mut self, i: usize, x: f64) {
        self.0[i % 16] += x;
    }

    /// The total, in one fixed order.
    pub fn total(&self) -> f64 {
        let mut sums = self.0;
        let mut width = 8;
        while width > 0 {
            for i in 0..width {
                sums[i] += sums[i + width];
            }
            width /= 2;
        }
        sums[0]
    }
}

/// Elements of a block: sums of blocks are folded in order, so they do not depend on tiles or threads.
pub const BLOCK: usize = 65_536;
