//! The report of a run.
use super::writer::Writer;
use crate::audit::DigestOf;
use crate::crc::Crc;
use crate::plan::{OutputTensor, Plan};
use serde::Serialize;
use std::collections::HashMap;

/// A finished file or tensor.
#[derive(Debug, Serialize)]
pub struct Written<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file that contains it (tensors only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<&'a str>,
    /// Size in bytes (files only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// CRC-64/NVME, hexadecimal.
    pub crc64nvme: String,
    /// The cryptographic digest, under its algorithm's name, if one was requested (tensors only).
    #[serde(flatten)]
    pub digest: Option<DigestOf>,
}

/// The report of a run.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Digest of the plan.
    pub plan_digest: String,
    /// The files written.
    pub files: Vec<Written<'a>>,
    /// Their tensors.
    pub tensors: Vec<Written<'a>>,
    /// Bytes read from the inputs by this run; every sweep counts except the extra ones of a threshold search.
    pub bytes_read: u64,
    /// Bytes of tensors written by this run.
    pub bytes_written: u64,
    /// Tensors that an earlier run had finished.
    pub resumed: usize,
    /// A warning if nothing kept processes of other machines out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Builds the entry of a file from its tensors' checksums; its own is joined from those and its header's.
pub(crate) fn file<'a>(plan: &'a Plan, writer: &Writer, output: usize, tensors: &[Crc]) -> Written<'a> {
    let layout = writer.layout(output);
    let crc = tensors.iter().fold(Crc::of(&layout.prefix), |crc, tensor| crc.join(*tensor));
    let name = &plan.outputs[output].name;
    Written { name, file: None, size: Some(layout.size), crc64nvme: crc.hex(), digest: None }
}

/// Builds the entries of a file's tensors.
pub(crate) fn tensors<'a>(
    plan: &'a Plan,
    writer: &Writer,
    output: usize,
    tensors: &[Crc],
    digests: &mut HashMap<String, Option<DigestOf>>,
) -> Vec<Written<'a>> {
    let of_file = &plan.tensors[writer.layout(output).tensors.clone()];
    let written = |(tensor, crc): (&'a OutputTensor, &Crc)| Written {
        name: &tensor.name,
        file: Some(&plan.outputs[output].name),
        size: None,
        crc64nvme: crc.hex(),
        digest: digests.remove(&tensor.name).flatten(),
    };
    of_file.iter().zip(tensors).map(written).collect()
}
