//! The output files: each is created when its first task starts and closed when its last one has ended. Tiles are
//! written at their offsets.
use super::paths::remove;
use super::{claims, head};
use crate::error::{Error, Result};
use crate::layout::safetensors::{Layout, layouts};
use crate::plan::{OutputFile, OutputTensor, Plan};
use crate::store::{SCRATCH, allocate, is_remote};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The index that maps tensors to files.
pub const INDEX: &str = "model.safetensors.index.json";

/// One output file, open only while its tensors are in progress: a checkpoint may have more files than a process may
/// open.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    layout: Layout,
    file: Mutex<Option<Arc<File>>>,
    /// Tensors still to be written.
    left: AtomicUsize,
}

/// All output files of a plan.
#[derive(Debug)]
pub struct Writer<'a> {
    plan: &'a Plan,
    outputs: Vec<Output>,
    /// Directory of files that only a task needs.
    pub scratch: PathBuf,
    /// Whether writeback starts immediately, and a file is synced when it is closed.
    sync: bool,
}

/// Opens one of our files for reading and writing, creating it if needed; follows no link.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)
}

/// Removes whatever is at the path of one of our files but is not a regular file with a single name: a link, or a
/// second name, would make us write to another file.
pub(crate) fn make_way(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.nlink() <= 1 => Ok(()),
        _ => remove(path),
    }
}

/// Closes a file and returns errors of earlier writes that are only reported now.
fn close(file: File) -> io::Result<()> {
    match nix::unistd::close(OwnedFd::from(file)) {
        // It is closed in any case.
        Ok(()) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Output {
    fn held(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the file: created with its header and final size, or as an earlier run left it.
    fn open(&self) -> Result<Arc<File>> {
        let mut held = self.held();
        if let Some(file) = &*held {
            return Ok(file.clone());
        }
        make_way(&self.path)?;
        let fill = |file: File| {
            allocate(&file, self.layout.size)?;
            file.write_all_at(&self.layout.prefix, 0)?;
            Ok(Arc::new(file))
        };
        let file = open_own(&self.path).and_then(fill).map_err(Error::io(&self.path))?;
        Ok(held.insert(file).clone())
    }
}

impl<'a> Writer<'a> {
    /// Describes the files of a plan in `partial`; creates none yet. With `sync` writeback of each tile starts
    /// immediately, so that little remains for the end.
    pub fn new(plan: &'a Plan, partial: &Path, sync: bool) -> Result<Self> {
        let output = |(layout, file): (Layout, &OutputFile)| Output {
            path: partial.join(&file.name),
            file: Mutex::new(None),
            left: AtomicUsize::new(layout.tasks.len()),
            layout,
        };
        let outputs = layouts(plan)?.into_iter().zip(&plan.outputs).map(output).collect();
        Ok(Self { plan, outputs, scratch: partial.join(SCRATCH), sync })
    }

    fn output(&self, task: usize) -> &Output {
        &self.outputs[self.plan.target(task).1.output]
    }

    /// Returns an output file's path, header and tasks.
    pub fn layout(&self, output: usize) -> &Layout {
        &self.outputs[output].layout
    }

    /// Writes bytes of a task, `offset` bytes from its start.
    pub fn write(&self, task: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let output = self.output(task);
        let at = output.layout.offset(self.plan, task) + offset as u64;
        let file = output.open()?;
        file.write_all_at(bytes, at).map_err(Error::io(&output.path))?;
        #[cfg(target_os = "linux")]
        if self.sync {
            // On this call Linux starts to write dirty pages and does not wait. A hint only.
            let length = std::num::NonZeroU64::new(bytes.len() as u64);
            let _advice = rustix::fs::fadvise(&*file, at, length, rustix::fs::Advice::DontNeed);
        }
        Ok(())
    }

    /// Reads back bytes of a task, `offset` bytes from its start.
    pub fn read(&self, task: usize, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let output = self.output(task);
        let at = output.layout.offset(self.plan, task) + offset as u64;
        output.open()?.read_exact_at(bytes, at).map_err(Error::io(&output.path))
    }

    /// Counts a task as done; returns true if it was the last of its file.
    pub fn finish(&self, task: usize) -> bool {
        self.output(task).left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Syncs a finished file, if requested or if only a sync reports failed writes, and closes it.
    pub fn close(&self, output: usize) -> Result<()> {
        let output = &self.outputs[output];
        // A file without elements is created here.
        drop(output.open()?);
        let Some(file) = output.held().take().and_then(Arc::into_inner) else { return Ok(()) };
        let synced = if self.sync || is_remote(&file).unwrap_or(true) { file.sync_data() } else { Ok(()) };
        synced.and(close(file)).map_err(Error::io(&output.path))
    }

    /// Writes the index of each checkpoint in several files. It depends only on the plan, so several processes may
    /// write it.
    pub fn write_index(&self, partial: &Path) -> Result<()> {
        let outputs = &self.plan.outputs;
        let directories: BTreeSet<&str> = outputs.iter().map(OutputFile::directory).collect();
        directories.into_iter().try_for_each(|directory| {
            let files = outputs.iter().filter(|output| output.directory() == directory).count();
            if files < 2 { Ok(()) } else { self.write_index_of(partial, directory) }
        })
    }

    fn write_index_of(&self, partial: &Path, directory: &str) -> Result<()> {
        let outputs = &self.plan.outputs;
        let tensors: Vec<&OutputTensor> =
            self.plan.tensors.iter().filter(|tensor| outputs[tensor.output].directory() == directory).collect();
        let file = |tensor: &OutputTensor| Path::new(&outputs[tensor.output].name).file_name().and_then(OsStr::to_str);
        let weight_map: BTreeMap<&str, Option<&str>> =
            tensors.iter().map(|tensor| (tensor.name.as_str(), file(tensor))).collect();
        let total_size: usize = tensors.iter().map(|tensor| tensor.bytes()).sum();
        let index = serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        let text = serde_json::to_string_pretty(&index).map_err(|e| Error::Panic(format!("index: {e}")))? + "\n";
        let path = partial.join(directory).join(INDEX);
        make_way(&path)?;
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(());
        }
        let write = |file: File| {
            // Overwritten in place: what another process has written of it stays valid.
            file.write_all_at(text.as_bytes(), 0)?;
            file.set_len(text.len() as u64)?;
            if self.sync {
                file.sync_data()?;
            }
            close(file)
        };
        open_own(&path).and_then(write).map_err(Error::io(&path))
    }
}

/// Returns whether everything in a directory, except journals and indexes, is an output of this plan by size and header.
pub(crate) fn holds_outputs_alone(plan: &Plan, partial: &Path) -> Result<bool> {
    let layouts = layouts(plan)?;
    let directories: BTreeSet<&str> = plan.outputs.iter().map(OutputFile::directory).chain([""]).collect();
    let mut some = false;
    for directory in &directories {
        let here = partial.join(directory);
        let entries = match fs::read_dir(&here) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(Error::io(&here))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::io(&here))?;
            let file = entry.file_name();
            let Some(file) = file.to_str() else { return Ok(false) };
            let name = if directory.is_empty() { file.to_owned() } else { format!("{directory}/{file}") };
            let is_directory = directory.is_empty() && directories.contains(file);
            let is_own = directory.is_empty() && (file == head::NAME || file == SCRATCH);
            if is_own || file == INDEX || is_directory {
                continue;
            }
            if plan.outputs.iter().any(|output| name == claims::name(&output.name)) {
                continue;
            }
            let output = plan.outputs.iter().zip(&layouts).find(|(output, _)| name == output.name);
            let Some((_, layout)) = output else { return Ok(false) };
            let found = open_own(&entry.path()).and_then(|file| {
                let mut start = vec![0; layout.prefix.len()];
                file.read_exact_at(&mut start, 0)?;
                Ok(start == layout.prefix && file.metadata()?.len() == layout.size)
            });
            if !found.unwrap_or(false) {
                return Ok(false);
            }
            some = true;
        }
    }
    Ok(some)
}

/// Returns the total size of a plan's files.
pub fn bytes_needed(plan: &Plan) -> Result<u64> {
    Ok(layouts(plan)?.iter().map(|layout| layout.size).sum())
}
