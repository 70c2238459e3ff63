//! Which elements of a range survive: one bit each.
use crate::lanes::At;
use crate::real::Real;
use crate::simd::flagged;

/// Bits per word.
pub const WORD: usize = u64::BITS as usize;

/// One bit per element of a range.
pub struct Bits {
    first: usize,
    bits: Vec<u8>,
}

impl Bits {
    /// Creates the bits of `elements` elements from `first` on, none of them set.
    pub fn new(first: usize, elements: usize) -> Self {
        Self { first, bits: vec![0; Self::bytes(elements)] }
    }

    /// Returns the size for a number of elements, in bytes: a word more, so that any of them starts one.
    pub fn bytes(elements: usize) -> usize {
        elements.div_ceil(8) + size_of::<u64>()
    }

    /// Sets the bits of `word` from `element` on. Bits after the last element are not set in it.
    #[inline(always)]
    pub fn set(&mut self, element: usize, word: u64) {
        let bit = element - self.first;
        let (at, shift) = (bit / 8, bit % 8);
        let mut low = [0; size_of::<u64>()];
        low.copy_from_slice(&self.bits[at..at + size_of::<u64>()]);
        let joined = u64::from_le_bytes(low) | word << shift;
        self.bits[at..at + size_of::<u64>()].copy_from_slice(&joined.to_le_bytes());
        let high = (word >> (WORD - 8)) >> (8 - shift);
        if high != 0 {
            self.bits[at + size_of::<u64>()] |= high as u8;
        }
    }

    /// Returns `v` in the lanes whose bit is set, else +0.
    #[inline(always)]
    pub fn keep<R: Real, const N: usize>(&self, at: At, mut v: [R; N]) -> [R; N] {
        let word = self.word(at.first);
        for j in 0..N {
            v[j] = v[j].keep_by_sign(word << (u32::BITS as usize - 1 - j * at.step));
        }
        v
    }

    /// Returns the bits of some lanes.
    #[inline(always)]
    pub fn lanes<const N: usize>(&self, at: At) -> [bool; N] {
        let word = self.word(at.first);
        let mut set = [false; N];
        for j in 0..N {
            set[j] = word & (1 << (j * at.step)) != 0;
        }
        set
    }

    /// Returns the bits of 32 elements, as many as the lanes of a vector span.
    #[inline(always)]
    fn word(&self, first: usize) -> u32 {
        let (mut word, bit) = ([0; size_of::<u64>()], first - self.first);
        word.copy_from_slice(&self.bits[bit / 8..bit / 8 + size_of::<u64>()]);
        (u64::from_le_bytes(word) >> (bit % 8)) as u32
    }
}

/// Returns a word with the first `bits` bits set, all if there are fewer in a word.
#[inline(always)]
pub fn first_bits(bits: usize) -> u64 {
    if bits < WORD { (1 << bits) - 1 } else { u64::MAX }
}

/// Packs flags into the bits of a word.
#[inline(always)]
pub fn pack(flags: [bool; WORD]) -> u64 {
    let (mut word, flags) = (0, flags.map(u8::from));
    for (i, sixteen) in flags.as_chunks().0.iter().enumerate() {
        word |= u64::from(flagged(*sixteen)) << (16 * i);
    }
    word
}
