//! How much memory the tasks of a run may hold together.
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
