//! The JSON contract with Python, version 2: layout and work, and the checks that trust nothing.
mod check;
mod digest;
mod expr;
mod layout;
mod reading;

pub use crate::methods::Method;
pub use expr::{Expr, Fill, Made, Table};
pub use layout::{FileFormat, OutputFile, OutputTensor, Place, matrix};

use crate::container::Header;
use crate::error::{Error, Result};
use crate::watch::Watch;
use blake3::Hash;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The version of the contract; it rises with every new kind of expression and every new field.
pub const VERSION: u32 = 2;

/// An input file, and what it was when the plan was made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Time of last change, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// BLAKE3 of the header, hexadecimal.
    pub header: String,
}

/// Where a task's result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Index into `tensors`.
    pub tensor: usize,
    /// Its first row there.
    pub row: usize,
}

/// One piece of work: one result of a reading.
#[derive(Debug, Serialize)]
pub struct Task {
    /// What it writes: one tensor, from a row on.
    pub to: [Target; 1],
    /// What is done.
    pub by: Method,
    /// What it is done to.
    pub of: Vec<Expr>,
    /// What the method reads beside that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Expr>,
    /// The task of the plan whose result it is. Those of one run one after the other, while what they read is in memory.
    #[serde(skip)]
    pub reading: usize,
}

/// Everything that will be done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// `VERSION`.
    pub plan: u32,
    /// For methods that draw random numbers.
    pub seed: u64,
    /// Whether NaN, infinities and overflow pass.
    pub allow_nonfinite: bool,
    /// Files read.
    pub inputs: Vec<InputFile>,
    /// Files written.
    pub outputs: Vec<OutputFile>,
    /// What they hold, in order.
    pub tensors: Vec<OutputTensor>,
    /// Of row gathers, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, Table>,
    /// What is done, in the order of `tensors`.
    #[serde(deserialize_with = "reading::tasks")]
    pub tasks: Vec<Task>,
    #[serde(skip)]
    places: Vec<Place>,
    #[serde(skip)]
    digests: OnceLock<Vec<Hash>>,
}

impl Plan {
    /// Reads a plan; unknown fields and other versions are refused, and a layout that does not hold together.
    pub fn parse(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            plan: u32,
        }
        let fault = |e: serde_json::Error| Error::Merge(format!("plan: {e}"));
        let parsed = serde_json::from_str::<Self>(json);
        // The version first: what else is wrong with a plan of another version is beside the point.
        if let Ok(Versioned { plan }) =
            parsed.as_ref().map_or_else(|_| serde_json::from_str(json), |parsed| Ok(Versioned { plan: parsed.plan }))
            && plan != VERSION
        {
            return Err(Error::Merge(format!("plan has version {plan}, this engine runs version {VERSION}")));
        }
        let mut plan = parsed.map_err(fault)?;
        plan.places = plan.lay_out()?;
        plan.check_references()?;
        Ok(plan)
    }

    /// What each task writes.
    pub fn written(&self) -> &[Place] {
        &self.places
    }

    /// What a task writes, and the tensor that it belongs to.
    pub fn target(&self, task: usize) -> (&Place, &OutputTensor) {
        let place = &self.places[task];
        (place, &self.tensors[place.tensor])
    }

    /// Reads the headers of the inputs on the workers of the pool that this is called in, and checks that they are what they
    /// were when the plan was made. Of several problems the first is reported.
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

/// An input is not what the plan was made from.
fn changed(path: &Path) -> Error {
    Error::checkpoint(path, "the file has changed since the merge was planned; run the command again to plan anew")
}
