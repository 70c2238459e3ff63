//! exp and ln of f64 lanes: polynomials without tables or branches, the same bits on every instruction set. Errors stay below
//! three units in the last place.

/// Adding it rounds a number below 2^51 to an integer, which then lies in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
const LN2: f64 = std::f64::consts::LN_2;
/// ln 2 in two parts: the first has zeros at its end, so that integers below 2^11 times it are exact.
const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
const ONE_BITS: u64 = 0x3ff0_0000_0000_0000;
const MANTISSA: u64 = 0x000f_ffff_ffff_ffff;

/// Computes e to the power of `x`, which is at most 700; values below -700 count as -700.
#[inline(always)]
pub fn exp<const N: usize>(x: [f64; N]) -> [f64; N] {
    // 1 / k!, the highest first.
    const FACTORIALS: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let mut y = x;
    for j in 0..N {
        let x = if x[j] < -700.0 { -700.0 } else { x[j] };
        let rounded = x * std::f64::consts::LOG2_E + ROUND;
        let power = rounded - ROUND;
        let rest = (x - power * LN2_HIGH) - power * LN2_LOW;
        let mut sum = FACTORIALS[0];
        for coefficient in &FACTORIALS[1..] {
            sum = sum * rest + coefficient;
        }
        y[j] = sum * f64::from_bits((rounded.to_bits() << 52).wrapping_add(ONE_BITS));
    }
    y
}

/// Computes the natural logarithm of `x`, a positive normal number.
#[inline(always)]
pub fn ln<const N: usize>(x: [f64; N]) -> [f64; N] {
    let mut y = x;
    for j in 0..N {
        let bits = x[j].to_bits();
        // x = m * 2^k with m from sqrt(1/2) to sqrt(2).
        let m = f64::from_bits((bits & MANTISSA) | ONE_BITS);
        let large = m > std::f64::consts::SQRT_2;
        let m = if large { 0.5 * m } else { m };
        let exponent = f64::from_bits((bits >> 52) | 0x4330_0000_0000_0000) - (4_503_599_627_370_496.0 + 1023.0);
        let k = if large { exponent + 1.0 } else { exponent };
        // ln m = 2 artanh f.
        let f = (m - 1.0) / (m + 1.0);
        let square = f * f;
        let mut sum = 1.0 / 23.0;
        for odd in [21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
            sum = sum * square + 1.0 / odd;
        }
        y[j] = k * LN2 + (2.0 * f + 2.0 * f * (square * sum));
    }
    y
}

#[cfg(test)]
mod tests {
    use super::{exp, ln};

    fn near(ours: f64, exact: f64, scale: f64) -> bool {
        (ours - exact).abs() <= 3.0 * f64::EPSILON * scale
    }

    #[test]
    fn agree_with_libm() {
        for i in 0..200_000 {
            let x = -700.0 + f64::from(i) * 0.007;
            let [y] = exp([x]);
            assert!(near(y, libm::exp(x), y), "exp {x}: {y}");
            let [back] = ln([y]);
            assert!(near(back, libm::log(y), back.abs().max(f64::EPSILON)), "ln {y}: {back}");
        }
        for i in -50_000..50_000 {
            let x = 1.0 + f64::from(i) * 1e-9;
            let [y] = ln([x]);
            assert!(near(y, libm::log(x), y.abs()), "ln {x}: {y}");
        }
    }

    #[test]
    fn are_exact_where_they_can_be() {
        assert_eq!(exp([0.0]), [1.0]);
        assert_eq!(ln([1.0]), [0.0]);
        assert_eq!(exp([-1e9]), exp([-700.0]));
    }
}
