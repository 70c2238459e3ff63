//! An encoding that is no plain format: a job needs nothing but its implementation of `Encode`.
use mol_merge::crc::Crc;
use mol_merge::dtype::Float;
use mol_merge::encode::Encode;
use mol_merge::error::{Error, Result};
use mol_merge::job::{Done, Job};
use mol_merge::methods::Method;
use mol_merge::simd::Simd;
use mol_merge::source::{Settings, Slot, Source};
use mol_merge::watch::{Watch, pool};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

const BLOCK: usize = 32;
const STORED: usize = 4 + BLOCK;

/// Blocks of 32 codes of 8 bits, each after its scale: 36 bytes for 32 elements.
struct Blocks;

impl Encode for Blocks {
    fn plain(&self) -> Option<Float> {
        None
    }

    fn largest(&self) -> f64 {
        f64::from(f32::MAX)
    }

    fn name(&self) -> String {
        "blocks".into()
    }

    fn bytes(&self, elements: usize) -> usize {
        elements / BLOCK * STORED
    }

    fn first_nonfinite(&self, stored: &[u8]) -> Option<usize> {
        let is_bad = |block: &[u8]| !f32::from_le_bytes([block[0], block[1], block[2], block[3]]).is_finite();
        stored.chunks_exact(STORED).position(is_bad).map(|block| block * BLOCK)
    }

    fn encode(&self, _: Simd, at: Range<usize>, float: Float, values: &[u8], to: &mut [u8]) {
        assert!(float == Float::F32 && at.start.is_multiple_of(BLOCK) && at.len() * 4 == values.len());
        let values: Vec<f32> = values.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        for (block, to) in values.chunks_exact(BLOCK).zip(to.chunks_exact_mut(STORED)) {
            let scale =
                block.iter().fold(0.0_f32, |most, x| if x.is_nan() { f32::NAN } else { most.max(x.abs()) }) / 127.0;
            to[..4].copy_from_slice(&scale.to_le_bytes());
            for (x, code) in block.iter().zip(&mut to[4..]) {
                *code = (if scale > 0.0 { x / scale } else { 0.0 }).round_ties_even() as i8 as u8;
            }
        }
    }
}

/// Numbers in memory.
struct Numbers(Vec<u8>);

impl Source for Numbers {
    fn float(&self) -> Float {
        Float::F32
    }

    fn shape(&self) -> (usize, usize) {
        (self.0.len() / 4 / BLOCK, BLOCK)
    }

    fn lease<'s>(&'s self, _: Simd, at: Range<usize>, _: &'s mut Slot) -> Result<&'s [u8]> {
        Ok(&self.0[at.start * 4..at.end * 4])
    }
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn run(sources: &[&[f32]], tile: usize, threads: usize) -> Result<(Vec<u8>, Done)> {
    let method: Method = serde_json::from_str(r#"{"linear": {"weights": [0.5, 0.5], "normalize": true}}"#)
        .map_err(|e| Error::Panic(e.to_string()))?;
    let watch = Watch::default();
    let settings = Settings { tile, simd: Simd::parse("off")?, watch: &watch, key: [0, 0] };
    let job = Job { name: "w", encoding: &Blocks, method: &method, settings, allow_nonfinite: false };
    let written = Mutex::new(vec![0; Blocks.bytes(sources[0].len())]);
    let write = |offset: usize, bytes: &[u8]| {
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        written[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    let sources = sources.iter().map(|numbers| Box::new(Numbers(bytes_of(numbers))) as Box<dyn Source>).collect();
    let done = pool(Some(threads), || job.run(sources, &write))??;
    Ok((written.into_inner().unwrap_or_else(PoisonError::into_inner), done))
}

fn numbers(seed: u32) -> Vec<f32> {
    let one = |i: u32| (i.wrapping_mul(0x9e37_79b9).wrapping_add(seed) as i32) as f32 / 2.0_f32.powi(31);
    (0..200_000 / BLOCK as u32 * BLOCK as u32).map(one).collect()
}

#[test]
fn results_are_stored_block_by_block_whatever_tiles_and_threads() {
    let (a, b) = (numbers(1), numbers(2));
    let mean: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.5 * a + 0.5 * b).collect();
    let mut wanted = vec![0; Blocks.bytes(mean.len())];
    Blocks.encode(Simd::parse("off").unwrap(), 0..mean.len(), Float::F32, &bytes_of(&mean), &mut wanted);
    for (tile, threads) in [(1 << 16, 1), (1 << 16, 3), (1 << 17, 2), (1 << 20, 2)] {
        let (found, done) = run(&[&a, &b], tile, threads).unwrap();
        assert!(found == wanted, "tiles of {tile} by {threads} threads");
        assert_eq!((done.crc.value, done.finite), (Crc::of(&wanted).value, true));
    }
}

#[test]
fn a_result_that_does_not_fit_is_an_error_in_its_name() {
    let mut a = numbers(3);
    a[70_000] = f32::MAX;
    let mut b = a.clone();
    b[70_000] = f32::INFINITY;
    let Err(Error::NonFinite(why)) = run(&[&a, &b], 1 << 16, 2) else { panic!("not refused") };
    assert!(why.contains("tensor `w`") && why.contains("blocks"), "{why}");
}
