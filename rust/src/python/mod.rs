//! `mol._rust`, the extension: the only module that names pyo3. A merge is one call; the GIL is released while Rust works.
// pyo3 passes arguments by value.
#![allow(clippy::needless_pass_by_value)]

mod audit;
mod boundary;

use crate::audit::Digest;
use crate::container::{Entry, Header};
use crate::error::{Error, Result};
use crate::methods::Method;
use crate::plan::Plan;
use crate::run::budget::cost;
use crate::run::commit::commit as rename;
use crate::run::lock::Lock;
use crate::run::preflight::preflight as check;
use crate::run::{self, Options, TILE};
use crate::simd::Simd;
use crate::vocabulary::{Tokens, Vocabulary, extended};
use crate::watch::Watch;
use boundary::{enter, json, watched};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

type Row = (String, String, Vec<usize>, usize);

#[pyfunction]
#[pyo3(signature = (path, known = None))]
fn read_header(py: Python<'_>, path: PathBuf, known: Option<HashSet<(String, u64)>>) -> PyResult<Bound<'_, PyAny>> {
    let (size, mtime_ns, digest, tensors): (u64, i64, String, Option<Vec<Row>>) = enter(py, || {
        let (Header { stamp, digest, tensors, .. }, new) = Header::read_unless(&path, &known.unwrap_or_default())?;
        let row = |t: Entry| (t.name, t.dtype.to_string(), t.shape, t.bytes.len());
        Ok((stamp.size(), stamp.mtime_ns(), digest, new.then(|| tensors.into_iter().map(row).collect())))
    })?;
    let row = |(name, dtype, shape, bytes): Row| {
        Ok((name, pyo3::types::PyString::intern(py, &dtype), pyo3::types::PyTuple::new(py, shape)?, bytes))
    };
    let rows = tensors.map(|tensors| tensors.into_iter().map(row).collect::<PyResult<Vec<_>>>()).transpose()?;
    (size, mtime_ns, digest, rows).into_bound_py_any(py)
}

/// Ids by token, scores in their order where the model has them, and the rest of the file as JSON.
type ReadVocabulary<'py> = (Bound<'py, PyDict>, Option<Vec<f64>>, String);

#[pyfunction]
fn read_vocabulary<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Option<ReadVocabulary<'py>>> {
    let Some(Vocabulary { tokens, rest }) = enter(py, || Ok(Vocabulary::read(data)))? else { return Ok(None) };
    let ids = PyDict::new(py);
    let scores = match tokens {
        Tokens::Ids(tokens) => {
            let count = tokens.len();
            tokens.into_iter().try_for_each(|(token, id)| ids.set_item(token, id))?;
            // A token that is given twice is left to Python, which refuses two ids of it.
            if ids.len() < count {
                return Ok(None);
            }
            None
        }
        Tokens::Scores(tokens) => {
            tokens.iter().enumerate().try_for_each(|(id, (token, _))| ids.set_item(token, id))?;
            Some(tokens.into_iter().map(|(_, score)| score).collect())
        }
    };
    Ok(Some((ids, scores, rest)))
}

#[pyfunction]
fn extend_vocabulary(py: Python<'_>, data: &[u8], entries: &str, added: &str) -> PyResult<Option<String>> {
    enter(py, || Ok(extended(data, entries, added)))
}

#[pyfunction]
fn methods() -> Vec<(&'static str, Vec<&'static str>, u64)> {
    Method::all().map(|(name, numbers, sweeps)| (name, numbers.to_vec(), sweeps)).collect()
}

#[pyfunction]
fn plan_digest(py: Python<'_>, plan: &str) -> PyResult<String> {
    enter(py, || Plan::parse(plan)?.digest())
}

#[pyfunction]
#[pyo3(signature = (plan, *, threads = None, tile = None, memory = None))]
fn plan_cost(
    py: Python<'_>,
    plan: &str,
    threads: Option<usize>,
    tile: Option<usize>,
    memory: Option<u64>,
) -> PyResult<(u64, u64, usize)> {
    enter(py, || {
        let parsed = Plan::parse(plan)?;
        let (files, stages, heap) = cost(&parsed, threads, tile.unwrap_or(TILE), memory)?;
        Ok((files, stages, heap.saturating_add(plan.len())))
    })
}

/// Exclusive ownership of a partial directory, from the first check until `close`.
#[pyclass(frozen, module = "mol._rust")]
struct PartialLock(Mutex<Option<Lock>>);

impl PartialLock {
    /// Runs `work` with the given lock, or with one that is held for this call.
    fn with<T>(
        lock: Option<&Self>,
        partial: &Path,
        out: Option<&Path>,
        work: impl FnOnce(&mut Lock) -> Result<T>,
    ) -> Result<T> {
        let Some(lock) = lock else { return work(&mut Lock::look(partial, out)?) };
        let mut held = lock.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *held {
            Some(held) if held.partial() == partial => work(held),
            _ => Err(Error::Merge(format!("{}: the lock is of another directory, or released", partial.display()))),
        }
    }
}

#[pymethods]
impl PartialLock {
    #[new]
    fn new(py: Python<'_>, partial: PathBuf, out: PathBuf) -> PyResult<Self> {
        Ok(Self(Mutex::new(Some(enter(py, || Lock::look(&partial, Some(&out)))?))))
    }

    #[getter]
    fn warning(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Lock::warning)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

#[pyfunction]
#[pyo3(signature = (plan, partial, *, discard_partial = false, threads = None, mmap = None, lock = None))]
fn preflight(
    py: Python<'_>,
    plan: &str,
    partial: PathBuf,
    discard_partial: bool,
    threads: Option<usize>,
    mmap: Option<bool>,
    lock: Option<&Bound<'_, PartialLock>>,
) -> PyResult<String> {
    let lock = lock.map(Bound::get);
    let watch = Watch::default();
    let work = || {
        let plan = Plan::parse(plan)?;
        PartialLock::with(lock, &partial, None, |lock| {
            json(&check(&plan, lock, discard_partial, threads, mmap, &watch)?)
        })
    };
    watched(py, &watch, work, |_| Ok(()))
}

#[pyfunction]
// Keyword arguments of the Python function.
#[allow(clippy::too_many_arguments)]
#[pyo3(signature = (
    plan, partial, *, outputs = None, threads = None, memory = None, mmap = None, tile = None, simd = "auto",
    digest = None, sync = true, on_progress = None, on_output = None, lock = None
))]
fn execute(
    py: Python<'_>,
    plan: &str,
    partial: PathBuf,
    outputs: Option<Vec<usize>>,
    threads: Option<usize>,
    memory: Option<u64>,
    mmap: Option<bool>,
    tile: Option<usize>,
    simd: &str,
    digest: Option<&str>,
    sync: bool,
    on_progress: Option<Py<PyAny>>,
    on_output: Option<Py<PyAny>>,
    lock: Option<&Bound<'_, PartialLock>>,
) -> PyResult<String> {
    let digest = digest.map(Digest::parse).transpose()?;
    let options = Options { threads, tile: tile.unwrap_or(TILE), simd: Simd::parse(simd)?, digest, sync, memory, mmap };
    let plan = enter(py, || Plan::parse(plan))?;
    let lock = lock.map(Bound::get);
    let (watch, outputs) = (Watch::default(), outputs.as_deref());
    watched(
        py,
        &watch,
        || {
            let work = |lock: &mut Lock| json(&run::execute(&plan, lock, outputs, options, &watch)?);
            match (lock, outputs) {
                (None, Some(_)) => work(&mut Lock::shared(&partial)?),
                _ => PartialLock::with(lock, &partial, None, work),
            }
        },
        |py| {
            for name in watch.finished_outputs() {
                on_output.as_ref().map_or(Ok(()), |call| call.call1(py, (name,)).map(drop))?;
            }
            let (Some(call), Some((total_read, total_written))) = (&on_progress, watch.totals()) else { return Ok(()) };
            let (read, written) = watch.progress();
            call.call1(py, (read, total_read, written, total_written)).map(drop)
        },
    )
}

#[pyfunction]
#[pyo3(signature = (partial, out, *, overwrite = false, sync = true, lock = None))]
fn commit(
    py: Python<'_>,
    partial: PathBuf,
    out: PathBuf,
    overwrite: bool,
    sync: bool,
    lock: Option<&Bound<'_, PartialLock>>,
) -> PyResult<Option<String>> {
    let lock = lock.map(Bound::get);
    let left = enter(py, || PartialLock::with(lock, &partial, Some(&out), |lock| rename(lock, &out, overwrite, sync)))?;
    Ok(left.map(|(left, error)| {
        format!("the model is complete, but the one it replaces could not be removed from {}: {error}", left.display())
    }))
}

#[pymodule(gil_used = false)]
fn _rust(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<PartialLock>()?;
    module.add_function(wrap_pyfunction!(read_header, module)?)?;
    module.add_function(wrap_pyfunction!(read_vocabulary, module)?)?;
    module.add_function(wrap_pyfunction!(extend_vocabulary, module)?)?;
    module.add_function(wrap_pyfunction!(methods, module)?)?;
    module.add_function(wrap_pyfunction!(plan_digest, module)?)?;
    module.add_function(wrap_pyfunction!(plan_cost, module)?)?;
    module.add_function(wrap_pyfunction!(preflight, module)?)?;
    module.add_function(wrap_pyfunction!(execute, module)?)?;
    module.add_function(wrap_pyfunction!(commit, module)?)?;
    module.add_function(wrap_pyfunction!(audit::checksum, module)?)?;
    module.add_function(wrap_pyfunction!(audit::checksum_tensors, module)?)?;
    module.add_function(wrap_pyfunction!(audit::compare, module)?)
}
