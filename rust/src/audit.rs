//! Reads finished checkpoints back: checksums of tensors and files, and the distance between two tensors.
use crate::container::{Container, Entry, Header};
use crate::crc::Crc;
use crate::dtype::with_format;
use crate::error::{Error, Result};
use crate::lanes::{At, Lanes, W};
use crate::real::Real;
use crate::simd::{Simd, Task};
use crate::source::{Settings, Source, Tensor};
use crate::sweep::{BLOCK, Sweep, Terms, common};
use crate::watch::Watch;
use rayon::prelude::*;
use serde::Serialize;
use sha2::Digest as _;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A cryptographic digest, on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// BLAKE3.
    Blake3,
    /// SHA-256.
    Sha256,
}

impl Digest {
    /// Parses `blake3` or `sha256`.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "blake3" => Ok(Self::Blake3),
            "sha256" => Ok(Self::Sha256),
            _ => Err(Error::Merge(format!("digest `{text}` is not one of blake3, sha256"))),
        }
    }

    fn of(self, file: &Container, tensor: &Entry, watch: &Watch) -> Result<DigestOf> {
        let mut room = Vec::new();
        let mut all = |take: &mut dyn FnMut(&[u8])| {
            tensor.chunks().into_iter().try_for_each(|piece| {
                watch.check()?;
                take(file.lend(tensor, piece, &mut room)?);
                Ok(())
            })
        };
        match self {
            Self::Blake3 => {
                let mut hasher = blake3::Hasher::new();
                all(&mut |bytes| {
                    hasher.update(bytes);
                })?;
                Ok(DigestOf::Blake3(hasher.finalize().to_hex().to_string()))
            }
            Self::Sha256 => {
                let mut hasher = sha2::Sha256::new();
                all(&mut |bytes| hasher.update(bytes))?;
                let hex = |byte: &u8| format!("{byte:02x}");
                Ok(DigestOf::Sha256(hasher.finalize().iter().map(hex).collect()))
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
    /// The cryptographic digest, under its algorithm's name, if one was requested.
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

/// Computes the checksums of a file, mapped or read as in [`Container::open`].
pub fn sum_file(path: &Path, digest: Option<Digest>, mmap: Option<bool>, watch: &Watch) -> Result<FileSum> {
    let file = Container::open(&Arc::new(Header::read(path)?), mmap)?;
    let sum_tensor = |tensor: &Entry| {
        let crc = crc_of(&file, tensor, watch)?;
        let digest = digest.map(|digest| digest.of(&file, tensor, watch)).transpose()?;
        Ok((crc, TensorSum { name: tensor.name.clone(), crc64nvme: crc.hex(), digest }))
    };
    let sums: Vec<_> = file.header.tensors.par_iter().map(sum_tensor).collect::<Result<_>>()?;
    let prefix = Crc::of(file.prefix(&mut Vec::new())?);
    let crc = sums.iter().fold(prefix, |crc, (tensor, _)| crc.join(*tensor));
    let tensors = sums.into_iter().map(|(_, sum)| sum).collect();
    Ok(FileSum { size: file.header.stamp.size(), crc64nvme: crc.hex(), tensors })
}

/// Computes the CRC-64/NVME of some tensors of a file, hexadecimal, in the order of `names`; reads nothing else.
pub fn sum_tensors(path: &Path, names: &[String], watch: &Watch) -> Result<Vec<String>> {
    let file = Container::open(&Arc::new(Header::read(path)?), None)?;
    names.par_iter().map(|name| Ok(crc_of(&file, file.header.tensor(name)?, watch)?.hex())).collect()
}

fn crc_of(file: &Container, tensor: &Entry, watch: &Watch) -> Result<Crc> {
    let of_piece = |room: &mut Vec<u8>, piece: Range<usize>| {
        watch.check()?;
        watch.add_read(piece.len());
        Ok(Crc::of(file.lend(tensor, piece, room)?))
    };
    let crcs: Vec<Crc> = tensor.chunks().into_par_iter().map_init(Vec::new, of_piece).collect::<Result<_>>()?;
    Ok(crcs.into_iter().fold(Crc::EMPTY, Crc::join))
}

/// The distance between two tensors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    /// Norm of the first.
    pub norm_a: f64,
    /// Norm of the second.
    pub norm_b: f64,
    /// Norm of second minus first.
    pub norm_difference: f64,
    /// The cosine of the angle between them; 0 where one of them is.
    pub cosine: f64,
    /// The largest |second - first|.
    pub max_difference: f64,
    /// Index of the first element that reaches it.
    pub index: usize,
}

/// Factors at which squares of the largest, or of the smallest, numbers of f64 are numbers.
const SCALES: [f64; 2] = [f64::from_bits((1023 - 540) << 52), f64::from_bits((1023 + 500) << 52)];

/// Accumulated sums of squares and products of elements times a power of two.
struct Squares(f64);

impl<R: Real> Terms<R, 2, 4> for Squares {
    type Stretch = ();

    fn reads(&self) -> [usize; 2] {
        [0, 1]
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, (): &(), _: At, [a, b]: [[R; N]; 2]) -> [[f64; N]; 4] {
        let (a, b) = (a.map(|x| x.to_f64() * self.0), b.map(|x| x.to_f64() * self.0));
        let mut terms = [[0.0; N]; 4];
        for j in 0..N {
            let difference = b[j] - a[j];
            terms[0][j] = a[j] * a[j];
            terms[1][j] = b[j] * b[j];
            terms[2][j] = difference * difference;
            terms[3][j] = a[j] * b[j];
        }
        terms
    }
}

/// Computes the largest |b - a| in f64, as a key.
struct Largest<'a, F>([&'a [u8]; 2], PhantomData<F>);

impl<F: Lanes> Task for Largest<'_, F> {
    type Output = i64;
    #[inline(always)]
    fn run(self) -> i64 {
        let [a, b] = self.0;
        let elements = a.len() / F::BYTES;
        let whole = elements / W * W;
        let mut largest = [0; W];
        for i in (0..whole).step_by(W) {
            let (a, b) = (F::in_order::<W>(a, i), F::in_order::<W>(b, i));
            for j in 0..W {
                largest[j] = largest[j].max((b[j].to_f64() - a[j].to_f64()).key());
            }
        }
        let rest = (whole..elements).map(|i| (F::get(b, i).to_f64() - F::get(a, i).to_f64()).key());
        largest.into_iter().chain(rest).fold(0, Ord::max)
    }
}

/// Returns a key in which every NaN is equal and larger than any number.
fn rank(key: i64) -> i64 {
    key.min(f64::INFINITE + 1)
}

/// Compares two float tensors of the same shape.
pub fn compare(pair: &[Tensor; 2], simd: Simd, watch: &Watch) -> Result<Distance> {
    let [a, b] = pair;
    if a.entry().shape != b.entry().shape {
        let (found, wanted) = (&b.entry().shape, &a.entry().shape);
        let reason = format!("tensor `{}` has shape {found:?}, the other {wanted:?}", b.entry().name);
        return Err(Error::checkpoint(b.path(), reason));
    }
    let sources: Vec<Box<dyn Source>> = pair.iter().map(|tensor| Box::new(tensor.clone()) as Box<dyn Source>).collect();
    let settings = Settings { tile: BLOCK, simd, watch, key: [0; 2] };
    with_format!(common([a.float(), b.float()].into_iter()), F => distance(&Sweep::<F>::new(&sources, settings), 1.0))
}

fn distance<F: Lanes>(sweep: &Sweep<F>, scale: f64) -> Result<Distance> {
    let Settings { simd, watch, .. } = sweep.settings;
    let bytes: usize = sweep.sources().iter().map(|source| source.float().bytes()).sum();
    let blocks = sweep.tiles(|block| {
        let [sums] = sweep.sums_of(&[Squares(scale)], block.clone())?[..] else {
            return Err(Error::Panic("one sum".into()));
        };
        let mut largest = 0;
        sweep.strips(&[0, 1], block.clone(), BLOCK, |_, x| {
            largest = largest.max(rank(simd.run(Largest::<F>([x[0], x[1]], PhantomData))));
            Ok(())
        })?;
        watch.add_read(block.len() * bytes);
        Ok((sums, largest))
    })?;
    let mut totals = [0.0; 4];
    let mut most = (0, 0);
    for (index, (sums, largest)) in blocks.into_iter().enumerate() {
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += sum;
        }
        if largest > most.1 {
            most = (index, largest);
        }
    }
    let [aa, bb, difference, dot] = totals;
    let squares = [aa, bb, difference];
    if scale == 1.0 && squares.contains(&f64::INFINITY) {
        return distance(sweep, SCALES[0]);
    }
    if scale == 1.0 && aa.max(bb) < f64::MIN_POSITIVE && most.1 > 0 {
        return distance(sweep, SCALES[1]);
    }
    let [norm_a, norm_b, norm_difference] = squares.map(|square| square.sqrt() / scale);
    let cosine = if aa == 0.0 || bb == 0.0 { 0.0 } else { dot / aa.sqrt() / bb.sqrt() };
    let mut found = None;
    let block = most.0 * BLOCK..sweep.len().min((most.0 + 1) * BLOCK);
    sweep.strips(&[0, 1], block, BLOCK, |piece, x| {
        let difference = |i: usize| (F::get(x[1], i).to_f64() - F::get(x[0], i).to_f64()).magnitude();
        let first = (0..piece.len()).find(|i| rank(difference(*i).key()) == most.1);
        found = found.or(first.map(|i| (piece.start + i, difference(i))));
        Ok(())
    })?;
    let (index, max_difference) = found.unwrap_or_default();
    Ok(Distance { norm_a, norm_b, norm_difference, cosine, max_difference, index })
}
