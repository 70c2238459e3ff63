//! Schedules tasks: each worker thread takes the next one in output order, as far as memory allows, and helps with
//! tiles of running tasks when none is left.
use crate::error::{Error, Result};
use rayon::Yield;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a worker thread that waits for memory sleeps before it looks for tiles again.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct State {
    /// The next task to start.
    next: usize,
    running: usize,
    /// Bytes held by running tasks.
    held: usize,
    /// The lowest task that failed. None above it starts and those below it complete, so the reported task is always
    /// the same.
    failed: Option<(usize, Error)>,
    stopped: bool,
}

/// The tasks of a run, in starting order.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Bytes that each task holds until it ends.
    resident: Vec<usize>,
    /// Bytes that all tasks may hold together. A task that needs more runs alone.
    budget: usize,
    state: Mutex<State>,
    ended: Condvar,
}

enum Next {
    Task(usize),
    Wait,
    End,
}

impl Schedule {
    pub fn new(resident: Vec<usize>, budget: usize) -> Self {
        Self { resident, budget, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Runs all tasks on the current worker threads.
    pub fn run(&self, work: impl Fn(usize) -> Result<()> + Sync) {
        // A worker thread that waits for the tiles of its task takes other tiles, never another task.
        rayon::broadcast(|_| {
            loop {
                match self.next() {
                    Next::End => return,
                    Next::Task(task) => {
                        let _running = Running { schedule: self, task };
                        work(task).unwrap_or_else(|error| self.fail(task, error));
                    }
                    Next::Wait if rayon::yield_now() == Some(Yield::Executed) => {}
                    Next::Wait => drop(self.ended.wait_timeout(self.state(), PAUSE)),
                }
            }
        });
    }

    /// Returns the error of the lowest task that failed.
    pub fn result(&self) -> Result<()> {
        self.state().failed.take().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Stops starting tasks, because of a failure at `task`.
    pub fn fail(&self, task: usize, error: Error) {
        let mut state = self.state();
        if state.failed.as_ref().is_none_or(|(lowest, _)| task < *lowest) {
            state.failed = Some((task, error));
        }
        state.stopped = true;
    }

    fn next(&self) -> Next {
        let mut state = self.state();
        let Some(&bytes) = self.resident.get(state.next).filter(|_| !state.stopped) else { return Next::End };
        if state.running > 0 && state.held.saturating_add(bytes) > self.budget {
            return Next::Wait;
        }
        state.next += 1;
        state.running += 1;
        state.held += bytes;
        Next::Task(state.next - 1)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running task; releases the memory it holds however it ends.
struct Running<'a> {
    schedule: &'a Schedule,
    task: usize,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.schedule.state();
        state.running -= 1;
        state.held -= self.schedule.resident[self.task];
        state.stopped |= std::thread::panicking();
        self.schedule.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn in_pool(threads: usize, schedule: &Schedule, work: impl Fn(usize) -> Result<()> + Sync + Send) -> Result<()> {
        crate::watch::pool(Some(threads), || schedule.run(work))?;
        schedule.result()
    }

    #[test]
    fn tasks_start_in_order_and_all_of_them() {
        for threads in [1, 2, 3, 7] {
            let begun = Mutex::new(Vec::new());
            let schedule = Schedule::new(vec![0; 100], 0);
            let window = AtomicUsize::new(0);
            let work = |task| {
                window.fetch_max(task, Ordering::SeqCst);
                assert!(window.load(Ordering::SeqCst) < task + threads, "not further ahead than there are workers");
                begun.lock().unwrap().push(task);
                Ok(())
            };
            in_pool(threads, &schedule, work).unwrap();
            let mut begun = begun.into_inner().unwrap();
            begun.sort_unstable();
            assert_eq!(begun, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_lowest_failure_is_reported_and_nothing_above_it_starts() {
        for _ in 0..50 {
            let last = AtomicUsize::new(0);
            let work = |task| {
                last.fetch_max(task, Ordering::SeqCst);
                if task == 12 {
                    std::thread::sleep(Duration::from_millis(1)); // 13 and 14 fail earlier
                }
                if task >= 12 { Err(Error::Merge(task.to_string())) } else { Ok(()) }
            };
            let error = in_pool(3, &Schedule::new(vec![0; 1000], 0), work).unwrap_err();
            assert_eq!(error.to_string(), "12");
            assert!(last.into_inner() < 18);
        }
    }

    #[test]
    fn tasks_wait_for_memory_and_a_large_one_runs_alone() {
        let resident: Vec<usize> = (0..60).map(|task| [30, 50, 1000][task % 3]).collect();
        let (held, most) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        let work = |task: usize| {
            held.lock().unwrap().push(resident[task]);
            let now = held.lock().unwrap().clone();
            assert!(now.iter().sum::<usize>() <= 100 || now.len() == 1, "{now:?}");
            most.fetch_max(now.len(), Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(300));
            let mut held = held.lock().unwrap();
            let mine = held.iter().position(|bytes| *bytes == resident[task]).unwrap();
            held.remove(mine);
            Ok(())
        };
        in_pool(4, &Schedule::new(resident.clone(), 100), work).unwrap();
        assert!(most.into_inner() <= 2);
    }

    #[test]
    fn a_panic_stops_the_others() {
        let schedule = Schedule::new(vec![10; 1000], 10);
        let run = || in_pool(3, &schedule, |task| if task == 5 { panic!("defect") } else { Ok(()) });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        assert!(schedule.state().next < 10);
    }
}
