//! 8-bit float formats: the value of each code. They are stored with scales, which turn them into weights.
use safetensors::Dtype;

/// The value of each code.
pub type Codes = [f32; 256];

/// E4M3: no infinities; the last code of either sign is NaN.
static E4M3: Codes = numbers(4, false);
/// E5M2, with IEEE infinities and NaNs.
static E5M2: Codes = numbers(5, true);

/// Returns the values of an 8-bit float dtype's codes, or `None` for other dtypes.
pub fn codes(dtype: Dtype) -> Option<&'static Codes> {
    match dtype {
        Dtype::F8_E4M3 => Some(&E4M3),
        Dtype::F8_E5M2 => Some(&E5M2),
        _ => None,
    }
}

/// Computes the values of a format with a sign bit, `bits` exponent bits, and the rest significand.
const fn numbers(bits: u32, infinities: bool) -> Codes {
    let (rest, bias) = (7 - bits, (1 << (bits - 1)) - 1);
    let (last_exponent, last_rest) = ((1 << bits) - 1, (1 << rest) - 1);
    let mut numbers = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, significand) = (code as u32 >> rest & last_exponent, code as u32 & last_rest);
        let magnitude = if exponent == last_exponent && infinities && significand == 0 {
            f32::INFINITY
        } else if exponent == last_exponent && (infinities || significand == last_rest) {
            f32::NAN
        } else if exponent == 0 {
            significand as f32 * f32::from_bits((128 - bias - rest) << 23)
        } else {
            f32::from_bits((exponent + 127 - bias) << 23 | significand << (23 - rest))
        };
        numbers[code] = if code < 128 { magnitude } else { -magnitude };
        code += 1;
    }
    numbers
}
