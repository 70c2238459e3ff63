//! One mapped `.safetensors` file: its header, checked, and its bytes. One of the two places with `unsafe`.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use memmap2::{Advice, Mmap, MmapOptions};
use safetensors::Dtype;
use serde::de::{MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The length field in front of the header.
const PREFIX: usize = 8;
/// The format's own bound on headers.
const MAX_HEADER: usize = 100_000_000;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// A mapped file.
#[derive(Debug)]
pub struct Shard {
    /// Where it is.
    pub path: PathBuf,
    /// Time of last change, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// BLAKE3 of the header.
    pub header_digest: String,
    /// Its tensors, by offset.
    pub tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    map: Mmap,
    stamp: Stamp,
}

/// What tells a file that was written to, or replaced, from the one that was mapped. The time of the last change of its
/// status cannot be set back, unlike that of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    size: u64,
    content: (i64, i64),
    status: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.len(),
            content: (meta.mtime(), meta.mtime_nsec()),
            status: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Why what is at a path is not the file any more that has this stamp, if it is not.
    pub fn changed(&self, path: &Path) -> Option<Error> {
        match std::fs::metadata(path) {
            Ok(meta) if Self::of(&meta) == *self => None,
            Ok(meta) if meta.ino() != self.inode.1 => Some(Error::checkpoint(path, "another file is in its place")),
            Ok(_) => Some(Error::checkpoint(path, "it was written to, or its times or rights were changed")),
            Err(e) => Some(Error::io(path)(e)),
        }
    }
}

/// A tensor as the header states it; unknown keys are refused.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header's entries in the order written, so that a name that is written twice is seen.
struct Entries(Vec<(String, Entry)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensor names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                let mut metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        // Held to its form like the rest: other readers refuse such a file.
                        map.next_value::<Option<HashMap<String, String>>>()?;
                        if std::mem::replace(&mut metadata, true) {
                            return Err(serde::de::Error::duplicate_field("__metadata__"));
                        }
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Checks everything that a header can lie about; returns the tensors by offset.
fn check(header: &[u8], data: usize) -> std::result::Result<Vec<Tensor>, String> {
    let Entries(mut entries) =
        serde_json::from_slice(header).map_err(|e| format!("the header is not a SafeTensors header: {e}"))?;
    let mut names = HashSet::with_capacity(entries.len());
    if let Some((name, _)) = entries.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(format!("tensor `{name}` is listed twice in the header"));
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors: Vec<Tensor> = Vec::with_capacity(entries.len());
    let mut end = 0;
    for (name, Entry { dtype, shape, data_offsets: (from, to) }) in entries {
        let bits = shape.iter().try_fold(dtype.bitsize(), |bits, n| bits.checked_mul(*n));
        let Some(bits) = bits else {
            return Err(format!("tensor `{name}`: shape {shape:?} of {dtype} overflows"));
        };
        if bits % 8 != 0 || to.checked_sub(from) != Some(bits / 8) {
            return Err(format!(
                "tensor `{name}`: shape {shape:?} of {dtype} takes {} bytes, but its offsets are [{from}, {to}]",
                bits.div_ceil(8)
            ));
        }
        if from != end {
            let (what, other) = if from < end {
                ("overlaps", "the tensor before it ends")
            } else {
                ("leaves a hole", "the data before it end")
            };
            return Err(format!("tensor `{name}` {what}: it starts at {from}, but {other} at {end}"));
        }
        if to > data {
            return Err(format!(
                "tensor `{name}` ends at {to}, but the file holds {data} bytes of data: the file is cut"
            ));
        }
        end = to;
        tensors.push(Tensor { name, dtype, shape, bytes: from..to });
    }
    if end != data {
        return Err(format!("the tensors end at {end}, but the file holds {data} bytes of data"));
    }
    Ok(tensors)
}

impl Shard {
    /// Maps a file and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        // Asked before it is opened, which for a pipe would wait for whoever writes into it.
        if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
            return Err(Error::checkpoint(path, "not a file"));
        }
        let file = File::open(path).map_err(Error::io(path))?;
        let meta = file.metadata().map_err(Error::io(path))?;
        let fault = |reason: String| Error::checkpoint(path, reason + "; the file is damaged: fetch or save it again");
        let size = usize::try_from(meta.len()).map_err(|_| fault("too large for this machine".into()))?;
        if size < PREFIX {
            return Err(fault(format!("{size} bytes are too few for a SafeTensors file")));
        }
        // SAFETY: the mapping is read-only and private, and lives as long as `self`. Another process may still change or
        // cut the file under it: then values are wrong (size, time and header are checked against the plan) or the
        // kernel stops us with SIGBUS; the documentation says so, and the partial output stays resumable.
        let map = unsafe { MmapOptions::new().map_copy_read_only(&file) }.map_err(Error::io(path))?;
        let length = u64::from_le_bytes(*map.first_chunk().unwrap_or(&[0; PREFIX]));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > size - PREFIX {
            return Err(fault(format!(
                "its header claims {length} bytes, but the file holds {} after the length: cut, or not SafeTensors",
                size - PREFIX
            )));
        }
        if length > MAX_HEADER {
            return Err(fault(format!("its header of {length} bytes exceeds the format's {MAX_HEADER}")));
        }
        let header = &map[PREFIX..PREFIX + length];
        let start = PREFIX + length;
        let mut tensors = check(header, size - start).map_err(fault)?;
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter_mut().enumerate() {
            tensor.bytes = tensor.bytes.start + start..tensor.bytes.end + start;
            by_name.insert(tensor.name.clone(), i);
        }
        let header_digest = blake3::hash(header).to_hex().to_string();
        let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        Ok(Self { path: path.to_path_buf(), mtime_ns, header_digest, tensors, by_name, map, stamp: Stamp::of(&meta) })
    }

    /// Bytes of the file.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    /// What tells whether the file changes from now on.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// A tensor by name, as an index into `tensors`.
    pub fn index(&self, name: &str) -> Result<usize> {
        let index = self.by_name.get(name).copied();
        index.ok_or_else(|| Error::checkpoint(&self.path, format!("tensor `{name}` is not in this file")))
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        Ok(&self.tensors[self.index(name)?])
    }

    /// A tensor's bytes.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.map[tensor.bytes.clone()]
    }

    /// All bytes before the first tensor's.
    pub fn prefix(&self) -> &[u8] {
        &self.map[..self.tensors.first().map_or(self.map.len(), |t| t.bytes.start)]
    }

    /// Asks for a range of a tensor ahead of its use. Advice only: a refusal by the system changes nothing.
    pub fn fetch(&self, tensor: &Tensor, range: Range<usize>) {
        let (from, to) = (tensor.bytes.start + range.start, (tensor.bytes.start + range.end).min(tensor.bytes.end));
        if from < to {
            let _advice = self.map.advise_range(Advice::WillNeed, from, to - from);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_map_is_private_and_read_only() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"\x02\0\0\0\0\0\0\0{}").unwrap();
        let _mapped = Shard::open(file.path()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with(&*file.path().to_string_lossy())).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some("r--p"), "{line}");
    }
}
