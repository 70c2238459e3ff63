//! The float formats: little-endian bytes to numbers and back. The only `match` on a dtype.
use crate::real::Real;
use safetensors::Dtype;

/// A float format that kernels compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl Float {
    /// Returns the float format of a SafeTensors dtype, or `None` for integers, bools and packed formats.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            Dtype::F32 => Some(Self::F32),
            Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }

    /// Bytes per element.
    pub fn bytes(self) -> usize {
        with_format!(self, F => F::BYTES)
    }

    /// Returns the largest |x| that does not overflow when rounded to this format.
    pub fn largest(self) -> f64 {
        match self {
            // Halfway to the next power of two rounds to even, which is infinity.
            Self::F16 => f64::from_bits(65_520.0_f64.to_bits() - 1),
            Self::BF16 => f64::from_bits(f64::from(f32::from_bits(0x7f7f_8000)).to_bits() - 1),
            Self::F32 => f64::from_bits(3.402_823_567_797_336_6e38_f64.to_bits() - 1),
            Self::F64 => f64::MAX,
        }
    }
}

/// Returns the key of the largest finite value of `R` that is at most `largest`.
pub fn limit<R: Real>(largest: f64) -> i64 {
    let below_infinity = R::INFINITE.into() - 1;
    let rounded = R::from_f64(largest);
    let key: i64 = rounded.key().into();
    // `largest` may round up when converted to R; then the value below it is the limit.
    below_infinity.min(if rounded.to_f64() > largest { key - 1 } else { key })
}

/// Runs a body with `$F` bound to the format's type.
#[macro_export]
macro_rules! with_format {
    ($float:expr, $F:ident => $body:expr) => {
        match $float {
            $crate::dtype::Float::F16 => {
                type $F = $crate::dtype::Halves<$crate::dtype::F16>;
                $body
            }
            $crate::dtype::Float::BF16 => {
                type $F = $crate::dtype::Halves<$crate::dtype::BF16>;
                $body
            }
            $crate::dtype::Float::F32 => {
                type $F = $crate::dtype::F32;
                $body
            }
            $crate::dtype::Float::F64 => {
                type $F = $crate::dtype::F64;
                $body
            }
        }
    };
}
pub(crate) use with_format;

/// Returns the index and value of the first element that is not finite.
pub fn first_nonfinite(float: Float, bytes: &[u8]) -> Option<(usize, f64)> {
    with_format!(float, F => {
        let mut values = (0..bytes.len() / F::BYTES).map(|i| (i, F::get(bytes, i).to_f64()));
        values.find(|(_, value)| !value.is_finite())
    })
}

/// How elements of a format are loaded and stored. Every method is inlined into its caller's instruction set.
pub trait Format: Copy + Send + Sync + 'static {
    /// The type of its arithmetic.
    type Real: Real;
    /// The format.
    const FLOAT: Float;
    /// Bytes per element.
    const BYTES: usize;
    /// Whether arithmetic is wider than the stored type although that type has a precision of its own (f32 stored, f64
    /// computed).
    const WIDE: bool = false;

    /// Loads element `i`.
    fn get(bytes: &[u8], i: usize) -> Self::Real;
    /// Stores a number of either precision as one element, rounded once.
    fn put<R: Real>(x: R, bytes: &mut [u8]);
}

macro_rules! plain_format {
    ($(#[$doc:meta])* $name:ident, $float:ident, $t:ty, $real:ty, $size:literal, $round:ident $(, $wide:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        impl Format for $name {
            type Real = $real;
            const FLOAT: Float = Float::$float;
            const BYTES: usize = $size;
            $(const $wide: bool = true;)?

            #[inline(always)]
            fn get(bytes: &[u8], i: usize) -> $real {
                <$t>::from_le_bytes(bytes.as_chunks::<$size>().0[i]).into()
            }
            #[inline(always)]
            fn put<R: Real>(x: R, bytes: &mut [u8]) {
                bytes.copy_from_slice(&x.$round().canonical().to_le_bytes());
            }
        }
    };
}
plain_format!(
    /// f32.
    F32, F32, f32, f32, 4, to_f32
);
plain_format!(
    /// f32 in memory, computed in f64, so the result is rounded once.
    WideF32, F32, f32, f64, 4, to_f32, WIDE
);
plain_format!(
    /// f64.
    F64, F64, f64, f64, 8, to_f64
);

/// A 16-bit float within a 32-bit word.
pub trait Half: Copy + Send + Sync + 'static {
    /// The format.
    const FLOAT: Float;
    /// Widens the lower half of a word.
    fn low(word: u32) -> f32;
    /// Widens the upper half of a word.
    fn high(word: u32) -> f32;
    /// Rounds two numbers to nearest even and packs them; every NaN gets the same bits.
    fn pack(low: f32, high: f32) -> u32;
}

/// bfloat16.
#[derive(Clone, Copy, Debug)]
pub struct BF16;

/// Returns `a` if `condition`, else `b`, as bits and without a branch.
#[inline(always)]
fn select(condition: bool, a: u32, b: u32) -> u32 {
    let mask = u32::from(condition).wrapping_neg();
    (a & mask) | (b & !mask)
}

/// Rounds to bf16 in the upper 16 bits; the lower bits are undefined.
#[inline(always)]
fn round_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    select(x.is_nan(), 0x7fc0_0000, rounded)
}

impl Half for BF16 {
    const FLOAT: Float = Float::BF16;
    #[inline(always)]
    fn low(word: u32) -> f32 {
        f32::from_bits(word << 16)
    }
    #[inline(always)]
    fn high(word: u32) -> f32 {
        f32::from_bits(word & 0xffff_0000)
    }
    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        (round_bf16(low) >> 16) | (round_bf16(high) & 0xffff_0000)
    }
}

/// IEEE half precision.
#[derive(Clone, Copy, Debug)]
pub struct F16;

/// Widens the half in the lower 16 bits; the upper bits must be zero.
#[inline(always)]
fn widen_f16(half: u32) -> f32 {
    let shifted = (half & 0x7fff) << 13;
    let exponent = shifted & 0x0f80_0000;
    let normal = shifted + 0x3800_0000;
    let special = shifted + 0x7000_0000;
    // A subnormal half: add an implicit leading one, then subtract it. Exact, and no operand is subnormal.
    let subnormal = (f32::from_bits(normal + 0x0080_0000) - f32::from_bits(0x3880_0000)).to_bits();
    let magnitude = select(exponent == 0x0f80_0000, special, select(exponent == 0, subnormal, normal));
    f32::from_bits(magnitude | (half & 0x8000) << 16)
}

/// Rounds to the nearest half, ties to even, into the lower 16 bits.
#[inline(always)]
fn round_f16(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Adding 0.5 aligns the last bit of a subnormal half with the last bit of an f32, which then does the rounding.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = magnitude.wrapping_sub(0x3800_0000 - 0xfff).wrapping_add((magnitude >> 13) & 1) >> 13;
    let finite = select(magnitude < 0x3880_0000, subnormal, normal);
    let signed = select(magnitude >= 0x4780_0000, 0x7c00, finite) | (bits >> 16 & 0x8000);
    select(magnitude > 0x7f80_0000, 0x7e00, signed)
}

impl Half for F16 {
    const FLOAT: Float = Float::F16;
    #[inline(always)]
    fn low(word: u32) -> f32 {
        widen_f16(word & 0xffff)
    }
    #[inline(always)]
    fn high(word: u32) -> f32 {
        widen_f16(word >> 16)
    }
    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        round_f16(low) | round_f16(high) << 16
    }
}

/// A 16-bit format processed two elements per word, so widening and narrowing need no cross-lane moves.
#[derive(Clone, Copy, Debug)]
pub struct Halves<H>(std::marker::PhantomData<H>);

impl<H: Half> Format for Halves<H> {
    type Real = f32;
    const FLOAT: Float = H::FLOAT;
    const BYTES: usize = 2;

    #[inline(always)]
    fn get(bytes: &[u8], i: usize) -> f32 {
        H::low(u32::from(u16::from_le_bytes(bytes.as_chunks::<2>().0[i])))
    }
    #[inline(always)]
    fn put<R: Real>(x: R, bytes: &mut [u8]) {
        bytes.copy_from_slice(&H::pack(x.to_f32_odd(), 0.0).to_le_bytes()[..2]);
    }
}

/// Converts elements from one format to another, rounded once.
struct Transcode<'a, A, B> {
    from: &'a [u8],
    to: &'a mut [u8],
    formats: std::marker::PhantomData<(A, B)>,
}

impl<A: Format, B: Format> crate::simd::Task for Transcode<'_, A, B> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (i, to) in self.to.chunks_exact_mut(B::BYTES).enumerate() {
            B::put(A::get(self.from, i), to);
        }
    }
}

/// Converts `from` (format `a`) to format `b`; both slices hold the same number of elements.
pub fn transcode(simd: crate::simd::Simd, a: Float, from: &[u8], b: Float, to: &mut [u8]) {
    with_format!(a, A => with_format!(b, B => {
        simd.run(Transcode::<A, B> { from, to, formats: std::marker::PhantomData });
    }));
}
