//! The JSON contract with Python, version 1: everything that will be done, and the checks that trust nothing.
use crate::dtype::Float;
use crate::error::{Error, Result};
pub use crate::methods::Method;
use crate::shard::{Shard, Tensor};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of the contract; it rises with every new method or transform.
pub const VERSION: u32 = 1;

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

/// A tensor of an input file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Index into `inputs`.
    pub input: usize,
    /// Name there.
    pub tensor: String,
}

/// One output tensor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorTask {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, which is also the shape of every source.
    pub shape: Vec<usize>,
    /// Index into `outputs`.
    pub output: usize,
    /// What is done.
    pub method: Method,
    /// What it is done to.
    pub sources: Vec<Source>,
}

/// Everything that will be done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// `VERSION`.
    pub plan: u32,
    /// Files read.
    pub inputs: Vec<InputFile>,
    /// Names of the files written.
    pub outputs: Vec<String>,
    /// Tensors in layout order.
    pub tasks: Vec<TensorTask>,
    /// For methods that draw random numbers.
    pub seed: u64,
    /// Whether NaN, infinities and overflow pass.
    pub allow_nonfinite: bool,
}

impl TensorTask {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes written.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bitsize() / 8
    }

    /// The sources in the mapped files.
    pub fn resolve<'a>(&self, shards: &'a [Arc<Shard>]) -> Result<Vec<(&'a Shard, &'a Tensor)>> {
        self.sources.iter().map(|s| Ok((&*shards[s.input], shards[s.input].tensor(&s.tensor)?))).collect()
    }

    /// Checks the task against the mapped files.
    fn check(&self, shards: &[Arc<Shard>]) -> Result<()> {
        let fault = |reason: String| Error::Merge(format!("plan, tensor `{}`: {reason}", self.name));
        self.method.check(self.sources.len()).map_err(fault)?;
        if self.sources.iter().any(|s| s.input >= shards.len()) {
            return Err(fault("a source names an input that the plan lacks".into()));
        }
        let bits = self.shape.iter().try_fold(self.dtype.bitsize(), |bits, n| bits.checked_mul(*n));
        if bits.is_none_or(|bits| bits % 8 != 0) {
            return Err(fault(format!("shape {:?} of {} is not a whole number of bytes", self.shape, self.dtype)));
        }
        let copies = matches!(self.method, Method::Copy(_));
        for (shard, tensor) in self.resolve(shards)? {
            if tensor.shape != self.shape {
                let (found, wanted) = (&tensor.shape, &self.shape);
                let reason = format!("tensor `{}` has shape {found:?}, the plan wants {wanted:?}", tensor.name);
                return Err(Error::checkpoint(&shard.path, reason));
            }
            let both_float = Float::of(tensor.dtype).and(Float::of(self.dtype)).is_some();
            if !(both_float || copies && tensor.dtype == self.dtype) {
                let reason =
                    format!("tensor `{}` is {}, which cannot become {}", tensor.name, tensor.dtype, self.dtype);
                return Err(Error::checkpoint(&shard.path, reason));
            }
        }
        Ok(())
    }
}

impl Plan {
    /// Reads a plan; unknown fields and other versions are refused.
    pub fn parse(json: &str) -> Result<Self> {
        let plan: Self = serde_json::from_str(json).map_err(|e| Error::Merge(format!("plan: {e}")))?;
        if plan.plan != VERSION {
            return Err(Error::Merge(format!("plan has version {}, this engine runs version {VERSION}", plan.plan)));
        }
        plan.check_sizes()?;
        Ok(plan)
    }

    /// Checks that all sizes together fit into 64 bits, so that nothing that adds them up can overflow.
    fn check_sizes(&self) -> Result<()> {
        let mut total: u64 = 0;
        for task in &self.tasks {
            let bits = task.shape.iter().try_fold(task.dtype.bitsize(), |bits, n| bits.checked_mul(*n));
            let sum = bits.and_then(|bits| total.checked_add(bits as u64)).filter(|sum| i64::try_from(*sum).is_ok());
            total = sum.ok_or_else(|| {
                let (name, shape, dtype) = (&task.name, &task.shape, task.dtype);
                Error::Merge(format!("plan, tensor `{name}`: {shape:?} of {dtype} is more than any disk holds"))
            })?;
        }
        Ok(())
    }

    /// What names the work: BLAKE3 of the plan with inputs counted by size and header, not by place and time.
    pub fn digest(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Canonical<'a> {
            plan: u32,
            inputs: Vec<(u64, &'a str)>,
            outputs: &'a [String],
            tasks: &'a [TensorTask],
            seed: u64,
            allow_nonfinite: bool,
        }
        let canonical = Canonical {
            plan: self.plan,
            inputs: self.inputs.iter().map(|file| (file.size, file.header.as_str())).collect(),
            outputs: &self.outputs,
            tasks: &self.tasks,
            seed: self.seed,
            allow_nonfinite: self.allow_nonfinite,
        };
        let mut hasher = blake3::Hasher::new();
        serde_json::to_writer(&mut hasher, &canonical).map_err(|e| Error::Panic(format!("plan digest: {e}")))?;
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Maps the inputs, and checks that they are what they were when the plan was made.
    pub fn open_inputs(&self) -> Result<Vec<Arc<Shard>>> {
        let open = |file: &InputFile| {
            let shard = Shard::open(&file.path)?;
            let unchanged = shard.size() as u64 == file.size
                && shard.mtime_ns == file.mtime_ns
                && shard.header_digest == file.header;
            if unchanged { Ok(Arc::new(shard)) } else { Err(changed(&file.path)) }
        };
        self.inputs.iter().map(open).collect()
    }

    /// Checks every task against the mapped files, and the layout.
    pub fn check(&self, shards: &[Arc<Shard>]) -> Result<()> {
        let fault = |reason: String| Error::Merge(format!("plan: {reason}"));
        for name in &self.outputs {
            if Path::new(name).file_name() != Some(name.as_ref()) || !name.ends_with(".safetensors") {
                return Err(fault(format!("output `{name}` is not the name of a .safetensors file")));
            }
        }
        let distinct: HashSet<&str> = self.outputs.iter().map(String::as_str).collect();
        if distinct.len() != self.outputs.len() || self.outputs.is_empty() {
            return Err(fault("output files are not distinct".into()));
        }
        let mut names = HashSet::with_capacity(self.tasks.len());
        let mut output = 0;
        for task in &self.tasks {
            if !names.insert(task.name.as_str()) {
                return Err(fault(format!("tensor `{}` is written twice", task.name)));
            }
            if task.output < output || task.output >= self.outputs.len() {
                return Err(fault(format!("tensor `{}` is out of the order of the output files", task.name)));
            }
            output = task.output;
            task.check(shards)?;
        }
        Ok(())
    }
}

/// An input is not what the plan was made from.
fn changed(path: &Path) -> Error {
    Error::checkpoint(path, "the file has changed since the merge was planned; run the command again to plan anew")
}
