//! What the output files hold: their names, their tensors in order, and which rows of them each task writes.
use super::{Plan, Target};
use crate::error::{Error, Result};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// A file that is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputFile {
    /// Its name.
    pub name: String,
    /// What kind of file it is.
    pub format: FileFormat,
}

/// A kind of file.
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
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Index into `outputs`; never decreases from tensor to tensor.
    pub output: usize,
}

/// Rows and columns of a shape: a row is what lies along the last axis; of a vector, one element.
pub fn matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [elements] => (*elements, 1),
        [rows @ .., columns] => (rows.iter().product(), *columns),
    }
}

impl OutputTensor {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bitsize() / 8
    }
}

/// What a task writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index into `tensors`.
    pub tensor: usize,
    /// Elements of the tensor.
    pub elements: Range<usize>,
    /// Bytes of the tensor.
    pub bytes: Range<usize>,
    /// Elements of a row, as methods see it: a vector is one row.
    columns: usize,
}

impl Place {
    /// Whether something of a shape can be written here, into a tensor of shape `tensor`.
    pub(super) fn fits(&self, shape: &[usize], tensor: &[usize]) -> bool {
        let (_, columns) = matrix(tensor);
        let rows = self.elements.len().checked_div(columns);
        let found = matrix(shape);
        rows.map_or(found.0 * found.1 == 0, |rows| found == (rows, columns))
    }

    /// What would fit, in words.
    pub(super) fn wanted(&self, tensor: &[usize]) -> String {
        let (_, columns) = matrix(tensor);
        let rows = self.elements.len().checked_div(columns).unwrap_or(0);
        format!("{rows} rows of {columns} for a place in {tensor:?}")
    }

    /// Rows and columns, as methods see them.
    pub fn shape(&self) -> (usize, usize) {
        (self.elements.len().checked_div(self.columns).unwrap_or(0), self.columns)
    }
}

impl Plan {
    /// Checks the files and tensors, and finds what each task writes: rows from its own on, up to those of the next task.
    pub(super) fn lay_out(&self) -> Result<Vec<Place>> {
        let fault = |reason: String| Error::Merge(format!("plan: {reason}"));
        self.check_sizes()?;
        let mut names = HashSet::new();
        for OutputFile { name, .. } in &self.outputs {
            if Path::new(name).file_name() != Some(name.as_ref()) || !name.ends_with(".safetensors") {
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
            if !names.insert(tensor.name.as_str()) {
                return Err(fault(format!("tensor `{}` is written twice", tensor.name)));
            }
            if tensor.output < output || tensor.output >= self.outputs.len() {
                return Err(fault(format!("tensor `{}` is out of the order of the output files", tensor.name)));
            }
            output = tensor.output;
        }
        self.places()
    }

    /// What each task writes: tasks come in the order of the tensors, those of one tensor in the order of its rows.
    fn places(&self) -> Result<Vec<Place>> {
        let fault = |reason: String| Error::Merge(format!("plan: {reason}"));
        let mut places: Vec<Place> = Vec::with_capacity(self.tasks.len());
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
                let before = places.last_mut().filter(|before| before.tensor == tensor);
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
            if let Some(before) = places.last_mut().filter(|before| before.tensor == tensor) {
                before.bytes.end = size(before.elements.end)?;
            }
            let elements = row * columns..rows * columns;
            let bytes = size(elements.start)?..size(elements.end)?;
            let columns = if shape.len() < 2 { elements.len() } else { columns };
            places.push(Place { tensor, elements, bytes, columns });
        }
        match self.tensors.get(due) {
            Some(tensor) => Err(fault(format!("no task writes tensor `{}`", tensor.name))),
            None => Ok(places),
        }
    }

    /// Checks that all sizes together fit into 64 bits, so that nothing that adds them up can overflow.
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
