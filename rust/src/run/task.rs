//! Runs one task: accepts an earlier run's result if it holds, else computes it; then releases its inputs.
use super::claims::Claim;
use super::{Options, Run, hand_over};
use crate::container::Header;
use crate::crc::Crc;
use crate::draw;
use crate::encode;
use crate::error::{Error, Result};
use crate::job::{Done, Job};
use crate::plan::{Expr, Plan};
use crate::source::{self, Settings, Stages, repeated};
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

/// Bytes per chunk when reading back or copying.
const CHUNK: usize = 1 << 20;

thread_local! {
    /// Buffer in which this thread reads back.
    static READ_BACK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Returns the bytes that a task holds from start to end, in addition to its strips: by its method and its sources.
pub(super) fn resident(plan: &Plan, index: usize, headers: &[Arc<Header>]) -> Result<usize> {
    let (task, (rows, columns)) = (&plan.tasks[index], plan.written()[index].shape());
    let of_source = |expr: &Expr| match expr {
        Expr::Tensor(..) => Ok(0),
        Expr::Made(_) => Ok(source::measured(plan, expr, headers)?.0.resident()),
    };
    let own = task.by.resident(rows, columns, task.of.len());
    task.of.iter().try_fold(own, |sum, expr| Ok(sum.saturating_add(of_source(expr)?)))
}

/// Returns the maximum bytes that spilled stages take on the disk, if `threads` tasks run at a time.
pub(super) fn spilled(plan: &Plan, headers: &[Arc<Header>], threads: usize) -> Result<u64> {
    let size = |stage: &Expr| {
        let source = source::measured(plan, stage, headers)?.0;
        Ok((source.len() * source.float().bytes()) as u64)
    };
    let of_task = |task| repeated(plan, task).into_iter().map(size).sum::<Result<u64>>();
    let mut sizes = plan.tasks.iter().map(of_task).collect::<Result<Vec<_>>>()?;
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    Ok(sizes.into_iter().take(threads).sum())
}

impl Run<'_> {
    /// Runs one task, and closes its output file if it was the last.
    pub(super) fn task(&self, index: usize, finished: &SyncSender<usize>) -> Result<()> {
        self.watch.check()?;
        let crc = if let Some(crc) = self.resume(index)? {
            crc
        } else {
            let Done { crc, finite } = self.tensor(index)?;
            self.journal.claim(index, Claim { crc64nvme: crc.value, finite })?;
            crc
        };
        self.done[index].get_or_init(|| crc);
        self.inputs.leave(index)?;
        if self.writer.finish(index) {
            hand_over(self.plan.target(index).1.output, finished);
        }
        Ok(())
    }

    /// Returns the checksum of a task that an earlier run finished; retracts a claim that does not hold.
    fn resume(&self, index: usize) -> Result<Option<Crc>> {
        let Some(claim) = self.journal.claimed(index)? else { return Ok(None) };
        let bytes = self.plan.written()[index].bytes.len();
        if self.read_back(index)?.value != claim.crc64nvme {
            self.journal.void([index])?;
            return Ok(None);
        }
        let read = self.totals[index].0;
        self.watch.add_read(read as usize);
        self.watch.add_written(bytes);
        self.resumed.tasks.fetch_add(1, Ordering::Relaxed);
        self.resumed.read.fetch_add(read, Ordering::Relaxed);
        self.resumed.written.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Some(Crc::known(claim.crc64nvme, bytes)))
    }

    /// Computes the checksum of the bytes that the output file holds for a task.
    fn read_back(&self, index: usize) -> Result<Crc> {
        let bytes = self.plan.written()[index].bytes.len();
        let chunk = |i: usize| {
            self.watch.check()?;
            READ_BACK.with_borrow_mut(|buffer| {
                buffer.resize(CHUNK, 0);
                let chunk = &mut buffer[..CHUNK.min(bytes - i * CHUNK)];
                self.writer.read(index, i * CHUNK, chunk)?;
                Ok(Crc::of(chunk))
            })
        };
        let chunks: Vec<Crc> = (0..bytes.div_ceil(CHUNK)).into_par_iter().map(chunk).collect::<Result<_>>()?;
        Ok(chunks.into_iter().fold(Crc::EMPTY, Crc::join))
    }

    fn tensor(&self, index: usize) -> Result<Done> {
        let (task, (region, tensor)) = (&self.plan.tasks[index], self.plan.target(index));
        let Some(encoding) = encode::of(tensor.dtype) else { return self.copy_bytes(index) };
        let open = |input: usize| self.inputs.open(input);
        // Elements are counted from a task's first row, so the row is part of the key: otherwise tasks of one tensor
        // would draw the same numbers.
        let drawn = match region.elements.start {
            0 => tensor.name.clone(),
            start => format!("{}[{start}]", tensor.name),
        };
        let Options { tile, simd, mmap, .. } = self.options;
        let settings = Settings { tile, simd, watch: self.watch, key: draw::key(self.plan.seed, &drawn) };
        let stages = Stages::of(self.plan, index, &self.writer.scratch, mmap, settings);
        let build = |expr| Ok(source::build(self.plan, expr, &open, &stages)?.0);
        let sources = task.of.iter().map(build).collect::<Result<_>>()?;
        let allow_nonfinite = self.plan.allow_nonfinite;
        let job = Job { name: &tensor.name, encoding: &*encoding, method: &task.by, settings, allow_nonfinite };
        job.run(sources, &|offset, bytes| self.writer.write(index, offset, bytes))
    }

    /// Copies integers and bools byte for byte.
    fn copy_bytes(&self, index: usize) -> Result<Done> {
        let Some(Expr::Tensor(input, name)) = self.plan.tasks[index].of.first() else {
            return Err(Error::Panic("integers that are not copied".into()));
        };
        let file = self.inputs.open(*input)?;
        let tensor = file.header.tensor(name)?;
        let (mut crc, mut room) = (Crc::EMPTY, Vec::new());
        for at in tensor.chunks() {
            self.watch.check()?;
            let chunk = file.lend(tensor, at.clone(), &mut room)?;
            self.writer.write(index, at.start, chunk)?;
            crc = crc.join(Crc::of(chunk));
            self.watch.add_written(chunk.len());
        }
        self.watch.add_read(self.totals[index].0 as usize);
        Ok(Done { crc, finite: true })
    }
}
