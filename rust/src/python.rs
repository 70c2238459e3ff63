//! `mol._rust`: the only file that names pyo3. One call a merge; the GIL is released while Rust works.
// Arguments arrive as values that pyo3 has made.
#![allow(clippy::needless_pass_by_value)]

use crate::audit::{self, Digest, Distance};
use crate::container::{Container, Entry, Header};
use crate::error::Error;
use crate::methods::Method;
use crate::plan::Plan;
use crate::run::commit::commit as rename;
use crate::run::lock::Lock;
use crate::run::preflight::preflight as check;
use crate::run::{self, Options, TILE, heap};
use crate::simd::{Simd, default_float_mode};
use crate::source::Tensor;
use crate::watch::{Watch, pool};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the waiting Python thread looks at signals and reports progress.
const TICK: Duration = Duration::from_millis(100);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let class = match &error {
            // OSError's own constructor picks FileNotFoundError, PermissionError and so on from the number.
            Error::Io { path, source } => {
                let path = path.display().to_string();
                return match source.raw_os_error() {
                    Some(number) => PyOSError::new_err((number, said(source), path)),
                    None => PyOSError::new_err(error.to_string()),
                };
            }
            Error::Read { path, tensor, source } => {
                let (path, said) = (path.display().to_string(), said(source));
                return match source.raw_os_error() {
                    Some(number) => PyOSError::new_err((number, format!("{said}, reading tensor `{tensor}`"), path)),
                    None => PyOSError::new_err(error.to_string()),
                };
            }
            Error::Checkpoint { .. } | Error::Changed(_) => "CheckpointError",
            Error::Merge(_) | Error::Busy(_) | Error::NonFinite(_) => "MergeError",
            Error::Cancelled => "MergeCancelled",
            Error::Panic(_) => "MolError",
        };
        let message = error.to_string();
        Python::attach(|py| match py.import("mol.errors").and_then(|errors| errors.getattr(class)?.call1((message,))) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        })
    }
}

/// What the system said, without the number that Python shows by itself.
fn said(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Runs `work` with the GIL released; a panic becomes an error.
fn enter<T: Send>(py: Python<'_>, work: impl FnOnce() -> crate::error::Result<T> + Send) -> PyResult<T> {
    py.detach(|| guard(work)).map_err(PyErr::from)
}

fn guard<T>(work: impl FnOnce() -> crate::error::Result<T>) -> crate::error::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::Panic(text.unwrap_or_else(|| "a panic without a message".into())))
    })
}

/// Runs `work` on another thread while this one checks signals and calls `tick` every 100 ms; a signal or an exception
/// there cancels the work and is raised after it has stopped.
fn watched<T: Send>(
    py: Python<'_>,
    watch: &Watch,
    work: impl FnOnce() -> crate::error::Result<T> + Send,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()>,
) -> PyResult<T> {
    let (waiting, done) = (std::thread::current(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            default_float_mode();
            let result = guard(work);
            done.store(true, Ordering::Release);
            waiting.unpark();
            result
        });
        let mut raised = None;
        loop {
            py.detach(|| std::thread::park_timeout(TICK));
            if done.load(Ordering::Acquire) {
                break;
            }
            if raised.is_none()
                && let Err(error) = py.check_signals().and_then(|()| tick(py))
            {
                watch.cancel();
                raised = Some(error);
            }
        }
        let result = py.detach(|| worker.join());
        let result = result.unwrap_or_else(|_| Err(Error::Panic("the worker thread died".into())));
        if let Some(error) = raised {
            return Err(error);
        }
        tick(py)?;
        result.map_err(PyErr::from)
    })
}

fn json(value: &impl serde::Serialize) -> crate::error::Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Panic(format!("report: {e}")))
}

type Table = (u64, i64, String, Vec<(String, String, Vec<usize>, usize)>);

#[pyfunction]
fn read_header(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let (size, mtime_ns, digest, tensors): Table = enter(py, || {
        let Header { stamp, digest, tensors, .. } = Header::read(&path)?;
        let row = |t: Entry| (t.name, t.dtype.to_string(), t.shape, t.bytes.len());
        Ok((stamp.size(), stamp.mtime_ns(), digest, tensors.into_iter().map(row).collect()))
    })?;
    let rows: Vec<_> = tensors
        .into_iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name, pyo3::types::PyString::intern(py, &dtype), pyo3::types::PyTuple::new(py, shape)?, bytes))
        })
        .collect::<PyResult<_>>()?;
    (size, mtime_ns, digest, rows).into_bound_py_any(py)
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
) -> PyResult<(u64, usize)> {
    enter(py, || {
        let parsed = Plan::parse(plan)?;
        Ok((
            run::writer::bytes_needed(&parsed)?,
            heap(&parsed, threads, tile.unwrap_or(TILE), memory)?.saturating_add(plan.len()),
        ))
    })
}

/// The place of a merge, held from the first look at it until `close`.
#[pyclass(frozen, module = "mol._rust")]
struct PartialLock(Mutex<Option<Lock>>);

impl PartialLock {
    /// Runs `work` with the lock given, or with one that lasts as long as the call.
    fn with<T>(
        lock: Option<&Self>,
        partial: &Path,
        out: Option<&Path>,
        work: impl FnOnce(&mut Lock) -> crate::error::Result<T>,
    ) -> crate::error::Result<T> {
        let Some(lock) = lock else { return work(&mut Lock::look(partial, out)?) };
        let mut held = lock.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *held {
            Some(held) if held.partial() == partial => work(held),
            _ => Err(Error::Merge(format!("{}: the lock given is of another place, or released", partial.display()))),
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
// Keyword arguments of Python.
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
        format!(
            "the model is complete, but what was there before could not be removed from {}: {error}",
            left.display()
        )
    }))
}

#[pyfunction]
#[pyo3(signature = (path, *, digest = None, threads = None, on_progress = None))]
fn checksum(
    py: Python<'_>,
    path: PathBuf,
    digest: Option<&str>,
    threads: Option<usize>,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let digest = digest.map(Digest::parse).transpose()?;
    let total = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
    let watch = Watch::default();
    watched(
        py,
        &watch,
        || json(&pool(threads, || audit::sum_file(&path, digest, None, &watch))??),
        |py| on_progress.as_ref().map_or(Ok(()), |call| call.call1(py, (watch.progress().0, total)).map(drop)),
    )
}

#[pyfunction]
#[pyo3(signature = (path, tensors, *, threads = None))]
fn checksum_tensors(
    py: Python<'_>,
    path: PathBuf,
    tensors: Vec<String>,
    threads: Option<usize>,
) -> PyResult<Vec<String>> {
    let watch = Watch::default();
    watched(py, &watch, || pool(threads, || audit::sum_tensors(&path, &tensors, &watch))?, |_| Ok(()))
}

/// An opened file, which is held for whoever asks for it next: all of a checkpoint at once may be more than may be open.
fn opened(
    held: &mut Option<Arc<Container>>,
    header: &Arc<Header>,
    mmap: Option<bool>,
) -> crate::error::Result<Arc<Container>> {
    if let Some(file) = held.as_ref().filter(|file| Arc::ptr_eq(&file.header, header)) {
        return Ok(file.clone());
    }
    Ok(held.insert(Arc::new(Container::open(header, mmap)?)).clone())
}

type Pair = (PathBuf, String, PathBuf, String);
type Distances = Vec<(f64, f64, f64, f64, f64, usize)>;

#[pyfunction]
#[pyo3(signature = (pairs, *, threads = None, mmap = None, on_progress = None))]
fn compare(
    py: Python<'_>,
    pairs: Vec<Pair>,
    threads: Option<usize>,
    mmap: Option<bool>,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<Distances> {
    use rayon::prelude::*;
    let watch = Watch::default();
    let headers = enter(py, || {
        let mut headers = HashMap::new();
        for path in pairs.iter().flat_map(|(a, _, b, _)| [a, b]) {
            if !headers.contains_key(path) {
                headers.insert(path, Arc::new(Header::read(path)?));
            }
        }
        Ok(headers)
    })?;
    let known = |path: &PathBuf, name: &str| Tensor::new(&Arc::new(Container::unopened(&headers[path])), name);
    let mut total = 0;
    for (a, x, b, y) in &pairs {
        total += known(a, x)?.entry().bytes.len() + known(b, y)?.entry().bytes.len();
    }
    let distance = |held: &mut [Option<Arc<Container>>; 2], (a, x, b, y): &Pair| {
        let [first, second] = held;
        let tensors =
            [Tensor::new(&opened(first, &headers[a], mmap)?, x)?, Tensor::new(&opened(second, &headers[b], mmap)?, y)?];
        let Distance { norm_a, norm_b, norm_difference, dot, max_difference, index } =
            audit::compare(&tensors, Simd::detect(), &watch)?;
        Ok((norm_a, norm_b, norm_difference, dot, max_difference, index))
    };
    watched(
        py,
        &watch,
        || pool(threads, || pairs.par_iter().map_init(Default::default, distance).collect())?,
        |py| on_progress.as_ref().map_or(Ok(()), |call| call.call1(py, (watch.progress().0, total)).map(drop)),
    )
}

#[pymodule(gil_used = false)]
fn _rust(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<PartialLock>()?;
    module.add_function(wrap_pyfunction!(read_header, module)?)?;
    module.add_function(wrap_pyfunction!(methods, module)?)?;
    module.add_function(wrap_pyfunction!(plan_digest, module)?)?;
    module.add_function(wrap_pyfunction!(plan_cost, module)?)?;
    module.add_function(wrap_pyfunction!(preflight, module)?)?;
    module.add_function(wrap_pyfunction!(execute, module)?)?;
    module.add_function(wrap_pyfunction!(commit, module)?)?;
    module.add_function(wrap_pyfunction!(checksum, module)?)?;
    module.add_function(wrap_pyfunction!(checksum_tensors, module)?)?;
    module.add_function(wrap_pyfunction!(compare, module)?)
}
