//! Runs the method of one float tensor: the sweeps over the whole tensor, then its tiles, which are computed, checked,
//! checksummed and written. Names no method except the copy, which needs no arithmetic.
use crate::crc::Crc;
use crate::dtype::{Float, WideF32, limit, with_format};
use crate::encode::Encode;
use crate::error::{Error, Result};
use crate::lanes::{Kernel, Lanes, Peaks, W};
use crate::methods::Method;
use crate::real::Real;
use crate::simd::{PREFETCH, Task, prefetch};
use crate::source::{Settings, Source, first_nonfinite};
use crate::sweep::{STRIP, Sweep, common};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

thread_local! {
    /// The tile that this thread writes next, and scratch for a strip of it in another format.
    static TILE_BUFFER: RefCell<[Vec<u8>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Writes bytes of the result at an offset: `write(offset, bytes)`.
pub type Write<'a> = &'a (dyn Fn(usize, &[u8]) -> Result<()> + Sync);

/// A finished tensor, or a range of one.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// CRC of its bytes.
    pub crc: Crc,
    /// Whether all its elements, and all their inputs, are finite.
    pub finite: bool,
}

impl Done {
    /// Joins two consecutive ranges.
    fn joined(parts: Vec<Self>) -> Self {
        let join = |a: Self, b: Self| Self { crc: a.crc.join(b.crc), finite: a.finite && b.finite };
        parts.into_iter().fold(Self { crc: Crc::EMPTY, finite: true }, join)
    }
}

/// The job of one float tensor.
pub struct Job<'a> {
    /// The tensor's name, for messages.
    pub name: &'a str,
    /// How results are stored.
    pub encoding: &'a dyn Encode,
    /// The method.
    pub method: &'a Method,
    /// Run settings.
    pub settings: Settings<'a>,
    /// Whether NaN, infinities and overflow are allowed.
    pub allow_nonfinite: bool,
}

impl Job<'_> {
    /// Computes and writes every tile; returns the tensor's checksum and whether it is finite. The sources have the
    /// tensor's shape.
    pub fn run(&self, mut sources: Vec<Box<dyn Source>>, write: Write) -> Result<Done> {
        // Bytes read per element over all sources, as progress counts them; copies that must be equal are compared, so
        // they count.
        let read = sources.iter().map(|source| source.float().bytes()).sum();
        let copies = matches!(self.method, Method::Copy(_));
        if copies {
            sources.truncate(1);
        }
        sources.iter_mut().try_for_each(|source| source.prepare(&self.settings))?;
        let output = self.encoding.plain();
        let work = common(sources.iter().map(|source| source.float()).chain(output));
        let plain = if work == Float::F64 { Float::F64 } else { Float::F32 };
        let job = Settled { job: self, sources: &sources, write, read };
        match (work, output) {
            (_, Some(output)) if copies && sources[0].float() == output => with_format!(output, F => job.copy::<F>()),
            // An f32 result shows every intermediate rounding, a 16-bit one does not.
            (Float::F32, Some(Float::F32)) if self.method.wide() => job.merge::<WideF32>(),
            _ if self.method.direct() => with_format!(work, F => job.merge::<F>()),
            _ => with_format!(plain, F => job.merge::<F>()),
        }
    }
}

/// A job whose sources are prepared.
struct Settled<'a> {
    job: &'a Job<'a>,
    sources: &'a [Box<dyn Source>],
    write: Write<'a>,
    /// Bytes read per element.
    read: usize,
}

impl Settled<'_> {
    /// Copies the bytes of the only source: arithmetic would change NaNs, and subnormals if the thread flushes them.
    fn copy<F: Lanes>(&self) -> Result<Done> {
        let settings = self.job.settings;
        let sweep = Sweep::<F>::new(self.sources, settings);
        let tiles = sweep.tiles(|tile| {
            let mut done = Done { crc: Crc::EMPTY, finite: true };
            let mut store = |bytes: &[u8]| {
                let finite = settings.simd.run(Peak::<F>(bytes, PhantomData)) < F::Real::INFINITE;
                if !finite && !self.job.allow_nonfinite {
                    // What a source computes may overflow where its inputs do not.
                    let first = self.job.encoding.first_nonfinite(bytes).unwrap_or_default();
                    return Err(self.blame_input()?.unwrap_or_else(|| self.too_large(tile.start + first)));
                }
                done = Done { crc: Crc::of(bytes), finite };
                (self.write)(tile.start * F::BYTES, bytes)
            };
            TILE_BUFFER.with_borrow_mut(|[bytes, _]| {
                sweep.strips(&[0], tile.clone(), tile.len(), |strip, inputs| {
                    if strip == tile {
                        return store(inputs[0]);
                    }
                    // A tile that is made strip by strip is still written at once: a strip is a small write.
                    bytes.resize(bytes.len().max(tile.len() * F::BYTES), 0);
                    bytes[(strip.start - tile.start) * F::BYTES..][..inputs[0].len()].copy_from_slice(inputs[0]);
                    if strip.end == tile.end { store(&bytes[..tile.len() * F::BYTES]) } else { Ok(()) }
                })
            })?;
            self.count(&tile);
            Ok(done)
        })?;
        Ok(Done::joined(tiles))
    }

    fn count(&self, tile: &Range<usize>) {
        self.job.settings.watch.add_read(tile.len() * self.read);
        self.job.settings.watch.add_written(self.job.encoding.bytes(tile.len()));
    }

    /// Runs the method's sweeps, then computes the result tile by tile.
    fn merge<F: Lanes>(&self) -> Result<Done> {
        let sweep = Sweep::<F>::new(self.sources, self.job.settings);
        let kernel = self.job.method.prepare(&sweep).map_err(|error| match error {
            Error::Merge(reason) => Error::Merge(format!("tensor `{}`: {reason}", self.job.name)),
            error => error,
        })?;
        // Count the sweeps as read only now: a progress bar that waits is better than one that runs backwards.
        self.job.settings.watch.add_read(sweep.len() * self.read * (self.job.method.sweeps() as usize - 1));
        let sweep = if kernel.whole_rows() { sweep.in_rows() } else { sweep };
        let result = Made { settled: self, all: sweep.all(), kernel, sweep };
        let size = |elements| self.job.encoding.bytes(elements);
        let tiles = result.sweep.tiles(|tile| {
            TILE_BUFFER.with_borrow_mut(|[bytes, scratch]| {
                bytes.resize(bytes.len().max(size(tile.len())), 0);
                let bytes = &mut bytes[..size(tile.len())];
                let peaks = result.make(tile.clone(), bytes, scratch)?;
                let finite = !result.is_bad(peaks);
                if !finite && !self.job.allow_nonfinite {
                    return Err(result.blame()?);
                }
                let crc = Crc::of(bytes);
                (self.write)(size(tile.start), bytes)?;
                self.count(&tile);
                Ok(Done { crc, finite })
            })
        })?;
        Ok(Done::joined(tiles))
    }

    /// Finds the first non-finite element of the first tensor below the sources that has one.
    fn blame_input(&self) -> Result<Option<Error>> {
        let watch = self.job.settings.watch;
        first_nonfinite(self.sources, self.job.settings.simd, &|| watch.check())
    }

    /// Returns the error of a result that overflows at an element.
    fn too_large(&self, element: usize) -> Error {
        let (name, encoding) = (self.job.name, self.job.encoding);
        let wider = if encoding.largest() < 1e38 {
            "a wider `out_dtype` (bfloat16, float32) with --discard-partial, or "
        } else {
            ""
        };
        Error::NonFinite(format!(
            "tensor `{name}`: the result at element {element} is too large for {}; choose {wider}smaller weights, or \
             pass --allow-nonfinite",
            encoding.name()
        ))
    }
}

/// Computes the result with a kernel, tile by tile.
struct Made<'a, F: Lanes> {
    settled: &'a Settled<'a>,
    sweep: Sweep<'a, F>,
    kernel: Box<dyn Kernel<F>>,
    /// Indices of all sources.
    all: Vec<usize>,
}

impl<F: Lanes> Made<'_, F> {
    /// Computes elements `at` as stored bytes; `scratch` holds a strip in the kernel's format.
    fn make(&self, at: Range<usize>, bytes: &mut [u8], scratch: &mut Vec<u8>) -> Result<Peaks<F::Real>> {
        let (simd, encoding) = (self.sweep.settings.simd, self.settled.job.encoding);
        let mut peaks = Peaks::default();
        let direct = encoding.plain() == Some(F::FLOAT);
        let step = if direct { at.len() } else { STRIP };
        self.sweep.strips(&self.all, at.clone(), step, |strip, inputs| {
            let to = &mut bytes[encoding.bytes(strip.start - at.start)..encoding.bytes(strip.end - at.start)];
            if direct {
                peaks = peaks.join(self.kernel.run(simd, strip, inputs, to));
            } else {
                scratch.resize(scratch.len().max(strip.len() * F::BYTES), 0);
                let scratch = &mut scratch[..strip.len() * F::BYTES];
                peaks = peaks.join(self.kernel.run(simd, strip.clone(), inputs, scratch));
                encoding.encode(simd, strip, F::FLOAT, scratch, to);
            }
            Ok(())
        })?;
        Ok(peaks)
    }

    fn is_bad(&self, peaks: Peaks<F::Real>) -> bool {
        peaks.witness >= F::Real::INFINITE
            || peaks.result.into() > limit::<F::Real>(self.settled.job.encoding.largest())
    }

    /// Finds which element of which input, or of the result, is not finite or overflows. Slow and deterministic.
    fn blame(&self) -> Result<Error> {
        if let Some(error) = self.settled.blame_input()? {
            return Ok(error);
        }
        let (len, step, encoding) = (self.sweep.len(), self.sweep.settings.tile, self.settled.job.encoding);
        let (mut bytes, mut scratch) = (Vec::new(), Vec::new());
        for start in (0..len).step_by(step) {
            let tile = start..len.min(start + step);
            bytes.resize(encoding.bytes(tile.len()), 0);
            self.make(tile, &mut bytes, &mut scratch)?;
            if let Some(element) = encoding.first_nonfinite(&bytes) {
                return Ok(self.settled.too_large(start + element));
            }
        }
        Ok(Error::NonFinite(format!(
            "tensor `{}`: numbers on the way to the result are too large for {:?}; choose smaller weights, or pass \
             --allow-nonfinite",
            self.settled.job.name,
            F::FLOAT
        )))
    }
}

/// Returns the largest magnitude of some elements, as a key.
struct Peak<'a, F>(&'a [u8], PhantomData<F>);

impl<F: Lanes> Task for Peak<'_, F> {
    type Output = <F::Real as Real>::Key;
    #[inline(always)]
    fn run(self) -> Self::Output {
        let elements = self.0.len() / F::BYTES;
        let whole = elements / (2 * W) * (2 * W);
        let mut peaks = [<F::Real as Real>::Key::default(); W];
        for i in (0..whole).step_by(2 * W) {
            if (i * F::BYTES).is_multiple_of(PREFETCH) {
                prefetch(self.0, i * F::BYTES);
            }
            let [a, b] = F::load::<W>(self.0, i);
            for j in 0..W {
                peaks[j] = peaks[j].max(a[j].key()).max(b[j].key());
            }
        }
        let rest = (whole..elements).map(|i| F::get(self.0, i).key());
        peaks.into_iter().chain(rest).fold(Self::Output::default(), Ord::max)
    }
}
