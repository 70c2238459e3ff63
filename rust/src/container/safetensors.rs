//! Reads the header of a `.safetensors` file and checks everything in it that could be wrong.
use super::Entry;
use crate::error::{Error, Result};
use crate::store::Store;
use safetensors::Dtype;
use serde::de::{MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The length field in front of the header.
const PREFIX: usize = 8;
/// The format's own limit on the size of a header.
const MAX_HEADER: usize = 100_000_000;

/// A tensor as the header describes it; unknown keys are refused.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header's entries in file order, so that duplicate names are detected.
struct Entries(Vec<(String, Stated)>);

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
                        // Checked like the rest, since other readers refuse such a file.
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

/// Checks everything in a header that could be wrong; returns the tensors by offset.
fn check(header: &[u8], data: usize) -> std::result::Result<Vec<Entry>, String> {
    let Entries(mut entries) =
        serde_json::from_slice(header).map_err(|e| format!("the header is not a SafeTensors header: {e}"))?;
    let mut names = HashSet::with_capacity(entries.len());
    if let Some((name, _)) = entries.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(format!("tensor `{name}` is listed twice in the header"));
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut end = 0;
    for (name, Stated { dtype, shape, data_offsets: (from, to) }) in entries {
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
                "tensor `{name}` ends at {to}, but the file holds {data} bytes of data: the file is truncated"
            ));
        }
        end = to;
        tensors.push(Entry { name, dtype, shape, bytes: from..to });
    }
    if end != data {
        return Err(format!("the tensors end at {end}, but the file holds {data} bytes of data"));
    }
    Ok(tensors)
}

/// Reads the header of a file of `size` bytes: its tensors by offset, and the BLAKE3 digest of the header. No tensors if
/// a file of that digest and size is `known`.
pub(super) fn read(
    path: &Path,
    store: &dyn Store,
    size: u64,
    known: &HashSet<(String, u64)>,
) -> Result<(Option<Vec<Entry>>, String)> {
    let fault = |reason: String| Error::checkpoint(path, reason + "; the file is damaged: download or save it again");
    let size = usize::try_from(size).map_err(|_| fault("too large for this machine".into()))?;
    if size < PREFIX {
        return Err(fault(format!("{size} bytes are too few for a SafeTensors file")));
    }
    let mut room = Vec::new();
    let length = store.lend(0..PREFIX, &mut room).map_err(Error::io(path))?;
    let length = u64::from_le_bytes(*length.first_chunk().unwrap_or(&[0; PREFIX]));
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > size - PREFIX {
        return Err(fault(format!(
            "its header claims {length} bytes, but the file holds {} after the length: truncated, or not SafeTensors",
            size - PREFIX
        )));
    }
    if length > MAX_HEADER {
        return Err(fault(format!("its header of {length} bytes exceeds the format's {MAX_HEADER}")));
    }
    let start = PREFIX + length;
    let header = store.lend(PREFIX..start, &mut room).map_err(Error::io(path))?;
    let digest = blake3::hash(header).to_hex().to_string();
    let named = (digest, size as u64);
    if known.contains(&named) {
        return Ok((None, named.0));
    }
    let mut tensors = check(header, size - start).map_err(fault)?;
    for tensor in &mut tensors {
        tensor.bytes = tensor.bytes.start + start..tensor.bytes.end + start;
    }
    Ok((Some(tensors), named.0))
}
