//! Checks everything that can be checked before a byte is written.
use super::begin::{Found, inspect};
use super::inputs::Inputs;
use super::lock::Lock;
use super::task::spilled;
use super::writer::bytes_needed;
use crate::container::{Entry, Header};
use crate::error::{Error, Result};
use crate::plan::{Method, Plan};
use crate::watch::{Watch, pool};
use rayon::prelude::*;
use serde::Serialize;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The result of preflight.
#[derive(Debug, Serialize)]
pub struct Preflight {
    /// Bytes still to be allocated on the disk, those of spilled stages among them.
    pub bytes_needed: u64,
    /// Bytes free there.
    pub bytes_free: u64,
    /// Tensors that an earlier run of the same plan claims to have finished.
    pub resumable: usize,
}

/// Checks everything that can be checked before a byte is written: inputs, plan, copies that must be equal, an existing
/// partial directory, disk space. With `discard` a partial directory of other work is removed. `threads` and `mmap` are
/// as in [`super::Options`].
pub fn preflight(
    plan: &Plan,
    lock: &mut Lock,
    discard: bool,
    threads: Option<usize>,
    mmap: Option<bool>,
    watch: &Watch,
) -> Result<Preflight> {
    let read = || {
        let headers = plan.read_headers(watch)?;
        plan.check(&headers)?;
        let spilled = spilled(plan, &headers, rayon::current_num_threads())?;
        check_equal_copies(plan, headers, mmap, watch)?;
        Ok(spilled)
    };
    let spilled = pool(threads, read)??;
    let partial = lock.partial().to_path_buf();
    let shown = partial.display();
    let resumable = match inspect(lock, plan)? {
        Found::Nothing => 0,
        Found::Claims(claimed) => claimed,
        Found::OtherPlan | Found::Unreadable if discard => {
            lock.clear()?;
            0
        }
        Found::OtherPlan => {
            return Err(Error::Merge(format!(
                "{shown}: contains unfinished work of another merge; finish that one, remove the directory, or pass \
                 --discard-partial"
            )));
        }
        Found::Unreadable => {
            return Err(Error::Merge(format!(
                "{shown}: contains unfinished work whose journal is damaged or of another version of mol, so nothing of it \
                 can be used; pass --discard-partial, or remove the directory"
            )));
        }
        Found::Foreign => {
            return Err(Error::Merge(format!(
                "{shown}: is needed for the unfinished work, but contains files that are not mol's; remove it, or choose \
                 another OUT"
            )));
        }
    };
    let parent = partial.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let existing = parent.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let space = rustix::fs::statvfs(existing).map_err(|e| Error::io(existing)(e.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let claimed: u64 = plan.outputs.iter().map(|output| claimed_bytes(&partial.join(&output.name))).sum();
    let needed = bytes_needed(plan)?.saturating_sub(claimed).saturating_add(spilled);
    if needed > free {
        let (needed, free, existing) = (size(needed), size(free), existing.display());
        return Err(Error::Merge(format!(
            "{existing}: the merge needs {needed}, the disk has {free} free; free some or choose another OUT"
        )));
    }
    Ok(Preflight { bytes_needed: needed, bytes_free: free, resumable })
}

/// Formats a size for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Returns the bytes that a file occupies on disk; 0 if it does not exist.
fn claimed_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// Compares tensors that are copied and must be equal, chunk by chunk on all cores.
fn check_equal_copies(plan: &Plan, headers: Vec<Arc<Header>>, mmap: Option<bool>, watch: &Watch) -> Result<()> {
    let copies = |task: &usize| matches!(plan.tasks[*task].by, Method::Copy(_)) && plan.tasks[*task].of.len() > 1;
    let copies: Vec<usize> = (0..plan.tasks.len()).filter(copies).collect();
    let mut bytes = 0;
    for task in &copies {
        for (input, name) in &plan.tasks[*task].tensors()?[1..] {
            bytes += 2 * headers[*input].tensor(name)?.bytes.len();
        }
    }
    watch.expect(bytes as u64, 0);
    let inputs = Inputs::new(plan, headers, &copies, mmap);
    let check = |task: &usize| {
        let problems = differences(plan, &inputs, *task, watch)?;
        inputs.leave(*task)?;
        Ok(problems)
    };
    let problems: Vec<Vec<String>> = copies.par_iter().map(check).collect::<Result<_>>()?;
    let problems = problems.concat();
    if problems.is_empty() {
        return Ok(());
    }
    let rule = "tensors that cannot be averaged must be equal in all inputs, unless an entry of `rules` takes those of \
                one (`filter: NAME`, `copy: MODEL`)";
    Err(Error::Merge(format!("{rule}:\n- {}", problems.join("\n- "))))
}

/// Returns which of the tensors that a copy reads differ in origin from the first.
fn differences(plan: &Plan, inputs: &Inputs, task: usize, watch: &Watch) -> Result<Vec<String>> {
    let tensors = plan.tasks[task].tensors()?;
    let mut problems = Vec::new();
    let (mine, of_mine) = (inputs.open(tensors[0].0)?, tensors[0].1);
    let first = mine.header.tensor(of_mine)?;
    for (input, name) in &tensors[1..] {
        let file = inputs.open(*input)?;
        let tensor = file.header.tensor(name)?;
        let equal = |rooms: &mut [Vec<u8>; 2], at: Range<usize>| {
            watch.check()?;
            let [a, b] = rooms;
            let (a, b) = (mine.lend(first, at.clone(), a)?, file.lend(tensor, at, b)?);
            watch.add_read(a.len() + b.len());
            Ok(a == b)
        };
        let alike = (&tensor.dtype, &tensor.shape) == (&first.dtype, &first.shape);
        let chunks = tensor.chunks().into_par_iter();
        if !(alike && chunks.map_init(Default::default, equal).try_reduce(|| true, |a, b| Ok(a && b))?) {
            let (path, other) = (file.header.path.display(), mine.header.path.display());
            let Entry { name, dtype, .. } = tensor;
            problems.push(format!("{path}: tensor `{name}` ({dtype}) differs from `{of_mine}` in {other}"));
        }
    }
    Ok(problems)
}
