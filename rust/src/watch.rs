//! Progress and cancel, shared between the pool and whoever waits for it; and the pool.
use crate::error::{Error, Result};
use crate::simd::default_float_mode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How far the work is, and whether it shall go on.
#[derive(Debug, Default)]
pub struct Watch {
    cancelled: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    totals: OnceLock<(u64, u64)>,
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

    /// Bytes to read and to write, once the inputs have been opened.
    pub fn totals(&self) -> Option<(u64, u64)> {
        self.totals.get().copied()
    }

    /// Tells what `totals` returns.
    pub(crate) fn expect(&self, read: u64, written: u64) {
        self.totals.get_or_init(|| (read, written));
    }

    /// Fails once cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn add_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A pool of one's own; all cores where `threads` is `None`.
pub fn pool(threads: Option<usize>) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .start_handler(|_| default_float_mode())
        .thread_name(|i| format!("mol-{i}"))
        // A thread that waits for tiles takes up another tensor on the same stack.
        .stack_size(16 << 20)
        .build()
        .map_err(|e| Error::Merge(format!("cannot start the thread pool: {e}")))
}
