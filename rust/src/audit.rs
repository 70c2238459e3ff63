//! Reads finished checkpoints again: checksums of tensors and files, and how far two tensors are apart.
use crate::crc::Crc;
use crate::dtype::{Format, with_format};
use crate::error::{Error, Result};
use crate::kernels::{BLOCK, Sum};
use crate::real::Real;
use crate::shard::{Shard, Tensor};
use crate::simd::Simd;
use crate::stream::{View, common, runs};
use crate::watch::Watch;
use rayon::prelude::*;
use serde::Serialize;
use sha2::Digest as _;
use std::path::Path;

/// A cryptographic digest, on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// BLAKE3.
    Blake3,
    /// SHA-256.
    Sha256,
}

impl Digest {
    /// Reads `blake3` or `sha256`.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "blake3" => Ok(Self::Blake3),
            "sha256" => Ok(Self::Sha256),
            _ => Err(Error::Merge(format!("digest `{text}` is not one of blake3, sha256"))),
        }
    }

    fn of(self, bytes: &[u8]) -> DigestOf {
        match self {
            Self::Blake3 => DigestOf::Blake3(blake3::hash(bytes).to_hex().to_string()),
            Self::Sha256 => {
                let hex = |byte: &u8| format!("{byte:02x}");
                DigestOf::Sha256(sha2::Sha256::digest(bytes).iter().map(hex).collect())
            }
        }
    }
}

/// A cryptographic digest in hexadecimal.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DigestOf {
    /// BLAKE3.
    Blake3(String),
    /// SHA-256.
    Sha256(String),
}

/// The checksums of a tensor.
#[derive(Debug, Serialize)]
pub struct TensorSum {
    /// Its name.
    pub name: String,
    /// CRC-64/NVME, hexadecimal.
    pub crc64nvme: String,
    /// Under its name, where one was asked for.
    #[serde(flatten)]
    pub digest: Option<DigestOf>,
}

/// The checksums of a file.
#[derive(Debug, Serialize)]
pub struct FileSum {
    /// Bytes.
    pub size: u64,
    /// CRC-64/NVME, hexadecimal.
    pub crc64nvme: String,
    /// Its tensors, by offset.
    pub tensors: Vec<TensorSum>,
}

/// Reads a file and returns its checksums.
pub fn sum_file(path: &Path, digest: Option<Digest>, watch: &Watch) -> Result<FileSum> {
    let shard = Shard::open(path)?;
    let sum_tensor = |tensor: &Tensor| {
        let crc = crc_of(shard.bytes(tensor), watch)?;
        let sums = TensorSum {
            name: tensor.name.clone(),
            crc64nvme: crc.hex(),
            digest: digest.map(|digest| digest.of(shard.bytes(tensor))),
        };
        Ok((crc, sums))
    };
    let sums: Vec<_> = shard.tensors.par_iter().map(sum_tensor).collect::<Result<_>>()?;
    let crc = sums.iter().fold(Crc::of(shard.prefix()), |file, (tensor, _)| file.join(*tensor));
    let tensors = sums.into_iter().map(|(_, sum)| sum).collect();
    Ok(FileSum { size: shard.size() as u64, crc64nvme: crc.hex(), tensors })
}

/// Returns the CRC-64/NVME of some tensors of a file, hexadecimal, in the order of `names`; nothing else is read.
pub fn sum_tensors(path: &Path, names: &[String], watch: &Watch) -> Result<Vec<String>> {
    let shard = Shard::open(path)?;
    names.par_iter().map(|name| Ok(crc_of(shard.bytes(shard.tensor(name)?), watch)?.hex())).collect()
}

fn crc_of(bytes: &[u8], watch: &Watch) -> Result<Crc> {
    let piece = |bytes: &[u8]| {
        watch.check()?;
        watch.add_read(bytes.len());
        Ok(Crc::of(bytes))
    };
    let pieces: Vec<Crc> = bytes.par_chunks(1 << 20).map(piece).collect::<Result<_>>()?;
    Ok(pieces.into_iter().fold(Crc::EMPTY, Crc::join))
}

/// How far two tensors are apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    /// Norm of the first.
    pub norm_a: f64,
    /// Norm of the second.
    pub norm_b: f64,
    /// Norm of second minus first.
    pub norm_difference: f64,
    /// Their dot product.
    pub dot: f64,
    /// The largest |second - first|.
    pub max_difference: f64,
    /// The first element where it is reached.
    pub index: usize,
}

/// Sums of squares and products of one block, and its largest difference.
#[derive(Clone, Copy, Default)]
struct Part {
    sums: [Sum; 4],
    max: f64,
    index: usize,
}

impl Part {
    fn add<F: Format>(&mut self, start: usize, a: &[u8], b: &[u8]) {
        for i in 0..a.len() / F::BYTES {
            let (a, b) = (F::get(a, i).to_f64(), F::get(b, i).to_f64());
            let difference = b - a;
            for (sum, term) in self.sums.iter_mut().zip([a * a, b * b, difference * difference, a * b]) {
                sum.add_one(i, term);
            }
            // A NaN counts as larger than anything.
            if difference.abs() > self.max || difference.is_nan() && !self.max.is_nan() {
                (self.max, self.index) = (difference.abs(), start + i);
            }
        }
    }
}

/// Compares two float tensors of one shape.
pub fn compare(views: [View; 2], simd: Simd, watch: &Watch) -> Result<Distance> {
    if views[0].tensor.shape != views[1].tensor.shape {
        let (found, wanted) = (&views[1].tensor.shape, &views[0].tensor.shape);
        let reason = format!("tensor `{}` has shape {found:?}, the other {wanted:?}", views[1].tensor.name);
        return Err(Error::checkpoint(&views[1].shard.path, reason));
    }
    let len: usize = views[0].tensor.shape.iter().product();
    let work = common(views.iter().map(|view| view.float));
    let part = |block: usize| {
        watch.check()?;
        let block = block * BLOCK..len.min((block + 1) * BLOCK);
        let mut part = Part::default();
        runs(&views, work, block.clone(), BLOCK, simd, |run, x| {
            with_format!(work, F => part.add::<F>(run.start, x[0], x[1]));
        });
        watch.add_read(views.iter().map(|view| view.slice(block.clone()).len()).sum());
        Ok(part)
    };
    let parts: Vec<Part> = (0..len.div_ceil(BLOCK)).into_par_iter().map(part).collect::<Result<_>>()?;
    let (mut sums, mut distance) = ([0.0; 4], Distance::default());
    for part in parts {
        for (total, sum) in sums.iter_mut().zip(part.sums) {
            *total += sum.total();
        }
        if part.max > distance.max_difference || part.max.is_nan() && !distance.max_difference.is_nan() {
            (distance.max_difference, distance.index) = (part.max, part.index);
        }
    }
    let [aa, bb, difference, dot] = sums;
    Ok(Distance { norm_a: aa.sqrt(), norm_b: bb.sqrt(), norm_difference: difference.sqrt(), dot, ..distance })
}
