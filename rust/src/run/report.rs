//! What a run did.
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
    /// The file that holds it, of a tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<&'a str>,
    /// Bytes, of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// CRC-64/NVME, hexadecimal.
    pub crc64nvme: String,
    /// Under its name, of a tensor, where one was asked for.
    #[serde(flatten)]
    pub digest: Option<DigestOf>,
}

/// What a run did.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Names the work.
    pub plan_digest: String,
    /// The files that it wrote.
    pub files: Vec<Written<'a>>,
    /// Their tensors.
    pub tensors: Vec<Written<'a>>,
    /// Bytes read from the inputs by this run, each sweep counted but the extra ones of a threshold search.
    pub bytes_read: u64,
    /// Bytes of tensors written by this run.
    pub bytes_written: u64,
    /// Tensors that an earlier run had finished.
    pub resumed: usize,
    /// Why nothing kept processes of other machines out, where nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// A file whose tensors have these checksums; its own is joined from that of its header and theirs.
pub(crate) fn file<'a>(plan: &'a Plan, writer: &Writer, output: usize, tensors: &[Crc]) -> Written<'a> {
    let layout = writer.layout(output);
    let crc = tensors.iter().fold(Crc::of(&layout.prefix), |crc, tensor| crc.join(*tensor));
    let name = &plan.outputs[output].name;
    Written { name, file: None, size: Some(layout.size), crc64nvme: crc.hex(), digest: None }
}

/// The tensors of a file.
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
