//! Random numbers that depend only on seed, tensor, model and element: Philox4x32-7 (Salmon et al., 2011), a function
//! of a key and a counter rather than a stream. The paper finds no test that seven
//! rounds fail.
//!
//! A draw has 32 bits. Its upper 16 decide nearly every comparison, and eight of them are made of one counter; its lower
//! 16 are made only where the upper ones are equal to those of the limit.
use crate::bits::{Bits, WORD, first_bits, pack};
use crate::simd::Task;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// Rounds of Philox.
const ROUNDS: usize = 7;
/// The lower half of a lane.
const LOW: u64 = 0xffff_ffff;
/// Counters per group: as many as make a word of bits.
const COUNTERS: usize = WORD / 8;

/// The upper 16 bits of a draw, little-endian.
pub type Upper = [u8; 2];

/// Computes the key of a tensor: the first eight bytes of SHA-256 over the seed (eight bytes) and the name; all
/// little-endian.
pub fn key(seed: u64, tensor: &str) -> [u32; 2] {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(tensor).finalize();
    [0, 4].map(|i| u32::from_le_bytes([digest[i], digest[i + 1], digest[i + 2], digest[i + 3]]))
}

/// Computes the four random words of a counter, of whose numbers the lower halves count: the first and the second word in
/// the lower and the upper half of one number, the others in another.
#[inline(always)]
pub fn philox(mut key: [u32; 2], [mut x, mut y, mut z, mut w]: [u64; 4]) -> [u64; 2] {
    for round in 0..ROUNDS {
        // In 64-bit lanes, products need no moves between them.
        let a = (x & LOW) * 0xD251_1F53;
        let b = (z & LOW) * 0xCD9E_8D57;
        if round + 1 < ROUNDS {
            (x, y) = ((b >> 32) ^ y ^ u64::from(key[0]), b);
            (z, w) = ((a >> 32) ^ w ^ u64::from(key[1]), a);
        } else {
            x = b.rotate_left(32) ^ (y & LOW) ^ u64::from(key[0]);
            z = a.rotate_left(32) ^ (w & LOW) ^ u64::from(key[1]);
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    [x, z]
}

/// The draws of one model in one tensor, one per element.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// The key of the tensor.
    pub key: [u32; 2],
    /// The number of the model.
    pub model: u32,
}

impl Draws {
    /// Computes the upper halves of the draws of elements from one on, a multiple of 64. Those of elements `32 g` to
    /// `32 g + 31` are words `2 (g % 2)` and the next, 16 bits at a time, of counters `[c (two words), model, 0]` with `c`
    /// from `8 (g / 2)` on.
    #[inline(always)]
    pub fn upper(&self, first: usize, draws: &mut [[Upper; WORD]]) {
        let first = (first / WORD * COUNTERS) as u64;
        for (group, draws) in draws.iter_mut().enumerate() {
            // All of a counter's rounds in one loop over the counters, which becomes a loop over vectors of them.
            let mut words = [[0; COUNTERS]; 2];
            for j in 0..COUNTERS {
                let counter = first + (group * COUNTERS + j) as u64;
                [words[0][j], words[1][j]] = philox(self.key, [counter, counter >> 32, self.model.into(), 0]);
            }
            let lanes = draws.as_flattened_mut().as_chunks_mut().0;
            for (lane, words) in lanes.iter_mut().zip(words.as_flattened()) {
                *lane = words.to_le_bytes();
            }
        }
    }

    /// Returns whether the draw of an element, of which the upper half is given, is below a limit. Its lower half is the
    /// same half of the first word of counter `[element (two words), model, 1]`.
    pub fn is_below(&self, upper: Upper, element: usize, limit: u32) -> bool {
        let (upper, [lower_limit, upper_limit]) = (u16::from_le_bytes(upper), halves(limit));
        if upper != upper_limit {
            return upper < upper_limit;
        }
        let counter = [element as u64, element as u64 >> 32, u64::from(self.model), 1];
        let [words, _] = philox(self.key, counter);
        (words as u16) < lower_limit
    }
}

/// Returns the lower and the upper half of a limit.
#[inline(always)]
pub fn halves(limit: u32) -> [u16; 2] {
    [limit as u16, (limit >> 16) as u16]
}

/// Returns the limit that draws are below with a probability less than 1, to 2^-32.
pub fn limit(probability: f64) -> u32 {
    (probability * (1_u64 << u32::BITS) as f64).round() as u32
}

/// Groups per turn of [`Survivors`]: their draws stay in the first-level cache.
const TURN: usize = 32;

/// Sets the bits of the elements of a range that starts with a multiple of 64 whose draw is below a limit.
pub struct Survivors<'a> {
    /// The draws of the model.
    pub draws: Draws,
    /// The limit.
    pub limit: u32,
    /// The elements.
    pub at: Range<usize>,
    /// Where bits are set.
    pub bits: &'a mut Bits,
}

impl Task for Survivors<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { draws, limit, at, bits } = self;
        let [_, upper_limit] = halves(limit);
        let mut upper = [[[0; 2]; WORD]; TURN];
        for turn in at.clone().step_by(TURN * WORD) {
            let groups = (at.end - turn).div_ceil(WORD).min(TURN);
            draws.upper(turn, &mut upper[..groups]);
            for (i, upper) in upper[..groups].iter().enumerate() {
                let first = turn + i * WORD;
                let drawn = upper.map(u16::from_le_bytes);
                let mut word = pack(drawn.map(|drawn| drawn < upper_limit));
                let mut equal = false;
                for j in 0..WORD {
                    equal |= drawn[j] == upper_limit;
                }
                if equal {
                    for j in 0..WORD {
                        word |= u64::from(draws.is_below(upper[j], first + j, limit)) << j;
                    }
                }
                bits.set(first, word & first_bits(at.end - first));
            }
        }
    }
}
