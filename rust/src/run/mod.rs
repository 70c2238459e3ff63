//! Runs a plan: tasks in output order, each file open only while in use, finished work recorded.
mod begin;
pub mod budget;
pub(crate) mod claims;
pub mod commit;
mod flock;
mod head;
mod inputs;
pub mod journal;
pub mod lock;
mod paths;
pub mod preflight;
pub mod report;
mod schedule;
mod share;
mod task;
pub mod writer;

use crate::audit::{self, Digest};
use crate::crc::Crc;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::simd::Simd;
use crate::sweep::BLOCK;
use crate::watch::{Watch, pool};
use inputs::Inputs;
use journal::Journal;
use lock::Lock;
use report::Report;
use schedule::Schedule;
use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use writer::Writer;

/// Finished output files that may queue to be synced and closed before a worker thread waits for them.
const CLOSING: usize = 4;

/// Default elements per tile: small enough for the second-level cache.
pub const TILE: usize = 1 << 18;

/// How a plan is run; no option changes the bytes written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads; one per core if `None`.
    pub threads: Option<usize>,
    /// Elements per tile, a multiple of 65,536.
    pub tile: usize,
    /// Instruction set.
    pub simd: Simd,
    /// A cryptographic digest of each tensor, computed by reading the finished files back.
    pub digest: Option<Digest>,
    /// Whether the result must be on disk at the end.
    pub sync: bool,
    /// Bytes that tasks may hold together in addition to their strips; a quarter of the available memory if `None`.
    pub memory: Option<u64>,
    /// Whether inputs are mapped; if `None`, all except those on remote file systems.
    pub mmap: Option<bool>,
}

/// A plan in execution: what its tasks share.
pub(crate) struct Run<'a> {
    pub plan: &'a Plan,
    pub options: Options,
    pub watch: &'a Watch,
    pub writer: &'a Writer<'a>,
    journal: &'a Journal<'a>,
    inputs: &'a Inputs<'a>,
    /// Bytes that each task reads and writes.
    totals: Vec<(u64, u64)>,
    /// Checksums of what finished tasks wrote.
    done: Vec<OnceLock<Crc>>,
    resumed: Resumed,
}

/// What an earlier run had finished.
#[derive(Default)]
struct Resumed {
    tasks: AtomicUsize,
    read: AtomicU64,
    written: AtomicU64,
}

/// Runs a plan in a directory and writes shards, index and journals; all output files, or the given ones. In a shared
/// directory other processes may write the others meanwhile. If it fails, finished work stays there for a resume.
pub fn execute<'a>(
    plan: &'a Plan,
    lock: &mut Lock,
    outputs: Option<&[usize]>,
    options: Options,
    watch: &Watch,
) -> Result<Report<'a>> {
    check(plan, outputs, options)?;
    let outputs: BTreeSet<usize> =
        outputs.map_or_else(|| (0..plan.outputs.len()).collect(), |o| o.iter().copied().collect());
    let read = || {
        let headers = plan.read_headers(watch)?;
        Ok((plan.check(&headers)?, headers))
    };
    let (reads, headers) = pool(options.threads, read)??;
    let writer = Writer::new(plan, lock.partial(), options.sync)?;
    let mut order: Vec<usize> = outputs.iter().flat_map(|output| writer.layout(*output).tasks.clone()).collect();
    order.sort_by_key(|task| plan.tasks[*task].reading);
    let resident = order.iter().map(|task| task::resident(plan, *task, &headers)).collect::<Result<_>>()?;
    let inputs = Inputs::new(plan, headers, &order, options.mmap);
    let total = |(task, bytes): (usize, &usize)| {
        (*bytes as u64 * plan.tasks[task].by.sweeps(), plan.written()[task].bytes.len() as u64)
    };
    let totals: Vec<_> = reads.iter().enumerate().map(total).collect();
    let sum = |of: fn(&(u64, u64)) -> u64| order.iter().map(|task| of(&totals[*task])).sum();
    watch.expect(sum(|total| total.0), sum(|total| total.1));
    let journal = Journal::open(lock, plan, &outputs, options.sync, watch)?;
    // First, so that it exists when the last output is complete, whichever process completes it.
    writer.write_index(lock.partial())?;
    let done = plan.tasks.iter().map(|_| OnceLock::new()).collect();
    let resumed = Resumed::default();
    let run = Run { plan, options, watch, writer: &writer, journal: &journal, inputs: &inputs, totals, done, resumed };
    let ran = run.all(&order, &outputs, resident);
    if !matches!(ran, Err(Error::Io { .. } | Error::Cancelled)) {
        // Data that changed during the run make the reported problem, and the claims, unreliable.
        run.check_inputs(&order, &outputs, ran.as_ref().err())?;
    }
    ran.map_err(|error| match error {
        Error::NonFinite(why) => {
            let partial = lock.partial().display();
            Error::NonFinite(format!("{why}; finished work is kept in {partial} for the same merge"))
        }
        error => error,
    })?;
    run.report(plan, &outputs, lock)
}

/// Checks the requested options.
fn check(plan: &Plan, outputs: Option<&[usize]>, options: Options) -> Result<()> {
    let fault = |reason: String| Err(Error::Merge(reason));
    if options.tile == 0 || !options.tile.is_multiple_of(BLOCK) || options.tile > 1 << 30 {
        return fault(format!("tile of {} elements: wanted a multiple of {BLOCK}, at most 2^30", options.tile));
    }
    if options.threads == Some(0) {
        return fault("threads: 0, wanted at least 1".into());
    }
    let files = plan.outputs.len();
    match outputs.into_iter().flatten().find(|output| **output >= files) {
        Some(output) => fault(format!("output {output}: the plan has {files} output files, counted from 0")),
        None => Ok(()),
    }
}

/// Queues a finished output file to be closed.
fn hand_over(output: usize, finished: &SyncSender<usize>) {
    // Ends when all senders are dropped.
    let _ = finished.send(output);
}

impl Run<'_> {
    /// Runs the tasks of some output files, and closes each file after its last task.
    fn all(&self, order: &[usize], outputs: &BTreeSet<usize>, resident: Vec<usize>) -> Result<()> {
        let schedule = Schedule::new(resident, budget::budget(self.options.memory));
        let (send, finished) = sync_channel(CLOSING);
        std::thread::scope(|scope| {
            // Sync in a thread of its own, so that workers do not wait for the disk.
            let closer = scope.spawn(|| self.close_all(finished, order, &schedule));
            // A file without tensors has no last task to end it.
            let empty = outputs.iter().filter(|output| self.writer.layout(**output).tasks.is_empty());
            empty.for_each(|output| hand_over(*output, &send));
            let work = |position: usize| self.task(order[position], &send);
            pool(self.options.threads, || schedule.run(work))?;
            drop(send);
            closer.join().map_err(|_| Error::Panic("the thread that closes files died".into()))?;
            schedule.result()
        })
    }

    /// Syncs and closes finished output files one by one, and reports each.
    fn close_all(&self, finished: Receiver<usize>, order: &[usize], schedule: &Schedule) {
        for output in finished {
            if self.watch.check().is_err() {
                continue; // a sync may take long, and a resume does it
            }
            let tasks = self.writer.layout(output).tasks.clone();
            self.close(output).unwrap_or_else(|error| {
                let last = order.iter().rposition(|task| tasks.contains(task)).unwrap_or(0);
                schedule.fail(last, error);
            });
        }
    }

    fn close(&self, output: usize) -> Result<()> {
        let tasks = self.writer.layout(output).tasks.clone();
        self.inputs.unchanged(self.inputs.read_by(tasks.clone()))?;
        if let Err(error) = self.writer.close(output) {
            // Data that the system failed to write may still look complete while cached.
            self.journal.void(tasks)?;
            return Err(error);
        }
        self.journal.complete(output)?;
        self.journal.close(output);
        self.watch.finish_output(&self.plan.outputs[output].name);
        Ok(())
    }

    /// Fails if an input changed since it was checked, and retracts all claims made from it. `failed` is the error that
    /// ended the run.
    fn check_inputs(&self, order: &[usize], outputs: &BTreeSet<usize>, failed: Option<&Error>) -> Result<()> {
        let (changes, reported) = self.inputs.changes(self.inputs.read_by(order.iter().copied()));
        let changed: BTreeSet<usize> = changes.into_iter().map(|(input, _)| input).collect();
        if changed.is_empty() {
            // A failed run reports its own error.
            return if failed.is_some() { Ok(()) } else { reported };
        }
        for output in outputs {
            let of_changed = |task: &usize| !inputs::inputs_of(self.plan, *task).is_disjoint(&changed);
            self.journal.void(self.writer.layout(*output).tasks.clone().filter(of_changed))?;
            self.journal.close(*output);
        }
        self.inputs.unchanged(changed).map_err(|error| match (error, failed) {
            (Error::Changed(why), Some(read @ Error::Read { .. })) => Error::Changed(format!("{why}\n- {read}")),
            (error, _) => error,
        })
    }

    /// Returns the checksum of each tensor of an output file, joined from those of its tasks.
    fn checksums(&self, output: usize) -> Vec<Crc> {
        let layout = self.writer.layout(output);
        let mut crcs = vec![Crc::EMPTY; layout.tensors.len()];
        for task in layout.tasks.clone() {
            let tensor = &mut crcs[self.plan.written()[task].tensor - layout.tensors.start];
            *tensor = tensor.join(self.done[task].get().copied().unwrap_or(Crc::EMPTY));
        }
        crcs
    }

    /// Builds the report; if a digest was requested, the finished files are read back.
    fn report<'a>(&self, plan: &'a Plan, outputs: &BTreeSet<usize>, lock: &Lock) -> Result<Report<'a>> {
        let mut digests: HashMap<usize, HashMap<_, _>> = HashMap::new();
        if self.options.digest.is_some() {
            let sum = |output: &usize| {
                let path = lock.partial().join(&self.plan.outputs[*output].name);
                let sums = audit::sum_file(&path, self.options.digest, self.options.mmap, self.watch)?.tensors;
                Ok((*output, sums.into_iter().map(|sum| (sum.name, sum.digest)).collect()))
            };
            digests = pool(self.options.threads, || outputs.iter().map(sum).collect::<Result<_>>())??;
        }
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        for output in outputs {
            let crcs = self.checksums(*output);
            files.push(report::file(plan, self.writer, *output, &crcs));
            let mut digests = digests.remove(output).unwrap_or_default();
            tensors.extend(report::tensors(plan, self.writer, *output, &crcs, &mut digests));
        }
        let (read, written) = self.watch.progress();
        Ok(Report {
            plan_digest: self.journal.plan_digest().to_owned(),
            files,
            tensors,
            bytes_read: read - self.resumed.read.load(Ordering::Relaxed),
            bytes_written: written - self.resumed.written.load(Ordering::Relaxed),
            resumed: self.resumed.tasks.load(Ordering::Relaxed),
            warning: lock.warning(),
        })
    }
}
