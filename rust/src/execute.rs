//! Runs a plan: the pool, the tiles, progress, cancel, resume and the report.
use crate::audit::{self, Digest, DigestOf};
use crate::crc::Crc;
use crate::dtype::{Float, Format, with_format};
use crate::error::{Error, Result};
use crate::journal::{self, Claim, Found, Journal};
use crate::kernels::linear::Linear;
use crate::kernels::task_arithmetic::TaskArithmetic;
use crate::kernels::ties::{Ties, rescale};
use crate::kernels::{BLOCK, Kernel, Peaks, STRIP, slerp};
use crate::passes::{self, Sweep, Threshold};
use crate::plan::{Method, Plan, TensorTask};
use crate::real::Real;
use crate::shard::{Shard, Tensor};
use crate::simd::Simd;
use crate::stream::{self, View, common, runs};
use crate::writer::{Writer, bytes_needed};
use rayon::prelude::*;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Elements of a tile where nothing else is asked: small enough for the second-level cache.
pub const TILE: usize = 1 << 18;

/// Progress and cancel, shared between the pool and whoever waits for it.
#[derive(Debug, Default)]
pub struct Watch {
    cancelled: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
}

impl Watch {
    /// Stops the run within a tile.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Bytes read and written so far.
    pub fn progress(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// Fails once cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Counts bytes read.
    pub fn add_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// How a plan is run; none of it changes the bytes written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads of the pool; all cores where `None`.
    pub threads: Option<usize>,
    /// Elements of a tile, a multiple of 65,536.
    pub tile: usize,
    /// Instruction set.
    pub simd: Simd,
    /// A cryptographic digest of each tensor, from a reading of the finished files.
    pub digest: Option<Digest>,
}

/// A finished file or tensor.
#[derive(Debug, Serialize)]
pub struct Written<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file that holds it, of a tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<&'a str>,
    /// Bytes, of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// CRC-64/NVME, hexadecimal.
    pub crc64nvme: String,
    /// Under its name, of a tensor, where one was asked for.
    #[serde(flatten)]
    pub digest: Option<DigestOf>,
}

/// What a run did.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Names the work.
    pub plan_digest: String,
    /// The shards.
    pub files: Vec<Written<'a>>,
    /// The tensors.
    pub tensors: Vec<Written<'a>>,
    /// Bytes read from the inputs.
    pub bytes_read: u64,
    /// Bytes of tensors written.
    pub bytes_written: u64,
    /// Tensors that an earlier run had finished.
    pub resumed: usize,
}

/// Bytes that a run reads and writes, for progress: extra sweeps of a threshold search not counted.
pub fn totals(plan: &Plan, shards: &[Shard]) -> Result<(u64, u64)> {
    let (mut read, mut written) = (0, 0);
    for task in &plan.tasks {
        let (task_read, task_written) = task_totals(task, shards)?;
        read += task_read;
        written += task_written;
    }
    Ok((read, written))
}

fn task_totals(task: &TensorTask, shards: &[Shard]) -> Result<(u64, u64)> {
    let bytes: usize = task.resolve(shards)?.iter().map(|(_, tensor)| tensor.bytes.len()).sum();
    Ok((bytes as u64 * task.method.sweeps(), task.bytes() as u64))
}

/// What preflight found.
#[derive(Debug, Serialize)]
pub struct Preflight {
    /// Bytes still to be claimed on the disk.
    pub bytes_needed: u64,
    /// Bytes free there.
    pub bytes_free: u64,
    /// Tensors that an earlier run of the same plan claims to have finished.
    pub resumable: usize,
}

/// Checks everything that can be checked before a byte is written: inputs, plan, copies that must be equal, an earlier
/// partial directory, disk space. With `discard` a partial directory of other work is removed.
pub fn preflight(plan: &Plan, partial: &Path, discard: bool) -> Result<Preflight> {
    let shards = plan.open_inputs()?;
    plan.check(&shards)?;
    check_equal_copies(plan, &shards)?;
    let place = partial.display();
    let resumable = match journal::inspect(partial, plan)? {
        Found::Nothing => 0,
        Found::Claims(claims) => claims.len(),
        Found::OtherPlan if discard => {
            fs::remove_dir_all(partial).map_err(Error::io(partial))?;
            0
        }
        Found::OtherPlan => {
            return Err(Error::Merge(format!(
                "{place}: holds the unfinished work of another merge; finish that one, remove the directory, or pass \
                 --overwrite"
            )));
        }
        Found::Foreign => {
            return Err(Error::Merge(format!(
                "{place}: is needed for the unfinished work, but holds files that are not mol's; remove it, or choose \
                 another OUT"
            )));
        }
    };
    let parent = partial.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let existing = parent.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
    let space = rustix::fs::statvfs(existing).map_err(|e| Error::io(existing)(e.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let claimed: u64 = plan.outputs.iter().map(|name| claimed_bytes(&partial.join(name))).sum();
    let needed = bytes_needed(plan)?.saturating_sub(claimed);
    if needed > free {
        let (needed, free) = (needed as f64 / 1e9, free as f64 / 1e9);
        let existing = existing.display();
        return Err(Error::Merge(format!(
            "{existing}: the merge needs {needed:.3} GB, the disk has {free:.3} GB free; free some or choose another OUT"
        )));
    }
    Ok(Preflight { bytes_needed: needed, bytes_free: free, resumable })
}

/// Bytes that a file holds on the disk; a file that is not there holds none.
fn claimed_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

fn check_equal_copies(plan: &Plan, shards: &[Shard]) -> Result<()> {
    let mut problems = Vec::new();
    for task in plan.tasks.iter().filter(|task| matches!(task.method, Method::Copy {})) {
        let sources = task.resolve(shards)?;
        let (first_shard, first) = sources[0];
        for (shard, tensor) in &sources[1..] {
            if tensor.dtype != first.dtype || shard.bytes(tensor) != first_shard.bytes(first) {
                let (path, other) = (shard.path.display(), first_shard.path.display());
                let Tensor { name, dtype, .. } = tensor;
                problems.push(format!("{path}: tensor `{name}` ({dtype}) differs from `{}` in {other}", first.name));
            }
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let rule = "tensors that cannot be averaged must be equal in all inputs";
    Err(Error::Merge(format!("{rule}:\n- {}", problems.join("\n- "))))
}

/// Runs a plan into `partial`: shards, index and journal. Data that cannot be merged remove `partial`; any other failure
/// leaves it for a resume.
pub fn execute<'a>(plan: &'a Plan, partial: &Path, options: Options, watch: &Watch) -> Result<Report<'a>> {
    let result = execute_in(plan, partial, options, watch);
    if let Err(Error::NonFinite(_)) = &result {
        fs::remove_dir_all(partial).map_err(Error::io(partial))?;
    }
    result
}

fn execute_in<'a>(plan: &'a Plan, partial: &Path, options: Options, watch: &Watch) -> Result<Report<'a>> {
    if options.tile == 0 || !options.tile.is_multiple_of(BLOCK) || options.tile > 1 << 30 {
        return Err(Error::Merge(format!(
            "tile of {} elements: wanted a multiple of {BLOCK}, at most 2^30",
            options.tile
        )));
    }
    let shards = plan.open_inputs()?;
    plan.check(&shards)?;
    let digest = plan.digest()?;
    let (journal, claims) = Journal::open(partial, plan)?;
    let writer = Writer::open(plan, partial)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads.unwrap_or(0))
        .thread_name(|i| format!("mol-{i}"))
        // A thread that waits for tiles takes up another tensor on the same stack.
        .stack_size(16 << 20)
        .build()
        .map_err(|e| Error::Merge(format!("cannot start the thread pool: {e}")))?;
    let run = Run { plan, shards: &shards, writer: &writer, journal: &journal, options, watch };
    let (digests, resumed) = pool.install(|| run.all(&claims))?;
    writer.write_index(plan, partial)?;
    let mut cryptographic = HashMap::new();
    if options.digest.is_some() {
        for name in &plan.outputs {
            let sums = pool.install(|| audit::sum_file(&partial.join(name), options.digest, watch))?;
            cryptographic.extend(sums.tensors.into_iter().map(|sum| (sum.name, sum.digest)));
        }
    }
    let (bytes_read, bytes_written) = watch.progress();
    Ok(Report {
        plan_digest: digest,
        files: file_digests(plan, &writer, &digests),
        tensors: plan
            .tasks
            .iter()
            .zip(&digests)
            .map(|(task, crc)| Written {
                name: &task.name,
                file: Some(&plan.outputs[task.output]),
                size: None,
                crc64nvme: crc.hex(),
                digest: cryptographic.remove(&task.name).flatten(),
            })
            .collect(),
        bytes_read,
        bytes_written,
        resumed,
    })
}

/// The checksum of each file, combined from those of its header and tensors.
fn file_digests<'a>(plan: &'a Plan, writer: &Writer, digests: &[Crc]) -> Vec<Written<'a>> {
    let file = |(index, name): (usize, &'a String)| {
        let (prefix, size) = writer.output(index);
        let mine = plan.tasks.iter().zip(digests).filter(|(task, _)| task.output == index);
        let crc = mine.fold(Crc::of(prefix), |crc, (_, tensor)| crc.join(*tensor));
        Written { name, file: None, size: Some(size), crc64nvme: crc.hex(), digest: None }
    };
    plan.outputs.iter().enumerate().map(file).collect()
}

/// A plan on its way.
struct Run<'a> {
    plan: &'a Plan,
    shards: &'a [Shard],
    writer: &'a Writer,
    journal: &'a Journal,
    options: Options,
    watch: &'a Watch,
}

thread_local! {
    /// The tile that this thread writes next.
    static TILE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Run<'_> {
    /// Every tensor's checksum, in order, and how many tensors an earlier run had finished.
    fn all(&self, claims: &[Claim]) -> Result<(Vec<Crc>, usize)> {
        let mut digests: Vec<Option<Crc>> = vec![None; self.plan.tasks.len()];
        let verified: Vec<bool> = claims.par_iter().map(|claim| self.verify(*claim)).collect::<Result<_>>()?;
        for (claim, _) in claims.iter().zip(verified).filter(|(_, verified)| *verified) {
            let (read, written) = task_totals(&self.plan.tasks[claim.task], self.shards)?;
            self.watch.add_read(read as usize);
            self.watch.add_written(written as usize);
            self.journal.claim(*claim)?;
            digests[claim.task] = Some(Crc::known(claim.crc64nvme, self.plan.tasks[claim.task].bytes()));
        }
        let resumed = digests.iter().flatten().count();
        let finish = |(index, digest): (usize, &Option<Crc>)| match digest {
            Some(digest) => Ok(*digest),
            None => self.tensor(index),
        };
        // Tensors beside tensors, and tiles inside them: no core waits while one tensor's threshold is being found.
        let digests = digests.par_iter().with_max_len(1).enumerate().map(finish).collect::<Result<_>>()?;
        Ok((digests, resumed))
    }

    /// Whether the bytes on the disk are what a journal claims.
    fn verify(&self, claim: Claim) -> Result<bool> {
        let Some(task) = self.plan.tasks.get(claim.task) else { return Ok(false) };
        let mut crc = Crc::EMPTY;
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < task.bytes() {
            self.watch.check()?;
            let size = buffer.len().min(task.bytes() - offset);
            self.writer.read(claim.task, offset, &mut buffer[..size])?;
            crc = crc.join(Crc::of(&buffer[..size]));
            offset += size;
        }
        Ok(crc.value == claim.crc64nvme)
    }

    fn tensor(&self, index: usize) -> Result<Crc> {
        self.watch.check()?;
        let task = &self.plan.tasks[index];
        let crc = match Float::of(task.dtype) {
            None => self.copy_bytes(index)?,
            Some(output) => {
                let views = stream::views(task, self.shards)?;
                let work = common(views.iter().map(|view| view.float).chain([output]));
                with_format!(work, F => Job::<F>::new(self, index, &views, output)?.run()?)
            }
        };
        self.journal.claim(Claim { task: index, crc64nvme: crc.value })?;
        Ok(crc)
    }

    /// Integers and bools, byte for byte.
    fn copy_bytes(&self, index: usize) -> Result<Crc> {
        let task = &self.plan.tasks[index];
        let (shard, tensor) = task.resolve(self.shards)?[0];
        let mut crc = Crc::EMPTY;
        for (i, bytes) in shard.bytes(tensor).chunks(1 << 20).enumerate() {
            self.watch.check()?;
            self.writer.write(index, i << 20, bytes)?;
            crc = crc.join(Crc::of(bytes));
            self.watch.add_written(bytes.len());
        }
        let (read, _) = task_totals(task, self.shards)?;
        self.watch.add_read(read as usize);
        Ok(crc)
    }
}

/// One float tensor on its way, computed in format `F`.
struct Job<'a, F: Format> {
    run: &'a Run<'a>,
    index: usize,
    task: &'a TensorTask,
    views: &'a [View<'a>],
    output: Float,
    kernel: Kernel<F::Real>,
    /// Of TIES, one a model.
    thresholds: Vec<Threshold>,
    /// Elements that the kernel can take at once.
    step: usize,
}

impl<'a, F: Format> Job<'a, F> {
    /// Runs the sweeps that the method needs and settles its kernel.
    fn new(run: &'a Run<'a>, index: usize, views: &'a [View<'a>], output: Float) -> Result<Self> {
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
        Ok(Self { run, index, task, views, output, kernel, thresholds, step })
    }

    /// Combines and writes every tile; returns the tensor's checksum.
    fn run(&self) -> Result<Crc> {
        let (len, tile) = (self.task.len(), self.run.options.tile);
        let tiles = 0..len.div_ceil(tile);
        let range = |i: usize| i * tile..len.min((i + 1) * tile);
        let crcs: Vec<Crc> = tiles.into_par_iter().map(|i| self.tile(range(i), range(i + 1))).collect::<Result<_>>()?;
        Ok(crcs.into_iter().fold(Crc::EMPTY, Crc::join))
    }

    fn tile(&self, tile: Range<usize>, next: Range<usize>) -> Result<Crc> {
        let watch = self.run.watch;
        watch.check()?;
        for view in self.views {
            view.fetch(next.start.min(next.end)..next.end);
        }
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
                crate::dtype::transcode(simd, F::FLOAT, strip, self.output, to);
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
            let mut at = None;
            for start in (0..self.task.len()).step_by(BLOCK) {
                self.run.watch.check()?;
                let block = start..self.task.len().min(start + BLOCK);
                let bytes = view.slice(block.clone());
                at = with_format!(view.float, V => (0..block.len()).map(|i| V::get(bytes, i).to_f64()).position(|x| !x.is_finite())
                    .map(|i| (start + i, V::get(bytes, i).to_f64())));
                if at.is_some() {
                    break;
                }
            }
            if let Some((index, value)) = at {
                let (path, name) = (view.shard.path.display(), &view.tensor.name);
                return Ok(Error::NonFinite(format!(
                    "{path}: tensor `{name}` holds {value} at element {index}; repair the checkpoint, or pass --allow-nonfinite"
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
                    "tensor `{name}`: the result at element {} is too large for {dtype}; choose a wider `out_dtype` (bfloat16, float32) or smaller weights, or pass --allow-nonfinite",
                    at.unwrap_or(strip.start)
                )));
            }
        }
        Ok(Error::Panic(format!("tensor `{}` was flagged as not finite, but every element is", self.task.name)))
    }
}
