//! What the output files contain: their names, their tensors in order, and the rows of them that each task writes.
use super::{Plan, Target};
use crate::error::{Error, Result};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// An output file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputFile {
    /// File name, or `DIRECTORY/NAME` for one of several results that appear together, as of a sweep.
    pub name: String,
    /// File format.
    pub format: FileFormat,
}

impl OutputFile {
    /// Returns the directory of the result that the file belongs to; empty if there is one result only.
    pub fn directory(&self) -> &str {
        directory_of(&self.name)
    }
}

/// Returns the directory in the name of an output file; empty if it has none.
pub fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Returns whether a name is that of a file, or of a file in a directory that is no hidden one.
pub fn is_inside(name: &str) -> bool {
    let plain = |name: &str| Path::new(name).file_name() == Some(name.as_ref());
    name.split_once('/')
        .map_or(plain(name), |(directory, file)| plain(directory) && !directory.starts_with('.') && plain(file))
}

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// SafeTensors.
    Safetensors,
}

/// A tensor of an output file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputTensor {
    /// The tensor's name.
    pub name: String,
    /// The dtype.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<usize>,
    /// Index into `outputs`; never decreases from tensor to tensor.
    pub output: usize,
}

/// Returns rows and columns of a shape: a row lies along the last axis; in a vector, each element is a row.
pub fn matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [elements] => (*elements, 1),
        [rows @ .., columns] => (rows.iter().product(), *columns),
    }
}

impl OutputTensor {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bitsize() / 8
    }
}

/// The part of an output tensor that a task writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Index into `tensors`.
    pub tensor: usize,
    /// Range of elements in the tensor.
    pub elements: Range<usize>,
    /// Range of bytes in the tensor.
    pub bytes: Range<usize>,
    /// Elements per row, as methods see it: a vector is one row.
    columns: usize,
}

impl Region {
    /// Returns whether a result of a shape fits here, in a tensor of shape `tensor`.
    pub(super) fn fits(&self, shape: &[usize], tensor: &[usize]) -> bool {
        let (_, columns) = matrix(tensor);
        let rows = self.elements.len().checked_div(columns);
        let found = matrix(shape);
        rows.map_or(found.0 * found.1 == 0, |rows| found == (rows, columns))
    }

    /// Describes what would fit.
    pub(super) fn wanted(&self, tensor: &[usize]) -> String {
        let (_, columns) = matrix(tensor);
        let rows = self.elements.len().checked_div(columns).unwrap_or(0);
        format!("{rows} rows of {columns} as a part of {tensor:?}")
    }

    /// Returns rows and columns, as methods see them.
    pub fn shape(&self) -> (usize, usize) {
        (self.elements.len().checked_div(self.columns).unwrap_or(0), self.columns)
    }
}

impl Plan {
    /// Checks files and tensors, and finds what each task writes: from its first row up to the next task's.
    pub(super) fn lay_out(&self) -> Result<Vec<Region>> {
        let fault = |reason: String| Error::Merge(format!("plan: {reason}"));
        self.check_sizes()?;
        let mut names = HashSet::new();
        for OutputFile { name, .. } in &self.outputs {
            if !is_inside(name) || !name.ends_with(".safetensors") {
                return Err(fault(format!("output `{name}` is not the name of a .safetensors file")));
            }
            if !names.insert(name.as_str()) {
                return Err(fault(format!("output `{name}` is listed twice")));
            }
        }
        if self.outputs.is_empty() {
            return Err(fault("no output files".into()));
        }
        let (mut names, mut output) = (HashSet::with_capacity(self.tensors.len()), 0);
        for tensor in &self.tensors {
            if tensor.output < output || tensor.output >= self.outputs.len() {
                return Err(fault(format!("tensor `{}` is not in the order of the output files", tensor.name)));
            }
            if !names.insert((self.outputs[tensor.output].directory(), tensor.name.as_str())) {
                return Err(fault(format!("tensor `{}` is written twice", tensor.name)));
            }
            output = tensor.output;
        }
        self.regions()
    }

    /// Finds what each task writes: tasks are in the order of the tensors, those of one tensor in the order of its
    /// rows.
    fn regions(&self) -> Result<Vec<Region>> {
        let fault = |reason: String| Error::Merge(format!("plan: {reason}"));
        let mut regions: Vec<Region> = Vec::with_capacity(self.tasks.len());
        let mut due = 0; // the first tensor that no task has begun
        for task in &self.tasks {
            let ([Target { tensor, row }], index) = (task.to, task.reading);
            let Some(OutputTensor { name, dtype, shape, .. }) = self.tensors.get(tensor) else {
                let count = self.tensors.len();
                return Err(fault(format!("task {index} writes tensor {tensor}, but the plan lists {count}")));
            };
            let (rows, columns) = matrix(shape);
            let size = |elements: usize| {
                let bits = elements * dtype.bitsize();
                let whole = bits.is_multiple_of(8).then_some(bits / 8);
                whole.ok_or_else(|| {
                    Error::Merge(format!(
                        "plan, tensor `{name}`: shape {shape:?} of {dtype} is not a whole number of bytes"
                    ))
                })
            };
            let follows = if tensor == due {
                due += 1;
                row == 0
            } else {
                let before = regions.last_mut().filter(|before| before.tensor == tensor);
                before.is_some_and(|before| {
                    before.elements.end = row.saturating_mul(columns);
                    before.columns = if shape.len() < 2 { before.elements.len() } else { columns };
                    before.elements.start < before.elements.end && row < rows
                })
            };
            if !follows {
                let next = self.tensors.get(due).map_or("none", |next| &next.name);
                return Err(fault(format!(
                    "task {index} writes tensor `{name}` from row {row} of {rows} on, but tasks are in the order of \
                     tensors and rows, each tensor from row 0 on; next is tensor `{next}`"
                )));
            }
            if let Some(before) = regions.last_mut().filter(|before| before.tensor == tensor) {
                before.bytes.end = size(before.elements.end)?;
            }
            let elements = row * columns..rows * columns;
            let bytes = size(elements.start)?..size(elements.end)?;
            let columns = if shape.len() < 2 { elements.len() } else { columns };
            regions.push(Region { tensor, elements, bytes, columns });
        }
        match self.tensors.get(due) {
            Some(tensor) => Err(fault(format!("no task writes tensor `{}`", tensor.name))),
            None => Ok(regions),
        }
    }

    /// Checks that all sizes together fit into 64 bits, so that later sums cannot overflow.
    fn check_sizes(&self) -> Result<()> {
        let mut total: u64 = 0;
        for OutputTensor { name, dtype, shape, .. } in &self.tensors {
            let bits = shape.iter().try_fold(dtype.bitsize(), |bits, n| bits.checked_mul(*n));
            let sum = bits.and_then(|bits| total.checked_add(bits as u64)).filter(|sum| i64::try_from(*sum).is_ok());
            total = sum.ok_or_else(|| {
                Error::Merge(format!("plan, tensor `{name}`: {shape:?} of {dtype} is more than any disk holds"))
            })?;
        }
        Ok(())
    }
}
