//! Sixteen elements at a time: a method's formula is written once, for any number of inputs and any format.
use crate::dtype::{F32, F64, Format, Half, Halves, WideF32};
use crate::real::Real;
use crate::simd::{PREFETCH, Simd, Task, prefetch};
use std::marker::PhantomData;
use std::ops::Range;

/// Lanes of a vector.
pub const W: usize = 16;

/// Which elements the lanes hold: lane j is element `first + j * step` of the tensor.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Element of lane 0.
    pub first: usize,
    /// 2 where two 16-bit elements share a word, else 1.
    pub step: usize,
}

/// How lanes are loaded and stored: two vectors at a time, so that two halves of a word need not cross lanes.
pub trait Lanes: Format {
    /// Elements between two lanes of a vector.
    const STEP: usize;
    /// Whether methods are compiled for it that are not [`crate::methods::Merge::DIRECT`].
    const PLAIN: bool;
    /// Elements `i..i + 2 * W`.
    fn load(bytes: &[u8], i: usize) -> [[Self::Real; W]; 2];
    /// Writes them, rounded once, every NaN as the same one.
    fn store(y: [[Self::Real; W]; 2], bytes: &mut [u8], i: usize);
    /// Elements `i..i + W` in their order.
    fn in_order(bytes: &[u8], i: usize) -> [Self::Real; W];
}

macro_rules! plain {
    ($format:ty, $stored:ty, $real:ty, $bytes:literal, $round:ident) => {
        impl Lanes for $format {
            const STEP: usize = 1;
            const PLAIN: bool = true;

            #[inline(always)]
            fn load(bytes: &[u8], i: usize) -> [[$real; W]; 2] {
                let x = &bytes.as_chunks::<$bytes>().0[i..i + 2 * W];
                [0, W].map(|half| std::array::from_fn(|j| <$stored>::from_le_bytes(x[half + j]).into()))
            }
            #[inline(always)]
            fn store(y: [[$real; W]; 2], bytes: &mut [u8], i: usize) {
                let out = &mut bytes.as_chunks_mut::<$bytes>().0[i..i + 2 * W];
                for (half, y) in y.into_iter().enumerate() {
                    for j in 0..W {
                        out[half * W + j] = y[j].$round().canonical().to_le_bytes();
                    }
                }
            }
            #[inline(always)]
            fn in_order(bytes: &[u8], i: usize) -> [$real; W] {
                let x = &bytes.as_chunks::<$bytes>().0[i..i + W];
                std::array::from_fn(|j| <$stored>::from_le_bytes(x[j]).into())
            }
        }
    };
}
plain!(F32, f32, f32, 4, to_f32);
plain!(WideF32, f32, f64, 4, to_f32);
plain!(F64, f64, f64, 8, to_f64);

impl<H: Half> Lanes for Halves<H> {
    const STEP: usize = 2;
    const PLAIN: bool = false;

    #[inline(always)]
    fn load(bytes: &[u8], i: usize) -> [[f32; W]; 2] {
        let x = &bytes.as_chunks::<4>().0[i / 2..i / 2 + W];
        let words: [u32; W] = std::array::from_fn(|j| u32::from_le_bytes(x[j]));
        [words.map(H::low), words.map(H::high)]
    }
    #[inline(always)]
    fn store([low, high]: [[f32; W]; 2], bytes: &mut [u8], i: usize) {
        let out = &mut bytes.as_chunks_mut::<4>().0[i / 2..i / 2 + W];
        for j in 0..W {
            out[j] = H::pack(low[j], high[j]).to_le_bytes();
        }
    }
    #[inline(always)]
    fn in_order(bytes: &[u8], i: usize) -> [f32; W] {
        let x = &bytes.as_chunks::<2>().0[i..i + W];
        std::array::from_fn(|j| H::low(u32::from(u16::from_le_bytes(x[j]))))
    }
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
    #[inline(always)]
    pub fn join(self, other: Self) -> Self {
        Self { result: self.result.max(other.result), witness: self.witness.max(other.witness) }
    }
}

/// What one element becomes. Constants hold for a stretch: a row, or up to where equal magnitudes stop surviving.
pub trait Combine<R: Real>: Send + Sync {
    /// Constants of a stretch.
    type Stretch;
    /// Whether 16-bit inputs are also unrolled, up to five.
    const UNROLLED: bool = false;

    /// The constants from element `from` on, and the element where they end.
    fn stretch(&self, from: usize) -> (Self::Stretch, usize);

    /// The results, and witnesses that are not finite wherever an input is not. `x` holds one vector an input, and may be
    /// overwritten. `#[inline(always)]`, without branches on an element.
    fn lanes<const N: usize>(&self, stretch: &Self::Stretch, at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]);
}

/// A method settled for one tensor.
pub trait Kernel<F: Lanes>: Send + Sync {
    /// Makes elements `at` of the result. All slices hold as many, in format `F`.
    fn run(&self, simd: Simd, at: Range<usize>, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<F::Real>;
}

/// The kernel of a formula.
pub struct Each<C>(pub C);

impl<F: Lanes, C: Combine<F::Real>> Kernel<F> for Each<C> {
    fn run(&self, simd: Simd, at: Range<usize>, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<F::Real> {
        let (mut first, mut peaks) = (at.start, Peaks::default());
        let mut part = inputs.to_vec();
        while first < at.end {
            let (stretch, end) = self.0.stretch(first);
            let end = end.min(at.end);
            let bytes = (first - at.start) * F::BYTES..(end - at.start) * F::BYTES;
            part.iter_mut().zip(inputs).for_each(|(part, x)| *part = &x[bytes.clone()]);
            let run = Run { combine: &self.0, stretch: &stretch, first, inputs: &part, output: &mut output[bytes] };
            peaks = peaks.join(run.dispatch::<F>(simd));
            first = end;
        }
        peaks
    }
}

/// A formula over one stretch.
struct Run<'a, C, S> {
    combine: &'a C,
    stretch: &'a S,
    first: usize,
    inputs: &'a [&'a [u8]],
    output: &'a mut [u8],
}

impl<C, S> Run<'_, C, S> {
    fn dispatch<F: Lanes>(self, simd: Simd) -> Peaks<F::Real>
    where
        C: Combine<F::Real, Stretch = S>,
    {
        // Unrolled, inputs stay in registers; that pays where they are halves, and costs as many copies of the code.
        if C::UNROLLED && !F::PLAIN {
            match self.inputs.len() {
                2 => return simd.run(Unrolled::<F, C, S, 2>(self, PhantomData)),
                3 => return simd.run(Unrolled::<F, C, S, 3>(self, PhantomData)),
                4 => return simd.run(Unrolled::<F, C, S, 4>(self, PhantomData)),
                5 => return simd.run(Unrolled::<F, C, S, 5>(self, PhantomData)),
                _ => {}
            }
        }
        simd.run(Any::<F, C, S>(self, PhantomData))
    }

    /// `x` has room for a pair of vectors of each input.
    #[inline(always)]
    fn sweep<F: Lanes>(self, inputs: &[&[u8]], [low, high]: [&mut [[F::Real; W]]; 2]) -> Peaks<F::Real>
    where
        C: Combine<F::Real, Stretch = S>,
    {
        let elements = self.output.len() / F::BYTES;
        let whole = elements / (2 * W) * (2 * W);
        let second = if F::STEP == 2 { 1 } else { W };
        let mut peaks = [Peaks::<F::Real>::default(); W];
        for i in (0..whole).step_by(2 * W) {
            if (i * F::BYTES).is_multiple_of(PREFETCH) {
                for x in inputs {
                    prefetch(x, i * F::BYTES);
                }
            }
            for k in 0..inputs.len() {
                [low[k], high[k]] = F::load(inputs[k], i);
            }
            let at = At { first: self.first + i, step: F::STEP };
            let (a, a_witness) = self.combine.lanes::<W>(self.stretch, at, low);
            let at = At { first: self.first + i + second, step: F::STEP };
            let (b, b_witness) = self.combine.lanes::<W>(self.stretch, at, high);
            for j in 0..W {
                peaks[j] = peaks[j].see(a[j], a_witness[j]).see(b[j], b_witness[j]);
            }
            F::store([a, b], self.output, i);
        }
        let mut peaks = peaks.into_iter().fold(Peaks::default(), Peaks::join);
        let mut one = vec![[F::Real::default(); 1]; if whole < elements { inputs.len() } else { 0 }];
        for i in whole..elements {
            for (one, x) in one.iter_mut().zip(inputs) {
                *one = [F::get(x, i)];
            }
            let at = At { first: self.first + i, step: 1 };
            let (y, witness) = self.combine.lanes::<1>(self.stretch, at, &mut one);
            peaks = peaks.see(y[0], witness[0]);
            F::put(y[0], &mut self.output[i * F::BYTES..(i + 1) * F::BYTES]);
        }
        peaks
    }
}

struct Unrolled<'a, F, C, S, const N: usize>(Run<'a, C, S>, PhantomData<F>);
impl<F: Lanes, C: Combine<F::Real, Stretch = S>, S, const N: usize> Task for Unrolled<'_, F, C, S, N> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        let inputs: [&[u8]; N] = std::array::from_fn(|k| self.0.inputs[k]);
        let [mut low, mut high] = [[[F::Real::default(); W]; N]; 2];
        self.0.sweep::<F>(&inputs, [&mut low, &mut high])
    }
}

struct Any<'a, F, C, S>(Run<'a, C, S>, PhantomData<F>);
impl<F: Lanes, C: Combine<F::Real, Stretch = S>, S> Task for Any<'_, F, C, S> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        let inputs = self.0.inputs;
        let [mut low, mut high] = [0, 1].map(|_| vec![[F::Real::default(); W]; inputs.len()]);
        self.0.sweep::<F>(inputs, [&mut low, &mut high])
    }
}
