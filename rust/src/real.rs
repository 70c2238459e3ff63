//! The types of arithmetic, f32 and f64, and branch-free bit operations that keep kernels in vector registers.
use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Sub};

/// f32, or f64 where a tensor is F64.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + 'static
{
    /// The bits of a magnitude as an ordered integer: `a.key() < b.key()` exactly when `|a| < |b|`; NaN is largest.
    type Key: Copy + Debug + Default + Ord + Send + Sync + Into<i64> + TryFrom<i64> + 'static;
    /// One.
    const ONE: Self;
    /// The distance from one to the next larger number.
    const EPSILON: f64;
    /// The smallest key that is not finite.
    const INFINITE: Self::Key;
    /// The largest key, which only one NaN has.
    const TOP: i64;

    /// Rounds a scalar to this precision.
    fn from_f64(x: f64) -> Self;
    /// Widens to f64.
    fn to_f64(self) -> f64;
    /// Rounds to nearest even.
    fn to_f32(self) -> f32;
    /// Rounds to odd, so that a second rounding to a 16-bit format is correct.
    fn to_f32_odd(self) -> f32;
    /// Returns the magnitude as an ordered integer.
    fn key(self) -> Self::Key;
    /// Returns the magnitude that has a key.
    fn from_key(key: Self::Key) -> Self;
    /// Returns `self` if `keep`, else +0, without a branch.
    fn keep_if(self, keep: bool) -> Self;
    /// Returns `self` if the upper bit of a word is set, else +0, without a branch.
    fn keep_by_sign(self, word: u32) -> Self;
    /// Returns the absolute value.
    fn magnitude(self) -> Self;
    /// Returns `self` with its sign flipped if the sign bit of `other` is set.
    fn flip_by(self, other: Self) -> Self;
    /// Returns -1, 0 or +1 (0 for NaN).
    fn signum_or_zero(self) -> Self;
    /// Returns `self`, with any NaN replaced by one fixed NaN: which NaN arithmetic produces depends on the processor.
    fn canonical(self) -> Self;
    /// Converts a key back to the type returned by `key`.
    fn narrow_key(key: i64) -> Self::Key;
    /// Returns how many whole steps of `2^shift` a key lies below `top`, 0 to `last`.
    fn steps_below(top: Self::Key, key: Self::Key, shift: u32, last: u16) -> u16;
}

macro_rules! real {
    ($t:ty, $key:ty, $bits:ty, $sign:expr, $infinite:expr, $nan:expr, $top:expr, $odd:expr) => {
        impl Real for $t {
            type Key = $key;
            const ONE: Self = 1.0;
            const EPSILON: f64 = <$t>::EPSILON as f64;
            const INFINITE: $key = $infinite;
            const TOP: i64 = $top;

            #[inline(always)]
            #[allow(clippy::cast_lossless)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn to_f32_odd(self) -> f32 {
                $odd(self)
            }
            #[inline(always)]
            fn key(self) -> $key {
                (self.to_bits() & !$sign) as $key
            }
            #[inline(always)]
            fn from_key(key: $key) -> Self {
                Self::from_bits(key as $bits)
            }
            #[inline(always)]
            fn keep_if(self, keep: bool) -> Self {
                Self::from_bits(self.to_bits() & <$bits>::from(keep).wrapping_neg())
            }
            #[inline(always)]
            #[allow(clippy::cast_lossless)]
            fn keep_by_sign(self, word: u32) -> Self {
                Self::from_bits(self.to_bits() & (word as i32 >> 31) as $bits)
            }
            #[inline(always)]
            fn magnitude(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn flip_by(self, other: Self) -> Self {
                Self::from_bits(self.to_bits() ^ (other.to_bits() & $sign))
            }
            #[inline(always)]
            fn signum_or_zero(self) -> Self {
                Self::ONE.keep_if(self > 0.0) - Self::ONE.keep_if(self < 0.0)
            }
            #[inline(always)]
            fn canonical(self) -> Self {
                let nan = <$bits>::from(self.is_nan()).wrapping_neg();
                Self::from_bits((self.to_bits() & !nan) | ($nan & nan))
            }
            #[inline(always)]
            #[allow(clippy::cast_lossless)]
            fn narrow_key(key: i64) -> $key {
                key as $key
            }
            #[inline(always)]
            #[allow(clippy::cast_lossless)]
            fn steps_below(top: $key, key: $key, shift: u32, last: u16) -> u16 {
                ((top - key) >> shift).clamp(0, last as $key) as u16
            }
        }
    };
}
real!(f32, i32, u32, 0x8000_0000_u32, 0x7f80_0000, 0x7fc0_0000, 0x7fff_ffff, std::convert::identity);
real!(f64, i64, u64, 0x8000_0000_0000_0000_u64, 0x7ff0_0000_0000_0000, 0x7ff8_0000_0000_0000, i64::MAX, odd);

/// Rounds to f32 toward zero and sets the last bit where anything was lost (round to odd), so that a second rounding
/// to bf16 or f16 gives what one rounding from f64 would (Boldo and Melquiond, 2008).
#[inline(always)]
fn odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let up = u32::from(back.abs() > x.abs());
    let inexact = u32::from(back != x && !x.is_nan());
    f32::from_bits(nearest.to_bits().wrapping_sub(up) | inexact)
}
