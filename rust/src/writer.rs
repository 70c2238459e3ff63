//! The output files: headers from the plan, sized up front, tiles written at their offsets.
use crate::error::{Error, Result};
use crate::journal;
use crate::lock::remove;
use crate::plan::Plan;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The index that tells which file holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// One output file, open only while tensors of it are on their way: a checkpoint may have more than a process may open.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: Mutex<Option<Arc<File>>>,
    /// Tensors still to be written.
    open: AtomicUsize,
    /// Length and header.
    prefix: Vec<u8>,
    size: u64,
}

impl Output {
    fn file(&self) -> Result<Arc<File>> {
        let mut file = self.file.lock().map_err(|_| Error::Panic("an output's lock is poisoned".into()))?;
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        let opened = Arc::new(open_own(&self.path).map_err(Error::io(&self.path))?);
        *file = Some(opened.clone());
        Ok(opened)
    }
}

/// All output files of a plan.
#[derive(Debug)]
pub struct Writer {
    outputs: Vec<Output>,
    /// Output and offset of each task.
    places: Vec<(usize, u64)>,
    /// Whether what is written shall be on its way to the disk at once.
    sync: bool,
}

/// Opens a file of ours to read and write, making it where it is not there; no link is followed.
fn open_own(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)
}

/// Takes away what stands in the place of an output and is no file of its own: a link would lead out of the directory,
/// and so would a second name of another file.
fn make_way(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.nlink() <= 1 => Ok(()),
        _ => remove(path),
    }
}

/// The header of one output, and the offset of each of its tensors behind it.
fn header(plan: &Plan, output: usize) -> Result<(Vec<u8>, Vec<u64>, u64)> {
    let quote = |text: &str| serde_json::to_string(text).map_err(|e| Error::Panic(format!("header: {e}")));
    // transformers before 5 refuse a file whose metadata lack the format.
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut offsets = Vec::new();
    let mut end = 0;
    for tensor in plan.tensors.iter().filter(|tensor| tensor.output == output) {
        let (from, to) = (end, end + tensor.bytes() as u64);
        let (name, dtype) = (quote(&tensor.name)?, tensor.dtype);
        let shape = serde_json::to_string(&tensor.shape).map_err(|e| Error::Panic(format!("header: {e}")))?;
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
    /// Creates the files of a plan in `partial`, or takes those that an earlier run left. With `sync` the system begins
    /// to write each tile to the disk as soon as it is there, so that little is left to wait for at the end.
    pub fn open(plan: &Plan, partial: &Path, sync: bool) -> Result<Self> {
        let (mut outputs, mut places) = (Vec::new(), Vec::with_capacity(plan.tasks.len()));
        for (index, output) in plan.outputs.iter().enumerate() {
            let path = partial.join(&output.name);
            let (prefix, offsets, data) = header(plan, index)?;
            let size = prefix.len() as u64 + data;
            make_way(&path)?;
            let fill = |file: File| allocate(&file, size).and_then(|()| file.write_all_at(&prefix, 0));
            open_own(&path).and_then(fill).map_err(Error::io(&path))?;
            let mut offsets = offsets.into_iter();
            let (mut offset, mut open) = (0, 0);
            while let Some(place) = plan.written().get(places.len())
                && plan.tensors[place.tensor].output == index
            {
                if place.elements.start == 0 {
                    offset = prefix.len() as u64 + offsets.next().unwrap_or_default();
                }
                places.push((index, offset + place.bytes.start as u64));
                open += 1;
            }
            let open = AtomicUsize::new(open);
            outputs.push(Output { path, file: Mutex::new(None), open, prefix, size });
        }
        Ok(Self { outputs, places, sync })
    }

    /// Writes bytes of a task's tensor, `offset` bytes from its start.
    pub fn write(&self, task: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let (output, start) = self.places[task];
        let (output, at) = (&self.outputs[output], start + offset as u64);
        let file = output.file()?;
        file.write_all_at(bytes, at).map_err(Error::io(&output.path))?;
        #[cfg(target_os = "linux")]
        if self.sync {
            // Linux begins to write dirty pages out on this advice, and does not wait. Advice only.
            let length = std::num::NonZeroU64::new(bytes.len() as u64);
            let _advice = rustix::fs::fadvise(&*file, at, length, rustix::fs::Advice::DontNeed);
        }
        Ok(())
    }

    /// Closes the file of a task's tensor if that was the last of its file.
    pub fn finish(&self, task: usize) -> Result<()> {
        let output = &self.outputs[self.places[task].0];
        if output.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            *output.file.lock().map_err(|_| Error::Panic("an output's lock is poisoned".into()))? = None;
        }
        Ok(())
    }

    /// The file of a task's tensor, to read it back.
    pub fn reader(&self, task: usize) -> Result<Reader<'_>> {
        let (output, start) = self.places[task];
        let path = &self.outputs[output].path;
        Ok(Reader { file: open_own(path).map_err(Error::io(path))?, path, start })
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
        let weight_map: BTreeMap<&str, &str> = plan
            .tensors
            .iter()
            .map(|tensor| (tensor.name.as_str(), plan.outputs[tensor.output].name.as_str()))
            .collect();
        let total_size: usize = plan.tensors.iter().map(crate::plan::OutputTensor::bytes).sum();
        let index = serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        let text = serde_json::to_string_pretty(&index).map_err(|e| Error::Panic(format!("index: {e}")))?;
        let path = partial.join(INDEX);
        remove(&path)?;
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        made.and_then(|mut file| file.write_all((text + "\n").as_bytes())).map_err(Error::io(&path))
    }
}

/// A finished tensor's file.
pub struct Reader<'a> {
    file: File,
    path: &'a Path,
    start: u64,
}

impl Reader<'_> {
    /// Reads back bytes of the tensor, `offset` bytes from its start.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, self.start + offset as u64).map_err(Error::io(self.path))
    }
}

/// Whether all that is in a directory, but for journal and index, are outputs of this plan by their size and header.
pub(crate) fn holds_outputs_alone(plan: &Plan, partial: &Path) -> Result<bool> {
    let mut some = false;
    for entry in fs::read_dir(partial).map_err(Error::io(partial))? {
        let entry = entry.map_err(Error::io(partial))?;
        let name = entry.file_name();
        if name == journal::NAME || name == INDEX {
            continue;
        }
        let Some(index) = plan.outputs.iter().position(|output| name == output.name.as_str()) else { return Ok(false) };
        let (prefix, _, data) = header(plan, index)?;
        let size = prefix.len() as u64 + data;
        let found = open_own(&entry.path()).and_then(|file| {
            let mut start = vec![0; prefix.len()];
            file.read_exact_at(&mut start, 0)?;
            Ok((start, file.metadata()?.len()))
        });
        if !found.is_ok_and(|found| found == (prefix, size)) {
            return Ok(false);
        }
        some = true;
    }
    Ok(some)
}

/// Bytes that the files of a plan take.
pub fn bytes_needed(plan: &Plan) -> Result<u64> {
    let sizes = (0..plan.outputs.len()).map(|i| header(plan, i).map(|(prefix, _, data)| prefix.len() as u64 + data));
    sizes.sum()
}
