//! Builds the header of a `.safetensors` file to be written, and the offset of each tensor.
use crate::error::{Error, Result};
use crate::plan::Plan;
use ::safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::ops::Range;

/// One output file: its tensors, its tasks, and their offsets.
#[derive(Debug)]
pub struct Layout {
    /// Its tensors.
    pub tensors: Range<usize>,
    /// The tasks that write them.
    pub tasks: Range<usize>,
    /// Length field and header.
    pub prefix: Vec<u8>,
    /// Size of the file in bytes.
    pub size: u64,
    /// Offset of each tensor.
    offsets: Vec<u64>,
}

impl Layout {
    fn new(plan: &Plan, tensors: Range<usize>, tasks: Range<usize>) -> Result<Self> {
        let fault = |reason: String| Error::Panic(format!("header: {reason}"));
        let (mut infos, mut end) = (Vec::with_capacity(tensors.len()), 0);
        for tensor in &plan.tensors[tensors.clone()] {
            let data_offsets = (end, end + tensor.bytes());
            end = data_offsets.1;
            let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets };
            infos.push((tensor.name.clone(), info));
        }
        // transformers before version 5 refuses a file whose metadata lack the format.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let begins: Vec<usize> = infos.iter().map(|(_, info)| info.data_offsets.0).collect();
        let header = Metadata::new(Some(metadata), infos).map_err(|e| fault(e.to_string()))?;
        let mut json = serde_json::to_vec(&header).map_err(|e| fault(e.to_string()))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut prefix = (json.len() as u64).to_le_bytes().to_vec();
        prefix.append(&mut json);
        let offsets = begins.into_iter().map(|begin| (prefix.len() + begin) as u64).collect();
        Ok(Self { tensors, tasks, size: (prefix.len() + end) as u64, prefix, offsets })
    }

    /// Returns the offset of a task's bytes.
    pub fn offset(&self, plan: &Plan, task: usize) -> u64 {
        let region = &plan.written()[task];
        self.offsets[region.tensor - self.tensors.start] + region.bytes.start as u64
    }
}

/// Returns the tasks of each output file; a plan lists them in the order of the files.
pub fn tasks_of_outputs(plan: &Plan) -> Vec<Range<usize>> {
    let end = |output| plan.written().partition_point(|region| plan.tensors[region.tensor].output <= output);
    (0..plan.outputs.len()).map(|output| output.checked_sub(1).map_or(0, end)..end(output)).collect()
}

/// Builds the layout of every output file of a plan.
pub fn layouts(plan: &Plan) -> Result<Vec<Layout>> {
    let end = |output| plan.tensors.partition_point(|tensor| tensor.output <= output);
    let tensors = |output: usize| output.checked_sub(1).map_or(0, end)..end(output);
    let tasks = tasks_of_outputs(plan).into_iter().enumerate();
    tasks.map(|(output, tasks)| Layout::new(plan, tensors(output), tasks)).collect()
}
