//! Rounding after one operation, and the multiplication and addition that torch rounds once.
use crate::dtype::{BF16, F16, F32, Half};
use crate::real::Real;

/// A dtype to which every operation is rounded. Operations run in f32, which holds each of its values.
pub trait Round: Copy + Send + Sync + 'static {
    /// Whether it is f32 itself.
    const SINGLE: bool = false;
    /// Whether torch has its norms in vectors.
    const VECTORS: bool = true;

    /// Rounds to nearest even.
    fn narrow(x: f32) -> f32;

    /// Rounds the f32 result of an operation.
    #[inline(always)]
    fn round<R: Real>(x: R) -> R {
        R::from_f64(Self::narrow(x.to_f32()).into())
    }

    /// Rounds a number of a recipe, to f32 first as torch does.
    fn number<R: Real>(x: f64) -> R {
        Self::round(R::from_f64(f64::from(x as f32)))
    }
}

macro_rules! halves {
    ($($half:ty, $vectors:expr);+) => {
        $(impl Round for $half {
            const VECTORS: bool = $vectors;

            #[inline(always)]
            fn narrow(x: f32) -> f32 {
                Self::low(Self::pack(x, 0.0))
            }
        })+
    };
}
halves!(BF16, true; F16, false);

impl Round for F32 {
    const SINGLE: bool = true;

    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

/// Rounds a number of a recipe to f32.
pub fn single<R: Real>(x: f64) -> R {
    R::from_f64(f64::from(x as f32))
}

/// Computes `a * b + c` of f32 numbers, rounded to f32 once.
#[inline(always)]
pub fn fused<R: Real>(a: R, b: R, c: R) -> R {
    // The product is exact in f64. The sum is rounded to odd there, so that the rounding to f32 is the only one that counts
    // (Boldo and Melquiond, 2008).
    let (product, c) = (a.to_f64() * b.to_f64(), c.to_f64());
    let sum = product + c;
    let part = sum - product;
    let lost = (product - (sum - part)) + (c - part);
    let bits = sum.to_bits();
    let inexact = u64::from(lost != 0.0 && bits & 1 == 0);
    let outward = u64::from((lost > 0.0) == (sum > 0.0));
    let odd = f64::from_bits(bits.wrapping_add(inexact & outward).wrapping_sub(inexact & (1 ^ outward)));
    R::from_f64((odd as f32).into())
}

#[cfg(test)]
mod tests {
    use super::fused;

    #[test]
    fn fused_is_rounded_once() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f32::from_bits((state >> 32) as u32 & 0x87ff_ffff | 0x3c00_0000)
        };
        for _ in 0..200_000 {
            let (a, b) = (next(), next());
            for c in [next(), -a * b, 1.0, a * b * f32::EPSILON / 2.0] {
                assert_eq!(fused(a, b, c).to_bits(), a.mul_add(b, c).to_bits(), "{a} * {b} + {c}");
            }
        }
    }
}
