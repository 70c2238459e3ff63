//! Random numbers that depend only on seed, tensor, model and element: Philox4x32-10 (Salmon et al., 2011), a function
//! of a key and a counter rather than a stream.
use crate::lanes::{At, W};
use sha2::{Digest, Sha256};

/// Computes the key of a tensor: the first eight bytes of SHA-256 over the seed (eight bytes) and the name; all
/// little-endian.
pub fn key(seed: u64, tensor: &str) -> [u32; 2] {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(tensor).finalize();
    [0, 4].map(|i| u32::from_le_bytes([digest[i], digest[i + 1], digest[i + 2], digest[i + 3]]))
}

/// Computes four random words for each of `N` counters.
#[inline(always)]
pub fn philox<const N: usize>(mut key: [u32; 2], mut counter: [[u32; N]; 4]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        let mut next = [[0; N]; 4];
        for j in 0..N {
            let a = u64::from(counter[0][j]) * 0xD251_1F53;
            let b = u64::from(counter[2][j]) * 0xCD9E_8D57;
            next[0][j] = ((b >> 32) as u32) ^ counter[1][j] ^ key[0];
            next[1][j] = b as u32;
            next[2][j] = ((a >> 32) as u32) ^ counter[3][j] ^ key[1];
            next[3][j] = a as u32;
        }
        counter = next;
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Draws one word per element for a model: element `i` gets word `i % 4` of counter `[i / 4 (two words), model, 0]`.
#[inline(always)]
pub fn draw<const N: usize>(key: [u32; 2], model: u32, at: At) -> [u32; N] {
    let mut drawn = [0; N];
    if N == W && at.step == 1 && at.first.is_multiple_of(4) {
        // Four counters cover sixteen elements.
        let blocks: [u64; W / 4] = std::array::from_fn(|j| (at.first / 4 + j) as u64);
        let words =
            philox(key, [blocks.map(|b| b as u32), blocks.map(|b| (b >> 32) as u32), [model; W / 4], [0; W / 4]]);
        for j in 0..N {
            drawn[j] = words[j % 4][j / 4];
        }
    } else {
        for j in 0..N {
            let element = at.first + j * at.step;
            let block = (element / 4) as u64;
            let words = philox(key, [[block as u32], [(block >> 32) as u32], [model], [0]]);
            drawn[j] = words[element % 4][0];
        }
    }
    drawn
}
