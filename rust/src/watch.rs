//! Progress and cancellation, shared between worker threads and the thread that waits for them; and the worker threads.
use crate::error::{Error, Result};
use crate::simd::default_float_mode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Progress of a run, and whether it was cancelled.
#[derive(Debug, Default)]
pub struct Watch {
    cancelled: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    totals: OnceLock<(u64, u64)>,
    outputs: Mutex<Vec<String>>,
}

impl Watch {
    /// Requests cancellation; workers stop within a tile.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns the bytes read and written so far.
    pub fn progress(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// Returns the bytes to read and to write, once the inputs are open.
    pub fn totals(&self) -> Option<(u64, u64)> {
        self.totals.get().copied()
    }

    /// Sets the totals, once.
    pub(crate) fn expect(&self, read: u64, written: u64) {
        self.totals.get_or_init(|| (read, written));
    }

    /// Returns an error if cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Returns the names of the output files finished since the last call.
    pub fn finished_outputs(&self) -> Vec<String> {
        std::mem::take(&mut *self.outputs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn finish_output(&self, name: &str) {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    pub(crate) fn add_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Runs `work` on its own worker threads, one per core if `threads` is `None`; they have ended when it returns.
pub fn pool<T: Send>(threads: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        let spawn = |thread: rayon::ThreadBuilder| {
            let named = std::thread::Builder::new().name(format!("mol-{}", thread.index()));
            workers.push(named.spawn_scoped(scope, || {
                default_float_mode();
                thread.run();
            })?);
            Ok(())
        };
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).spawn_handler(spawn);
        let pool = builder.build().map_err(|e| Error::Merge(format!("cannot start the worker threads: {e}")))?;
        let done = pool.install(work);
        drop(pool);
        // `scope` waits for their work, not for the threads to exit.
        for worker in workers {
            drop(worker.join());
        }
        Ok(done)
    })
}
