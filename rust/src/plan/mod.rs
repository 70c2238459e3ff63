//! The JSON contract with Python, version 2: layout and tasks, and checks that trust nothing.
mod check;
mod digest;
mod expr;
mod layout;
mod reading;

pub use crate::methods::Method;
pub use expr::{Expr, Fill, Made, Table};
pub use layout::{FileFormat, OutputFile, OutputTensor, Region, directory_of, is_inside, matrix};

use crate::container::Header;
use crate::error::{Error, Result};
use crate::watch::Watch;
use blake3::Hash;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The version of the contract; raised for every new kind of expression and every new field.
pub const VERSION: u32 = 2;

/// An input file, and its state when the plan was made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Time of last modification, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// BLAKE3 of the header, hexadecimal.
    pub header: String,
}

/// Where a task's result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Index into `tensors`.
    pub tensor: usize,
    /// First row in that tensor.
    pub row: usize,
}

/// One unit of work: one result of a reading.
#[derive(Debug, Serialize)]
pub struct Task {
    /// The tensor that it writes, and from which row on.
    pub to: [Target; 1],
    /// The method.
    pub by: Method,
    /// The sources.
    pub of: Vec<Expr>,
    /// Further tensors that the method reads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Expr>,
    /// Index of the plan's task that this result belongs to. Results of one task run one after the other, while their
    /// inputs are in memory.
    #[serde(skip)]
    pub reading: usize,
}

/// A whole merge.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// `VERSION`.
    pub plan: u32,
    /// Seed of methods that draw random numbers.
    pub seed: u64,
    /// Whether NaN, infinities and overflow are allowed.
    pub allow_nonfinite: bool,
    /// Input files.
    pub inputs: Vec<InputFile>,
    /// Output files.
    pub outputs: Vec<OutputFile>,
    /// Output tensors, in file order.
    pub tensors: Vec<OutputTensor>,
    /// Tables of row gathers, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, Table>,
    /// Tasks, in the order of `tensors`.
    #[serde(deserialize_with = "reading::tasks")]
    pub tasks: Vec<Task>,
    #[serde(skip)]
    regions: Vec<Region>,
    #[serde(skip)]
    digests: OnceLock<Vec<Hash>>,
}

impl Plan {
    /// Parses a plan; refuses unknown fields, other versions and an inconsistent layout.
    pub fn parse(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            plan: u32,
        }
        let fault = |e: serde_json::Error| Error::Merge(format!("plan: {e}"));
        let parsed = serde_json::from_str::<Self>(json);
        // The version first: other problems of a plan of another version do not matter.
        if let Ok(Versioned { plan }) =
            parsed.as_ref().map_or_else(|_| serde_json::from_str(json), |parsed| Ok(Versioned { plan: parsed.plan }))
            && plan != VERSION
        {
            return Err(Error::Merge(format!("plan has version {plan}, this engine runs version {VERSION}")));
        }
        let mut plan = parsed.map_err(fault)?;
        plan.regions = plan.lay_out()?;
        plan.check_references()?;
        Ok(plan)
    }

    /// Returns what each task writes.
    pub fn written(&self) -> &[Region] {
        &self.regions
    }

    /// Returns what a task writes, and the output tensor it belongs to.
    pub fn target(&self, task: usize) -> (&Region, &OutputTensor) {
        let region = &self.regions[task];
        (region, &self.tensors[region.tensor])
    }

    /// Reads the headers of all inputs on the current worker threads, and checks that they are unchanged since the plan
    /// was made. Of several problems the first is reported.
    pub fn read_headers(&self, watch: &Watch) -> Result<Vec<Arc<Header>>> {
        let read = |file: &InputFile| {
            watch.check()?;
            let header = Header::read(&file.path)?;
            let unchanged = header.stamp.size() == file.size
                && header.stamp.mtime_ns() == file.mtime_ns
                && header.digest == file.header;
            if unchanged { Ok(Arc::new(header)) } else { Err(changed(&file.path)) }
        };
        let headers: Vec<Result<_>> = self.inputs.par_iter().map(read).collect();
        headers.into_iter().collect()
    }
}

/// An input differs from what the plan was made from.
fn changed(path: &Path) -> Error {
    Error::checkpoint(
        path,
        "the file has changed since the merge was planned; run the command again to make a new plan",
    )
}
