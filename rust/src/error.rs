//! Errors: what failed, in which file, for which tensor, and the way out.
use std::io;
use std::path::{Path, PathBuf};

/// Every error that the engine returns.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system returned an error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The bytes of a tensor could not be read.
    #[error("{}: tensor `{tensor}` cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not a valid SafeTensors file, or lacks an expected tensor.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Tensor, found and expected.
        reason: String,
    },
    /// The requested merge is not possible.
    #[error("{0}")]
    Merge(String),
    /// Another process is using the directory.
    #[error("{0}")]
    Busy(String),
    /// The data contain a NaN, an infinity, or a result too large for the output dtype; resuming cannot help.
    #[error("{0}")]
    NonFinite(String),
    /// Inputs changed during the run; results made from them are discarded.
    #[error("{0}")]
    Changed(String),
    /// Stopped on request.
    #[error("cancelled")]
    Cancelled,
    /// A bug in mol.
    #[error("internal error in the merge engine: {0}")]
    Panic(String),
}

/// The result type of the engine.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Adds the path to a system error.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    /// Builds an error about a checkpoint file.
    pub fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), reason: reason.into() }
    }
}
