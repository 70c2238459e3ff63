//! Float formats compared with the crate `half`, bit for bit.
use half::{bf16, f16};
use mol_merge::dtype::{BF16, F16, F32, F64, Float, Format, Halves, limit, transcode};
use mol_merge::real::Real;
use mol_merge::simd::Simd;

/// Bit patterns of f32: every exponent, values around ties of both 16-bit formats, and a hash.
fn patterns() -> Vec<u32> {
    let mut bits = Vec::new();
    for exponent in 0..=255_u32 {
        for mantissa in [
            0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_8000, 0x7f_ffff,
        ] {
            bits.extend([exponent << 23 | mantissa, 1 << 31 | exponent << 23 | mantissa]);
        }
    }
    bits.extend((0..200_000_u32).map(|i| i.wrapping_mul(0x9e37_79b9)));
    bits.extend((0..100_000_u32).map(|i| 0x3300_0000 + i.wrapping_mul(0x9e37_79b9) % 0x1500_0000));
    bits
}

fn levels() -> Vec<Simd> {
    ["off", "avx2", "avx512"].iter().filter_map(|level| Simd::parse(level).ok()).collect()
}

fn convert(from: Float, bytes: &[u8], to: Float, simd: Simd) -> Vec<u8> {
    let mut out = vec![0; bytes.len() / from.bytes() * to.bytes()];
    transcode(simd, from, bytes, to, &mut out);
    out
}

fn bytes_of(bits: &[u32]) -> Vec<u8> {
    bits.iter().flat_map(|b| b.to_le_bytes()).collect()
}

#[test]
fn every_half_widens_exactly() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for simd in levels() {
        for (float, widen) in [
            (Float::F16, (|h| f16::from_bits(h).to_f32()) as fn(u16) -> f32),
            (Float::BF16, |h| bf16::from_bits(h).to_f32()),
        ] {
            let wide = convert(float, &all, Float::F32, simd);
            for (h, w) in (0..=u16::MAX).zip(wide.as_chunks::<4>().0) {
                let (found, wanted) = (f32::from_le_bytes(*w), widen(h));
                assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(), "{float:?} {h:#x}");
            }
        }
    }
}

#[test]
fn rounding_is_to_nearest_even_and_nan_stays_nan() {
    let bits = patterns();
    let wide = bytes_of(&bits);
    for simd in levels() {
        for (float, round) in [
            (Float::F16, (|x| f16::from_f32(x).to_bits()) as fn(f32) -> u16),
            (Float::BF16, |x| bf16::from_f32(x).to_bits()),
        ] {
            let half = convert(Float::F32, &wide, float, simd);
            for (b, h) in bits.iter().zip(half.as_chunks::<2>().0) {
                let (x, found) = (f32::from_bits(*b), u16::from_le_bytes(*h));
                let is_nan =
                    if float == Float::F16 { f16::from_bits(found).is_nan() } else { bf16::from_bits(found).is_nan() };
                assert!(if x.is_nan() { is_nan } else { found == round(x) }, "{float:?} {b:#x} {found:#x}");
            }
        }
    }
}

/// Finds the half nearest to `x`, ties to even, by trying all near `guess`. (`half` itself drops the low bits of f64.)
fn nearest(x: f64, guess: u16, widen: fn(u16) -> f64) -> u16 {
    let near = (guess.saturating_sub(2)..=guess.saturating_add(2)).filter(|h| widen(*h).is_finite());
    let distance = |h: &u16| (widen(*h) - x).abs();
    near.min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))).unwrap_or(guess)
}

#[test]
fn f64_is_rounded_once() {
    let simd = Simd::detect();
    // Ties of a 16-bit format, and values just next to them, which double rounding gets wrong.
    for base in patterns().into_iter().map(|bits| f32::from_bits(bits & 0x7fff_ffff)).filter(|x| *x < 6e4) {
        for x in [f64::from(base), f64::from(base) * (1.0 + 1e-12), f64::from(base) * (1.0 - 1e-12)] {
            let bytes = x.to_le_bytes();
            let h = convert(Float::F64, &bytes, Float::F16, simd);
            let wanted = nearest(x, f16::from_f64(x).to_bits(), |h| f16::from_bits(h).to_f64());
            assert_eq!(u16::from_le_bytes([h[0], h[1]]), wanted, "f16 of {x:e}");
            let h = convert(Float::F64, &bytes, Float::BF16, simd);
            let wanted = nearest(x, bf16::from_f64(x).to_bits(), |h| bf16::from_bits(h).to_f64());
            assert_eq!(u16::from_le_bytes([h[0], h[1]]), wanted, "bf16 of {x:e}");
        }
    }
}

#[test]
fn the_limit_is_the_last_number_that_does_not_overflow() {
    fn check<F: Format, R: Real>(number: fn(i64) -> R, is_finite: fn(&[u8]) -> bool) {
        let limit = limit::<R>(F::FLOAT.largest());
        let mut bytes = vec![0; F::BYTES];
        F::put(number(limit), &mut bytes);
        assert!(is_finite(&bytes), "{:?} at the limit", F::FLOAT);
        F::put(number(limit + 1), &mut bytes);
        assert!(!is_finite(&bytes), "{:?} above the limit", F::FLOAT);
    }
    let single = |key: i64| f32::from_bits(key as u32);
    let double = |key: i64| f64::from_bits(key as u64);
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).is_finite();
    let brain = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]).is_finite();
    let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite();
    check::<Halves<F16>, f32>(single, half);
    check::<Halves<F16>, f64>(double, half);
    check::<Halves<BF16>, f32>(single, brain);
    check::<Halves<BF16>, f64>(double, brain);
    check::<F32, f32>(single, float);
    check::<F32, f64>(double, float);
    check::<F64, f64>(double, |b| f64::from_le_bytes(b.try_into().unwrap()).is_finite());
}
