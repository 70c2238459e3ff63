//! Functions of `mol._rust` that read finished files: checksums, and distances between tensors.
use super::boundary::{enter, json, watched};
use crate::audit::{self, Digest, Distance};
use crate::container::{Container, Header};
use crate::error::{Error, Result};
use crate::simd::Simd;
use crate::source::Tensor;
use crate::watch::{Watch, pool};
use pyo3::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

#[pyfunction]
#[pyo3(signature = (path, *, digest = None, threads = None, on_progress = None))]
pub(super) fn checksum(
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
pub(super) fn checksum_tensors(
    py: Python<'_>,
    path: PathBuf,
    tensors: Vec<String>,
    threads: Option<usize>,
) -> PyResult<Vec<String>> {
    let watch = Watch::default();
    watched(py, &watch, || pool(threads, || audit::sum_tensors(&path, &tensors, &watch))?, |_| Ok(()))
}

/// Returns an opened file, kept open until another one is requested: a checkpoint may have more files than may be open.
fn opened(held: &mut Option<Arc<Container>>, header: &Arc<Header>, mmap: Option<bool>) -> Result<Arc<Container>> {
    if let Some(file) = held.as_ref().filter(|file| Arc::ptr_eq(&file.header, header)) {
        return Ok(file.clone());
    }
    Ok(held.insert(Arc::new(Container::open(header, mmap)?)).clone())
}

type Pair = (PathBuf, String, PathBuf, String);
type Distances = Vec<(f64, f64, f64, f64, f64, usize)>;

#[pyfunction]
#[pyo3(signature = (pairs, *, threads = None, mmap = None, on_progress = None))]
pub(super) fn compare(
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
        let Distance { norm_a, norm_b, norm_difference, cosine, max_difference, index } =
            audit::compare(&tensors, Simd::detect(), &watch)?;
        Ok((norm_a, norm_b, norm_difference, cosine, max_difference, index))
    };
    watched(
        py,
        &watch,
        || pool(threads, || pairs.par_iter().map_init(Default::default, distance).collect())?,
        |py| on_progress.as_ref().map_or(Ok(()), |call| call.call1(py, (watch.progress().0, total)).map(drop)),
    )
}
