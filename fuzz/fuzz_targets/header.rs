//! Any bytes as a SafeTensors file: refused in words, or every tensor lies inside it and has the bytes of its shape.
#![no_main]
use libfuzzer_sys::fuzz_target;
use mol_merge::shard::Shard;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

/// The file that every input is written to: `make fuzz` has it in build/fuzz.
static PLACE: LazyLock<(File, PathBuf)> =
    LazyLock::new(|| tempfile::NamedTempFile::new().expect("a file").keep().expect("its name"));

fuzz_target!(|bytes: &[u8]| {
    let (file, path) = &*PLACE;
    file.set_len(bytes.len() as u64).and_then(|()| file.write_all_at(bytes, 0)).expect("room for a file");
    let Ok(shard) = Shard::open(path) else { return };
    assert_eq!(shard.size(), bytes.len());
    for tensor in &shard.tensors {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(shard.bytes(tensor).len() * 8, elements * tensor.dtype.bitsize());
        assert_eq!(shard.tensor(&tensor.name).expect("it is listed").bytes, tensor.bytes);
    }
});
