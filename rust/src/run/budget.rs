//! How much memory the tasks of a run may hold together, and what a run takes.
use super::task::{self, spilled};
use super::writer::bytes_needed;
use crate::error::Result;
use crate::plan::{Expr, Plan, Region, Task};
use crate::sweep::STRIP;
use crate::watch::{Watch, pool};
use std::fs;
use std::path::Path;

/// The fraction of available memory that tasks may hold by default.
const SHARE: u64 = 4;

/// Returns the bytes that tasks may hold together in addition to their strips: as requested, else a quarter of the
/// available memory.
pub(crate) fn budget(requested: Option<u64>) -> usize {
    let bytes = requested.unwrap_or_else(|| available().map_or(u64::MAX, |available| available / SHARE));
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Returns the bytes that the process can still allocate, if the system reports it: by the machine or by the control
/// group.
fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok();
    let machine = meminfo.as_deref().and_then(|text| field(text, "MemAvailable:")).map(|kib| kib << 10);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let root = Path::new("/sys/fs/cgroup");
    let limits = group.into_iter().flat_map(|group| root.join(group).ancestors().map(left).collect::<Vec<_>>());
    machine.into_iter().chain(limits.flatten()).min()
}

/// Returns the remaining memory of a control group; its page cache can be reclaimed.
fn left(group: &Path) -> Option<u64> {
    let limit: u64 = fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()?;
    let used = fs::read_to_string(group.join("memory.stat")).ok().and_then(|text| field(&text, "anon"));
    Some(limit.saturating_sub(used.unwrap_or(0)))
}

/// Parses the number after a key at the start of a line.
fn field(text: &str, word: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| words.next().filter(|first| *first == word).and(words.next())?.parse().ok())
}

/// Returns the bytes of a run's output files, of its spilled stages on the disk, and its maximum heap use in addition to
/// the plan: per thread an output tile, a strip of it and two of each source, and what methods and sources hold, as far
/// as `memory` lets several tasks hold it at once. Headers of the inputs are read if a source is an expression over
/// others.
pub fn cost(plan: &Plan, threads: Option<usize>, tile: usize, memory: Option<u64>) -> Result<(u64, u64, usize)> {
    let of_task = |(task, region): (&Task, &Region)| {
        let (sources, elements) = (task.of.len(), region.elements.len());
        (tile.min(elements) + (1 + 2 * sources) * STRIP.min(elements)) * size_of::<f64>()
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or_else(cores);
    let made = plan.tasks.iter().flat_map(|task| &task.of).any(|expr| matches!(expr, Expr::Made(_)));
    let headers = if made { pool(Some(threads), || plan.read_headers(&Watch::default()))?? } else { Vec::new() };
    let residents = (0..plan.tasks.len()).map(|task| task::resident(plan, task, &headers));
    let one = residents.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
    let held = one.saturating_mul(threads).min(budget(memory).max(one));
    let strips = plan.tasks.iter().zip(plan.written()).map(of_task).max().unwrap_or(0);
    let heap = strips.saturating_mul(threads).saturating_add(held);
    Ok((bytes_needed(plan)?, spilled(plan, &headers, threads)?, heap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_wins() {
        assert_eq!(budget(Some(7)), 7);
        assert!(budget(None) > 0);
    }

    #[test]
    fn the_number_behind_a_word() {
        let text = "MemTotal: 5 kB\nMemAvailable:   3 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(3));
        assert_eq!(field(text, "Mem"), None);
    }
}
