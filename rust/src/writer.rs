//! The output files: headers from the plan, sized up front, tiles written at their offsets, one rename at the end.
use crate::error::{Error, Result};
use crate::journal;
use crate::plan::Plan;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The index that tells which file holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// One output file.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
    /// Length and header.
    prefix: Vec<u8>,
    size: u64,
}

/// All output files of a plan.
#[derive(Debug)]
pub struct Writer {
    outputs: Vec<Output>,
    /// Output and offset of each task.
    places: Vec<(usize, u64)>,
}

/// The header of one output, and the offset of each of its tensors behind it.
fn header(plan: &Plan, output: usize) -> Result<(Vec<u8>, Vec<u64>, u64)> {
    let quote = |text: &str| serde_json::to_string(text).map_err(|e| Error::Panic(format!("header: {e}")));
    // transformers before 5 refuse a file whose metadata lack the format.
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut offsets = Vec::new();
    let mut end = 0;
    for task in plan.tasks.iter().filter(|task| task.output == output) {
        let (from, to) = (end, end + task.bytes() as u64);
        let (name, dtype) = (quote(&task.name)?, task.dtype);
        let shape = serde_json::to_string(&task.shape).map_err(|e| Error::Panic(format!("header: {e}")))?;
        let written = write!(json, r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#);
        written.map_err(|e| Error::Panic(format!("header: {e}")))?;
        offsets.push(from);
        end = to;
    }
    json.push('}');
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut prefix = (json.len() as u64).to_le_bytes().to_vec();
    prefix.extend_from_slice(json.as_bytes());
    Ok((prefix, offsets, end))
}

/// Claims the disk space of a file where the file system can, which also keeps its blocks together.
fn allocate(file: &File, size: u64) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return file.set_len(size),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    file.set_len(size)
}

impl Writer {
    /// Creates the files of a plan in `partial`, or opens those that an earlier run left.
    pub fn open(plan: &Plan, partial: &Path) -> Result<Self> {
        let (mut outputs, mut places) = (Vec::new(), Vec::with_capacity(plan.tasks.len()));
        for (index, name) in plan.outputs.iter().enumerate() {
            let path = partial.join(name);
            let (prefix, offsets, data) = header(plan, index)?;
            let size = prefix.len() as u64 + data;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(Error::io(&path))?;
            allocate(&file, size).and_then(|()| file.write_all_at(&prefix, 0)).map_err(Error::io(&path))?;
            places.extend(offsets.into_iter().map(|offset| (index, prefix.len() as u64 + offset)));
            outputs.push(Output { path, file, prefix, size });
        }
        Ok(Self { outputs, places })
    }

    /// Writes bytes of a task's tensor, `offset` bytes from its start.
    pub fn write(&self, task: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let (output, start) = self.places[task];
        let Output { path, file, .. } = &self.outputs[output];
        file.write_all_at(bytes, start + offset as u64).map_err(Error::io(path))
    }

    /// Reads back bytes of a task's tensor.
    pub fn read(&self, task: usize, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let (output, start) = self.places[task];
        let Output { path, file, .. } = &self.outputs[output];
        file.read_exact_at(bytes, start + offset as u64).map_err(Error::io(path))
    }

    /// The length and header of an output, and its size.
    pub fn output(&self, index: usize) -> (&[u8], u64) {
        (&self.outputs[index].prefix, self.outputs[index].size)
    }

    /// Writes the index of a checkpoint in several files.
    pub fn write_index(&self, plan: &Plan, partial: &Path) -> Result<()> {
        if plan.outputs.len() < 2 {
            return Ok(());
        }
        let weight_map: BTreeMap<&str, &str> =
            plan.tasks.iter().map(|task| (task.name.as_str(), plan.outputs[task.output].as_str())).collect();
        let total_size: usize = plan.tasks.iter().map(crate::plan::TensorTask::bytes).sum();
        let index = serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        let text = serde_json::to_string_pretty(&index).map_err(|e| Error::Panic(format!("index: {e}")))?;
        let path = partial.join(INDEX);
        fs::write(&path, text + "\n").map_err(Error::io(&path))
    }
}

/// Bytes that the files of a plan take.
pub fn bytes_needed(plan: &Plan) -> Result<u64> {
    let sizes = (0..plan.outputs.len()).map(|i| header(plan, i).map(|(prefix, _, data)| prefix.len() as u64 + data));
    sizes.sum()
}

/// Syncs a file or directory to the disk.
fn sync_path(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path))
}

/// Syncs everything under a directory.
fn sync_tree(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io(directory))? {
        let path = entry.map_err(Error::io(directory))?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync_path(&path)? }
    }
    sync_path(directory)
}

/// Whether a directory is there and holds anything.
fn is_occupied(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(directory)(e)),
    }
}

/// Turns a finished partial directory into `out` by one rename. With `overwrite` an earlier `out` is exchanged for it and
/// then removed; without it, it is refused. `sync` waits until everything is on the disk. Returns what is left of the
/// earlier `out` and why, where it could not be removed: the new one is in its place all the same.
pub fn commit(partial: &Path, out: &Path, overwrite: bool, sync: bool) -> Result<Option<(PathBuf, Error)>> {
    if !journal::is_finished(partial)? {
        let partial = partial.display();
        return Err(Error::Merge(format!(
            "{partial}: holds no finished merge; run the same command again to finish it"
        )));
    }
    let occupied = is_occupied(out)?;
    if occupied && !overwrite {
        let out = out.display();
        return Err(Error::Merge(format!("{out}: exists and is not empty; choose another place or pass --overwrite")));
    }
    if sync {
        sync_tree(partial)?;
    }
    let replaced = if occupied {
        Some(swap(partial, out)?)
    } else {
        // A rename replaces an empty directory.
        fs::rename(partial, out).map_err(Error::io(out))?;
        None
    };
    let journal = out.join(journal::NAME);
    fs::remove_file(&journal).map_err(Error::io(&journal))?;
    if let (true, Some(parent)) = (sync, out.parent().filter(|parent| !parent.as_os_str().is_empty())) {
        sync_path(parent)?;
    }
    let left = |old: PathBuf| fs::remove_dir_all(&old).map_err(Error::io(&old)).err().map(|error| (old, error));
    Ok(replaced.and_then(left))
}

/// Puts `partial` in the place of `out`: at once where the system can, else with a moment in between where `out` is
/// missing. Returns where the earlier `out` is, which is not `partial`: that is the place of the next unfinished work.
fn swap(partial: &Path, out: &Path) -> Result<PathBuf> {
    let numbered =
        (0..).map(|n| partial.with_extension(if n == 0 { "replaced".into() } else { format!("replaced-{n}") }));
    let aside = numbered.into_iter().find(|place| !place.exists()).unwrap_or_else(|| partial.to_owned());
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, partial, CWD, out, RenameFlags::EXCHANGE) {
            Ok(()) => {
                fs::rename(partial, &aside).map_err(Error::io(partial))?;
                return Ok(aside);
            }
            Err(Errno::INVAL | Errno::NOSYS) => {}
            Err(errno) => return Err(Error::io(out)(errno.into())),
        }
    }
    fs::rename(out, &aside).map_err(Error::io(out))?;
    if let Err(e) = fs::rename(partial, out) {
        fs::rename(&aside, out).map_err(Error::io(&aside))?;
        return Err(Error::io(out)(e));
    }
    Ok(aside)
}
