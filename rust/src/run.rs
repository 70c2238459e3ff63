//! A plan on its way: how it is run, what all its tensors share, and what it costs.
use crate::audit::Digest;
use crate::journal::Journal;
use crate::plan::{Place, Plan, Task};
use crate::shard::Shard;
use crate::simd::Simd;
use crate::sweep::PIECE;
use crate::watch::Watch;
use crate::writer::Writer;
use std::sync::Arc;

/// Elements of a tile where nothing else is asked: small enough for the second-level cache.
pub const TILE: usize = 1 << 18;

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
    /// Whether the result shall be on the disk at the end.
    pub sync: bool,
}

/// A plan on its way.
pub(crate) struct Run<'a> {
    pub plan: &'a Plan,
    /// Bytes that a sweep of each task reads.
    pub reads: &'a [usize],
    pub shards: &'a [Arc<Shard>],
    pub writer: &'a Writer,
    pub journal: &'a Journal,
    pub options: Options,
    pub watch: &'a Watch,
}

/// Heap that a run takes at most beside the plan itself, in bytes: for each thread a tile of the output, a piece of it and
/// two of each source, and what the method holds.
pub fn heap(plan: &Plan, threads: Option<usize>, tile: usize) -> usize {
    let of_task = |(task, place): (&Task, &Place)| {
        let (sources, element) = (task.of.len(), size_of::<f64>());
        let ((rows, columns), elements) = (place.shape(), place.elements.len());
        let pieces = (1 + 2 * sources) * PIECE.min(elements) * element;
        tile.min(elements) * element + pieces + task.by.resident(rows, columns, sources)
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    threads.unwrap_or_else(cores).saturating_mul(plan.tasks.iter().zip(plan.written()).map(of_task).max().unwrap_or(0))
}
