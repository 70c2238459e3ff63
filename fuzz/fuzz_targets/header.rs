//! Any bytes as a SafeTensors file: refused with a message, or every tensor lies inside it and has the bytes of its
//! shape.
#![no_main]
use libfuzzer_sys::fuzz_target;
use mol_merge::container::{Container, Header};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// The file that every input is written to: `make fuzz` puts it in build/fuzz.
static PLACE: LazyLock<(File, PathBuf)> =
    LazyLock::new(|| tempfile::NamedTempFile::new().expect("a file").keep().expect("its name"));

fuzz_target!(|bytes: &[u8]| {
    let (file, path) = &*PLACE;
    file.set_len(bytes.len() as u64).and_then(|()| file.write_all_at(bytes, 0)).expect("room for a file");
    let Ok(header) = Header::read(path) else { return };
    assert_eq!(header.stamp.size(), bytes.len() as u64);
    let opened = Container::open(&Arc::new(header), None).expect("it is the same file");
    for tensor in &opened.header.tensors {
        let (elements, mut room): (usize, _) = (tensor.shape.iter().product(), Vec::new());
        let bytes = opened.lend(tensor, 0..tensor.bytes.len(), &mut room).expect("it lies in the file");
        assert_eq!(bytes.len() * 8, elements * tensor.dtype.bitsize());
        assert_eq!(opened.header.tensor(&tensor.name).expect("it is listed").bytes, tensor.bytes);
    }
});
