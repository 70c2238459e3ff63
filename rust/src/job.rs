//! One float tensor on its way: the sweeps that its method needs, then its tiles combined, checked, summed and written.
use crate::crc::Crc;
use crate::dtype::{Float, Format, transcode, with_format};
use crate::error::{Error, Result};
use crate::kernels::linear::Linear;
use crate::kernels::task_arithmetic::TaskArithmetic;
use crate::kernels::ties::{Ties, rescale};
use crate::kernels::{BLOCK, Kernel, Peaks, STRIP, slerp};
use crate::passes::{self, Sweep, Threshold};
use crate::plan::{Method, TensorTask};
use crate::real::Real;
use crate::run::{Options, Run};
use crate::stream::{View, common, runs};
use std::cell::RefCell;
use std::ops::Range;

thread_local! {
    /// The tile that this thread writes next.
    static TILE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One float tensor on its way, computed in format `F`.
pub struct Job<'a, F: Format> {
    run: &'a Run<'a>,
    index: usize,
    task: &'a TensorTask,
    views: &'a [View<'a>],
    sweep: Sweep<'a>,
    output: Float,
    kernel: Kernel<F::Real>,
    /// Of TIES, one a model.
    thresholds: Vec<Threshold>,
    /// Elements that the kernel can take at once.
    step: usize,
}

impl<'a, F: Format> Job<'a, F> {
    /// Runs the sweeps that the method needs and settles its kernel.
    pub fn new(run: &'a Run<'a>, index: usize, views: &'a [View<'a>], output: Float) -> Result<Self> {
        let task = &run.plan.tasks[index];
        let Options { tile, simd, .. } = run.options;
        let sweep = Sweep { len: task.len(), tile, simd, watch: run.watch };
        let mut thresholds = Vec::new();
        let mut fused = Kernel::<F::Real>::FUSED;
        let kernel = match &task.method {
            Method::Copy {} => Kernel::Scale(F::Real::ONE),
            Method::Scale { factor } => Kernel::Scale(F::Real::from_f64(*factor)),
            Method::Linear { weights, normalize } => Kernel::Linear(Linear::new(weights, *normalize)),
            Method::Slerp { t } => {
                let blocks = passes::products(sweep, views)?;
                Kernel::Linear(Linear::new(&slerp::weights(blocks, *t), false))
            }
            Method::TaskArithmetic { weights, normalize, lambda } => {
                Kernel::TaskArithmetic(TaskArithmetic::new(weights, *normalize, *lambda))
            }
            Method::Ties { weights, densities, normalize, rescale: rescaling, lambda, majority_sign_method } => {
                let (base, models) = (views[0], &views[1..]);
                // Keys of f32 and of f64 do not compare; halves are searched as they are.
                let own = common(views.iter().map(|view| view.float));
                let work = if F::FLOAT == Float::F64 { Float::F64 } else { own };
                thresholds = passes::thresholds(sweep, work, base, models, densities)?;
                let factors = if *rescaling {
                    passes::masses(sweep, work, base, models, &thresholds)?.into_iter().map(rescale).collect()
                } else {
                    vec![1.0; models.len()]
                };
                let ties = Ties::new(weights, &factors, *normalize, *lambda, *majority_sign_method);
                fused = ties.fused_inputs();
                Kernel::Ties(ties)
            }
        };
        // The earlier sweeps count as read only now: a progress bar that waits is better than one that runs backwards.
        let bytes: usize = views.iter().map(|view| view.tensor.bytes.len()).sum();
        run.watch.add_read(bytes * (task.method.sweeps() as usize - 1));
        let strips = views.len() > fused || output != F::FLOAT;
        let step = if strips { STRIP } else { tile };
        Ok(Self { run, index, task, views, sweep, output, kernel, thresholds, step })
    }

    /// Combines and writes every tile; returns the tensor's checksum.
    pub fn run(&self) -> Result<Crc> {
        let crcs = self.sweep.tiles(self.views, |tile| self.tile(tile))?;
        Ok(crcs.into_iter().fold(Crc::EMPTY, Crc::join))
    }

    fn tile(&self, tile: Range<usize>) -> Result<Crc> {
        let watch = self.run.watch;
        let size = self.output.bytes();
        TILE_BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(tile.len() * size), 0);
            let bytes = &mut buffer[..tile.len() * size];
            let peaks = self.combine(tile.clone(), bytes);
            if !self.run.plan.allow_nonfinite && self.is_bad(peaks) {
                return Err(self.blame()?);
            }
            let crc = Crc::of(bytes);
            self.run.writer.write(self.index, tile.start * size, bytes)?;
            watch.add_read(self.views.iter().map(|view| tile.len() * view.float.bytes()).sum());
            watch.add_written(bytes.len());
            Ok(crc)
        })
    }

    fn is_bad(&self, peaks: Peaks<F::Real>) -> bool {
        peaks.witness >= F::Real::INFINITE || peaks.result.into() > self.output.limit::<F::Real>()
    }

    /// Combines a range of elements into `bytes`, in the output's format.
    fn combine(&self, range: Range<usize>, bytes: &mut [u8]) -> Peaks<F::Real> {
        let Kernel::Ties(ties) = &self.kernel else { return self.piece(&self.kernel, range, bytes) };
        // Split where the equal magnitudes of a model stop surviving: then one compare decides for each element.
        let inside = self.thresholds.iter().map(|t| t.cut).filter(|cut| range.contains(cut) && *cut > range.start);
        let mut edges: Vec<usize> = inside.chain([range.end]).collect();
        edges.sort_unstable();
        edges.dedup();
        let size = self.output.bytes();
        let (mut start, mut peaks) = (range.start, Peaks::default());
        for end in edges {
            let keys = self.thresholds.iter().map(|t| t.key - i64::from(start < t.cut));
            let piece = &mut bytes[(start - range.start) * size..(end - range.start) * size];
            peaks = peaks.join(self.piece(&Kernel::Ties(ties.with_thresholds(keys)), start..end, piece));
            start = end;
        }
        peaks
    }

    fn piece(&self, kernel: &Kernel<F::Real>, range: Range<usize>, bytes: &mut [u8]) -> Peaks<F::Real> {
        let simd = self.run.options.simd;
        let size = self.output.bytes();
        let mut peaks = Peaks::default();
        let mut strip = if self.output == F::FLOAT { Vec::new() } else { vec![0; STRIP * F::BYTES] };
        runs(self.views_used(), F::FLOAT, range.clone(), self.step, simd, |run, inputs| {
            let to = &mut bytes[(run.start - range.start) * size..(run.end - range.start) * size];
            if self.output == F::FLOAT {
                peaks = peaks.join(kernel.apply::<F>(simd, inputs, to));
            } else {
                let strip = &mut strip[..run.len() * F::BYTES];
                peaks = peaks.join(kernel.apply::<F>(simd, inputs, strip));
                transcode(simd, F::FLOAT, strip, self.output, to);
            }
        });
        peaks
    }

    /// A copy reads its first source; the others were compared before the run.
    fn views_used(&self) -> &[View<'a>] {
        if matches!(self.task.method, Method::Copy {}) { &self.views[..1] } else { self.views }
    }

    /// Which element of which input, or of the result, is at fault. Slow, and always the same answer.
    fn blame(&self) -> Result<Error> {
        for view in self.views {
            if let Some((index, value)) = self.first_nonfinite(view)? {
                let (path, name) = (view.shard.path.display(), &view.tensor.name);
                return Ok(Error::NonFinite(format!(
                    "{path}: tensor `{name}` holds {value} at element {index}; repair the checkpoint, or pass \
                     --allow-nonfinite"
                )));
            }
        }
        let mut bytes = vec![0; STRIP * self.output.bytes()];
        for start in (0..self.task.len()).step_by(STRIP) {
            let strip = start..self.task.len().min(start + STRIP);
            let size = strip.len() * self.output.bytes();
            if self.is_bad(self.combine(strip.clone(), &mut bytes[..size])) {
                let one = self.output.bytes();
                let at = strip.clone().find(|i| self.is_bad(self.combine(*i..i + 1, &mut bytes[..one])));
                let (name, dtype) = (&self.task.name, self.task.dtype);
                return Ok(Error::NonFinite(format!(
                    "tensor `{name}`: the result at element {} is too large for {dtype}; choose a wider `out_dtype` \
                     (bfloat16, float32) or smaller weights, or pass --allow-nonfinite",
                    at.unwrap_or(strip.start)
                )));
            }
        }
        Ok(Error::Panic(format!("tensor `{}` was flagged as not finite, but every element is", self.task.name)))
    }

    fn first_nonfinite(&self, view: &View) -> Result<Option<(usize, f64)>> {
        for start in (0..self.task.len()).step_by(BLOCK) {
            self.run.watch.check()?;
            let block = start..self.task.len().min(start + BLOCK);
            let bytes = view.slice(block.clone());
            let found = with_format!(view.float, V => {
                let mut values = (0..block.len()).map(|i| (start + i, V::get(bytes, i).to_f64()));
                values.find(|(_, value)| !value.is_finite())
            });
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
