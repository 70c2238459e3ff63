//! Vectors of sixteen elements: a method's formula is written once, for any number of inputs and any format.
use crate::dtype::{F32, F64, Format, Half, Halves, WideF32};
use crate::real::Real;
use crate::simd::{PREFETCH, STREAMS, Simd, Task, prefetch};
use std::marker::PhantomData;
use std::ops::Range;

/// Lanes per vector.
pub const W: usize = 16;
/// Bytes per cache line.
const LINE: usize = 64;

/// Which elements a vector holds: lane j is element `first + j * step` of the tensor.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Index of the element in lane 0.
    pub first: usize,
    /// 2 if two 16-bit elements share a word, else 1.
    pub step: usize,
}

/// How vectors are loaded and stored: two at a time, so that the halves of a word need no cross-lane moves.
pub trait Lanes: Format {
    /// Distance in elements between two lanes of a vector.
    const STEP: usize;
    /// Whether methods that are not [`crate::methods::Merge::DIRECT`] are compiled for this format.
    const PLAIN: bool;
    /// This format if it is `PLAIN`, else the one with the same arithmetic that is.
    type Plain: Lanes<Real = Self::Real>;
    /// Loads elements `i..i + 2 * N`.
    fn load<const N: usize>(bytes: &[u8], i: usize) -> [[Self::Real; N]; 2];
    /// Stores two vectors, rounded once, every NaN with the same bits.
    fn store<const N: usize>(y: [[Self::Real; N]; 2], bytes: &mut [u8], i: usize);
    /// Loads elements `i..i + N` in order.
    fn in_order<const N: usize>(bytes: &[u8], i: usize) -> [Self::Real; N];
    /// Stores element `i`, rounded as in `store`.
    fn put_at(y: Self::Real, bytes: &mut [u8], i: usize);
}

macro_rules! plain {
    ($format:ty, $stored:ty, $real:ty, $bytes:literal, $round:ident) => {
        impl Lanes for $format {
            const STEP: usize = 1;
            const PLAIN: bool = true;
            type Plain = Self;

            #[inline(always)]
            fn load<const N: usize>(bytes: &[u8], i: usize) -> [[$real; N]; 2] {
                let x = &bytes.as_chunks::<$bytes>().0[i..i + 2 * N];
                [0, N].map(|half| std::array::from_fn(|j| <$stored>::from_le_bytes(x[half + j]).into()))
            }
            #[inline(always)]
            fn store<const N: usize>(y: [[$real; N]; 2], bytes: &mut [u8], i: usize) {
                let out = &mut bytes.as_chunks_mut::<$bytes>().0[i..i + 2 * N];
                for (half, y) in y.into_iter().enumerate() {
                    for j in 0..N {
                        out[half * N + j] = y[j].$round().canonical().to_le_bytes();
                    }
                }
            }
            #[inline(always)]
            fn in_order<const N: usize>(bytes: &[u8], i: usize) -> [$real; N] {
                let x = &bytes.as_chunks::<$bytes>().0[i..i + N];
                std::array::from_fn(|j| <$stored>::from_le_bytes(x[j]).into())
            }
            #[inline(always)]
            fn put_at(y: $real, bytes: &mut [u8], i: usize) {
                bytes.as_chunks_mut::<$bytes>().0[i] = y.$round().canonical().to_le_bytes();
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
    type Plain = F32;

    #[inline(always)]
    fn load<const N: usize>(bytes: &[u8], i: usize) -> [[f32; N]; 2] {
        let x = &bytes.as_chunks::<4>().0[i / 2..i / 2 + N];
        let words: [u32; N] = std::array::from_fn(|j| u32::from_le_bytes(x[j]));
        [words.map(H::low), words.map(H::high)]
    }
    #[inline(always)]
    fn store<const N: usize>([low, high]: [[f32; N]; 2], bytes: &mut [u8], i: usize) {
        let out = &mut bytes.as_chunks_mut::<4>().0[i / 2..i / 2 + N];
        for j in 0..N {
            out[j] = H::pack(low[j], high[j]).to_le_bytes();
        }
    }
    #[inline(always)]
    fn in_order<const N: usize>(bytes: &[u8], i: usize) -> [f32; N] {
        let x = &bytes.as_chunks::<2>().0[i..i + N];
        std::array::from_fn(|j| H::low(u32::from(u16::from_le_bytes(x[j]))))
    }
    #[inline(always)]
    fn put_at(y: f32, bytes: &mut [u8], i: usize) {
        Self::put(y, &mut bytes[2 * i..2 * i + 2]);
    }
}

/// The largest magnitudes seen, as keys, which separate NaN, infinity and overflow from other numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peaks<R: Real> {
    /// Maximum over the results, before rounding to the output format.
    pub result: R::Key,
    /// Maximum over the witnesses.
    pub witness: R::Key,
}

impl<R: Real> Peaks<R> {
    /// Includes one element.
    #[inline(always)]
    #[must_use]
    pub fn see(self, result: R, witness: R) -> Self {
        Self { result: self.result.max(result.key()), witness: self.witness.max(witness.key()) }
    }

    /// Returns the maximum of both.
    #[must_use]
    #[inline(always)]
    pub fn join(self, other: Self) -> Self {
        Self { result: self.result.max(other.result), witness: self.witness.max(other.witness) }
    }
}

/// A method's formula for one element. Constants hold for a stretch: a row, or up to where keys equal to the threshold
/// no longer survive.
pub trait Combine<R: Real>: Send + Sync {
    /// Constants of a stretch; `()` if there are none.
    type Stretch: Default;
    /// Whether the loop is compiled separately for two to five inputs.
    const UNROLLED: bool = false;
    /// Whether all of the formula is computed in one loop over the lanes where the loop is [`Combine::UNROLLED`]. Of a loop
    /// for each term of a long formula the compiler makes vectors of mixed lanes and moves between them: SCE took twice
    /// the time. What reads bits from `at` on is slow with it.
    const BY_LANE: bool = false;
    /// Whether the witness carries more information than the result.
    const WITNESS: bool = true;

    /// Returns the constants that hold from element `from` on, and the element where they end. Without constants, all
    /// elements are one stretch.
    fn stretch(&self, _from: usize) -> (Self::Stretch, usize) {
        one_stretch()
    }

    /// Computes the results, and witnesses that are non-finite wherever an input is. `x` holds one vector per input and
    /// may be overwritten. `#[inline(always)]`, without branches on an element.
    fn lanes<const N: usize>(&self, stretch: &Self::Stretch, at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]);
}

/// Returns what [`Combine::stretch`] does without constants; a type that has some does not compile.
pub fn one_stretch<S: Default>() -> (S, usize) {
    const { assert!(size_of::<S>() == 0, "a formula with constants says where they end") }
    (S::default(), usize::MAX)
}

/// Computes [`Combine::lanes`] of `I` inputs, or of any number if it is zero.
#[inline(always)]
fn combined<R: Real, C: Combine<R>, const N: usize, const I: usize>(
    combine: &C,
    stretch: &C::Stretch,
    at: At,
    x: &mut [[R; N]],
) -> ([R; N], [R; N]) {
    if !C::BY_LANE || I == 0 {
        return combine.lanes(stretch, at, x);
    }
    let (mut y, mut witness) = ([R::default(); N], [R::default(); N]);
    for j in 0..N {
        let mut one: [[R; 1]; I] = std::array::from_fn(|k| [x[k][j]]);
        let at = At { first: at.first + j * at.step, step: 1 };
        ([y[j]], [witness[j]]) = combine.lanes(stretch, at, &mut one);
    }
    (y, witness)
}

/// A method prepared for one tensor.
pub trait Kernel<F: Lanes>: Send + Sync {
    /// Whether it computes whole rows only, because an element depends on the others of its row.
    fn whole_rows(&self) -> bool {
        false
    }

    /// Computes elements `at` of the result. All slices hold that many elements in format `F`.
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

/// One stretch and its inputs and output.
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
        // Unrolled, inputs stay in registers, at the cost of one copy of the code per number of inputs.
        if C::UNROLLED {
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

    /// Combines elements `span` of the stretch, a multiple of two vectors; `low` and `high` hold one vector per input, of
    /// which there are `I`, or any number if it is zero.
    #[inline(always)]
    fn vectors<F: Lanes, const N: usize, const I: usize>(
        &mut self,
        span: Range<usize>,
        inputs: &[&[u8]],
        [low, high]: [&mut [[F::Real; N]]; 2],
        peaks: &mut [[<F::Real as Real>::Key; N]; 2],
    ) where
        C: Combine<F::Real, Stretch = S>,
    {
        let output = &mut self.output[span.start * F::BYTES..span.end * F::BYTES];
        for i in (0..span.len()).step_by(2 * N) {
            for k in 0..inputs.len() {
                [low[k], high[k]] = F::load(inputs[k], i);
            }
            let first = self.first + span.start + i;
            let at = At { first, step: F::STEP };
            let (a, a_witness) = combined::<_, _, N, I>(self.combine, self.stretch, at, low);
            let at = At { first: first + if F::STEP == 2 { 1 } else { N }, ..at };
            let (b, b_witness) = combined::<_, _, N, I>(self.combine, self.stretch, at, high);
            for j in 0..N {
                peaks[0][j] = peaks[0][j].max(a[j].key()).max(b[j].key());
            }
            if C::WITNESS {
                for j in 0..N {
                    peaks[1][j] = peaks[1][j].max(a_witness[j].key()).max(b_witness[j].key());
                }
            }
            F::store([a, b], output, i);
        }
    }

    /// Combines the remaining elements from `from` on, one by one.
    fn rest<F: Lanes, const N: usize>(self, from: usize, vectors: [[<F::Real as Real>::Key; N]; 2]) -> Peaks<F::Real>
    where
        C: Combine<F::Real, Stretch = S>,
    {
        let [result, witness] = vectors.map(|keys| keys.into_iter().fold(Default::default(), Ord::max));
        let mut peaks = Peaks { result, witness: if C::WITNESS { witness } else { result } };
        let mut x = vec![[F::Real::default(); 1]; self.inputs.len()];
        for i in from..self.output.len() / F::BYTES {
            for (x, input) in x.iter_mut().zip(self.inputs) {
                *x = [F::get(input, i)];
            }
            let at = At { first: self.first + i, step: 1 };
            let ([y], [witness]) = self.combine.lanes::<1>(self.stretch, at, &mut x);
            peaks = peaks.see(y, witness);
            F::put_at(y, self.output, i);
        }
        peaks
    }
}

struct Unrolled<'a, F, C, S, const I: usize>(Run<'a, C, S>, PhantomData<F>);
impl<F: Lanes, C: Combine<F::Real, Stretch = S>, S, const I: usize> Task for Unrolled<'_, F, C, S, I> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        // The same number of bytes in either precision.
        if size_of::<F::Real>() == 8 { self.vectors::<{ W / 2 }>() } else { self.vectors::<W>() }
    }
}

impl<F: Lanes, C: Combine<F::Real, Stretch = S>, S, const I: usize> Unrolled<'_, F, C, S, I> {
    #[inline(always)]
    fn vectors<const N: usize>(self) -> Peaks<F::Real> {
        let Self(mut run, _) = self;
        let inputs: [&[u8]; I] = std::array::from_fn(|k| run.inputs[k]);
        let whole = run.output.len() / F::BYTES / (2 * N) * (2 * N);
        let mut peaks = [[Default::default(); N]; 2];
        for start in (0..whole).step_by(PREFETCH / F::BYTES) {
            let span = start..whole.min(start + PREFETCH / F::BYTES);
            let mut part = inputs;
            for k in 0..I {
                prefetch(inputs[k], span.start * F::BYTES);
                part[k] = &inputs[k][span.start * F::BYTES..span.end * F::BYTES];
            }
            let [mut low, mut high] = [[[F::Real::default(); N]; I]; 2];
            run.vectors::<F, N, I>(span, &part, [&mut low, &mut high], &mut peaks);
        }
        run.rest::<F, N>(whole, peaks)
    }
}

struct Any<'a, F, C, S>(Run<'a, C, S>, PhantomData<F>);
impl<F: Lanes, C: Combine<F::Real, Stretch = S>, S> Task for Any<'_, F, C, S> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        if size_of::<F::Real>() == 8 { self.vectors::<{ W / 2 }>() } else { self.vectors::<W>() }
    }
}

impl<F: Lanes, C: Combine<F::Real, Stretch = S>, S> Any<'_, F, C, S> {
    #[inline(always)]
    fn vectors<const N: usize>(self) -> Peaks<F::Real> {
        let Self(mut run, _) = self;
        let count = run.inputs.len();
        // Align vectors to cache lines: one that crosses two lines is slow to store and load.
        let mut room = vec![F::Real::default(); (2 * count + 1) * N];
        let skip = room.as_ptr().align_offset(LINE).min(N);
        let (low, high) = room[skip..].as_chunks_mut::<N>().0.split_at_mut(count);
        let mut part = run.inputs.to_vec();
        let whole = run.output.len() / F::BYTES / (2 * N) * (2 * N);
        let mut peaks = [[Default::default(); N]; 2];
        for start in (0..whole).step_by(PREFETCH / F::BYTES) {
            let span = start..whole.min(start + PREFETCH / F::BYTES);
            for (part, x) in part.iter_mut().zip(run.inputs) {
                if count <= STREAMS {
                    prefetch(x, span.start * F::BYTES);
                }
                *part = &x[span.start * F::BYTES..span.end * F::BYTES];
            }
            run.vectors::<F, N, 0>(span, &part, [low, &mut high[..count]], &mut peaks);
        }
        run.rest::<F, N>(whole, peaks)
    }
}
