//! CRC-64/NVME of data in chunks. `crc-fast` checksums a chunk; chunks are combined here, because its own combine
//! squares bit matrices and takes as long as checksumming 600 KB.
use crc_fast::CrcAlgorithm::Crc64Nvme;

/// The generator polynomial, the coefficient of x^0 in the highest bit.
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;
/// x^0 and x^8 in that bit order.
const ONE: u64 = 1 << 63;
const BYTE: u64 = 1 << 55;

/// The checksum of some bytes, and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc {
    /// CRC-64/NVME.
    pub value: u64,
    bytes: u64,
}

/// Multiplies two polynomials modulo the generator.
fn multiply(a: u64, mut b: u64) -> u64 {
    let mut product = 0;
    for bit in (0..u64::BITS).rev() {
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
    }
    product
}

impl Crc {
    /// The checksum of no bytes.
    pub const EMPTY: Self = Self { value: 0, bytes: 0 };

    /// Computes the checksum of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { value: crc_fast::checksum(Crc64Nvme, bytes), bytes: bytes.len() as u64 }
    }

    /// Builds the checksum of `bytes` bytes from a known value.
    pub fn known(value: u64, bytes: usize) -> Self {
        Self { value, bytes: bytes as u64 }
    }

    /// Returns the checksum of these bytes followed by those of `next`.
    #[must_use]
    pub fn join(self, next: Self) -> Self {
        let (mut shift, mut power, mut count) = (ONE, BYTE, next.bytes);
        while count > 0 {
            if count & 1 == 1 {
                shift = multiply(shift, power);
            }
            power = multiply(power, power);
            count >>= 1;
        }
        Self { value: multiply(self.value, shift) ^ next.value, bytes: self.bytes + next.bytes }
    }

    /// Returns the value as sixteen hexadecimal digits.
    pub fn hex(self) -> String {
        format!("{:016x}", self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_standard() {
        assert_eq!(Crc::of(b"123456789").hex(), "ae8b14860a799888");
    }

    #[test]
    fn joined_pieces_are_the_whole() {
        let data: Vec<u8> = (0..70_000_u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        for cut in [0, 1, 7, 8, 255, 256, 65_536, 69_999, 70_000] {
            let (a, b) = data.split_at(cut);
            assert_eq!(Crc::of(a).join(Crc::of(b)), Crc::of(&data), "cut at {cut}");
        }
        assert_eq!(Crc::EMPTY, Crc::of(&[]));
    }
}
