//! Random numbers that depend only on seed, tensor, model and element: Philox4x32-10 (Salmon et al., 2011), a function
//! of a key and a counter rather than a stream.
use crate::bits::{Bits, WORD, first_bits, pack};
use crate::simd::Task;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// The lower half of a lane.
const LOW: u64 = 0xffff_ffff;

/// Computes the key of a tensor: the first eight bytes of SHA-256 over the seed (eight bytes) and the name; all
/// little-endian.
pub fn key(seed: u64, tensor: &str) -> [u32; 2] {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(tensor).finalize();
    [0, 4].map(|i| u32::from_le_bytes([digest[i], digest[i + 1], digest[i + 2], digest[i + 3]]))
}

/// Computes the four random words of a counter.
#[inline(always)]
pub fn philox(mut key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    // In 64-bit lanes, products need no moves between them; only their lower halves count.
    let mut counter = counter.map(u64::from);
    for _ in 0..10 {
        let a = (counter[0] & LOW) * 0xD251_1F53;
        let b = (counter[2] & LOW) * 0xCD9E_8D57;
        counter = [(b >> 32) ^ counter[1] ^ u64::from(key[0]), b, (a >> 32) ^ counter[3] ^ u64::from(key[1]), a];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter.map(|word| word as u32)
}

/// Draws a word per element for a model, of neighbouring elements from a multiple of four on: element `i` gets word `i % 4`
/// of counter `[i / 4 (two words), model, 0]`.
#[inline(always)]
pub fn draw(key: [u32; 2], model: u32, first: usize, words: &mut [[u32; 4]]) {
    let first = (first / 4) as u64;
    // A loop over many counters is what the compiler makes vectors of.
    for (j, words) in words.iter_mut().enumerate() {
        let counter = first + j as u64;
        *words = philox(key, [counter as u32, (counter >> 32) as u32, model, 0]);
    }
}

/// Returns which draws, the upper 31 bits of words, are below a limit; see [`ALL`].
#[inline(always)]
pub fn below(words: &[u32; WORD], limit: u32) -> u64 {
    pack(words.map(|word| word >> 1 < limit))
}

/// The limit that every draw is below.
pub const ALL: u32 = 1 << 31;

/// Elements per turn of [`Survivors`]: their words stay in the first-level cache.
const TURN: usize = 1024;

/// Sets the bits of the elements of a range that starts with a multiple of four whose word is below a limit.
pub struct Survivors<'a> {
    /// The key of the tensor.
    pub key: [u32; 2],
    /// The number of the model.
    pub model: u32,
    /// See [`below`].
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
        let mut words = [[0; 4]; TURN / 4];
        for turn in self.at.clone().step_by(TURN) {
            draw(self.key, self.model, turn, &mut words);
            for (i, words) in words.as_flattened().as_chunks().0.iter().enumerate() {
                let first = turn + i * WORD;
                if first < self.at.end {
                    self.bits.set(first, below(words, self.limit) & first_bits(self.at.end - first));
                }
            }
        }
    }
}
