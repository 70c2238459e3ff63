//! Everything that can be checked before a byte is written.
use super::journal::{self, Found};
use super::lock::Lock;
use super::writer::bytes_needed;
use crate::error::{Error, Result};
use crate::plan::{Method, Plan};
use crate::shard::{Shard, Tensor};
use crate::watch::{Watch, pool};
use rayon::prelude::*;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::sync::Arc;

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
pub fn preflight(plan: &Plan, lock: &mut Lock, discard: bool, watch: &Watch) -> Result<Preflight> {
    let shards = plan.open_inputs()?;
    plan.check(&shards)?;
    pool(None, || check_equal_copies(plan, &shards, watch))??;
    let partial = lock.partial().to_path_buf();
    let place = partial.display();
    let resumable = match journal::inspect(lock, plan)? {
        Found::Nothing => 0,
        Found::Claims(claimed) => claimed,
        Found::OtherPlan | Found::Unreadable if discard => {
            lock.clear()?;
            0
        }
        Found::OtherPlan => {
            return Err(Error::Merge(format!(
                "{place}: holds the unfinished work of another merge; finish that one, remove the directory, or pass \
                 --discard-partial"
            )));
        }
        Found::Unreadable => {
            return Err(Error::Merge(format!(
                "{place}: holds unfinished work whose journal is damaged or of another version of mol, so nothing of it \
                 can be used; pass --discard-partial, or remove the directory"
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
    let claimed: u64 = plan.outputs.iter().map(|output| claimed_bytes(&partial.join(&output.name))).sum();
    let needed = bytes_needed(plan)?.saturating_sub(claimed);
    if needed > free {
        let (needed, free, existing) = (size(needed), size(free), existing.display());
        return Err(Error::Merge(format!(
            "{existing}: the merge needs {needed}, the disk has {free} free; free some or choose another OUT"
        )));
    }
    Ok(Preflight { bytes_needed: needed, bytes_free: free, resumable })
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    if bytes < 1_000_000 { format!("{bytes} bytes") } else { format!("{:.3} GB", bytes as f64 / 1e9) }
}

/// Bytes that a file holds on the disk; a file that is not there holds none.
fn claimed_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// Compares what is to be copied and must be equal, piece by piece on all cores.
fn check_equal_copies(plan: &Plan, shards: &[Arc<Shard>], watch: &Watch) -> Result<()> {
    let copies = plan.tasks.iter().filter(|task| matches!(task.by, Method::Copy(_)) && task.of.len() > 1);
    let copies: Vec<_> = copies.map(|task| task.resolve(shards)).collect::<Result<_>>()?;
    let mut pairs: Vec<[(&Shard, &Tensor); 2]> = Vec::new();
    for tensors in &copies {
        pairs.extend(tensors[1..].iter().map(|other| [tensors[0], *other]));
    }
    let bytes = pairs.iter().flatten().map(|(_, tensor)| tensor.bytes.len()).sum::<usize>();
    watch.expect(bytes as u64, 0);
    let differ = |[(first_shard, first), (shard, tensor)]: &[(&Shard, &Tensor); 2]| {
        let pieces = first_shard.bytes(first).par_chunks(1 << 20).zip(shard.bytes(tensor).par_chunks(1 << 20));
        let equal = pieces.map(|(a, b)| {
            watch.check()?;
            watch.add_read(a.len() + b.len());
            Ok(a == b)
        });
        let equal = tensor.dtype == first.dtype && equal.try_reduce(|| true, |a, b| Ok(a && b))?;
        Ok((!equal).then(|| {
            let (path, other) = (shard.path.display(), first_shard.path.display());
            let Tensor { name, dtype, .. } = tensor;
            format!("{path}: tensor `{name}` ({dtype}) differs from `{}` in {other}", first.name)
        }))
    };
    let problems: Vec<Option<String>> = pairs.par_iter().map(differ).collect::<Result<_>>()?;
    let problems: Vec<String> = problems.into_iter().flatten().collect();
    if problems.is_empty() {
        return Ok(());
    }
    let rule = "tensors that cannot be averaged must be equal in all inputs";
    Err(Error::Merge(format!("{rule}:\n- {}", problems.join("\n- "))))
}
