//! The boundary to Python: releases the GIL, forwards signals, turns errors and panics into Python exceptions.
use crate::error::{Error, Result};
use crate::simd::default_float_mode;
use crate::watch::Watch;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often the waiting Python thread checks signals and reports progress.
const TICK: Duration = Duration::from_millis(100);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let class = match &error {
            // OSError's own constructor picks FileNotFoundError, PermissionError and so on from the number.
            Error::Io { path, source } => {
                let path = path.display().to_string();
                return match source.raw_os_error() {
                    Some(number) => PyOSError::new_err((number, system_message(source), path)),
                    None => PyOSError::new_err(error.to_string()),
                };
            }
            Error::Read { path, tensor, source } => {
                let (path, message) = (path.display().to_string(), system_message(source));
                return match source.raw_os_error() {
                    Some(number) => PyOSError::new_err((number, format!("{message}, reading tensor `{tensor}`"), path)),
                    None => PyOSError::new_err(error.to_string()),
                };
            }
            Error::Checkpoint { .. } | Error::Changed(_) => "CheckpointError",
            Error::Merge(_) | Error::Busy(_) | Error::NonFinite(_) => "MergeError",
            Error::Cancelled => "MergeCancelled",
            Error::Panic(_) => "InternalError",
        };
        let message = error.to_string();
        Python::attach(|py| match py.import("mol.errors").and_then(|errors| errors.getattr(class)?.call1((message,))) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        })
    }
}

/// Returns the system's message without the error number, which Python shows by itself.
fn system_message(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Runs `work` with the GIL released; a panic becomes an error.
pub(super) fn enter<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| guard(work)).map_err(PyErr::from)
}

fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::Panic(text.unwrap_or_else(|| "a panic without a message".into())))
    })
}

/// Runs `work` on another thread while this one checks signals and calls `tick` every 100 ms. A signal, or an exception
/// from `tick`, cancels the work and is raised once it has stopped.
pub(super) fn watched<T: Send>(
    py: Python<'_>,
    watch: &Watch,
    work: impl FnOnce() -> Result<T> + Send,
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

pub(super) fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Panic(format!("report: {e}")))
}
