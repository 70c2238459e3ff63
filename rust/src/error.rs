//! Error: what failed, in which file, for which tensor, and the way out.
use std::io;
use std::path::{Path, PathBuf};

/// Everything that can stop the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes of a tensor cannot be had.
    #[error("{}: tensor `{tensor}` cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not a sound SafeTensors file, or lacks what it should hold.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Tensor, found, wanted.
        reason: String,
    },
    /// The merge cannot be done as asked.
    #[error("{0}")]
    Merge(String),
    /// Another process is at work there.
    #[error("{0}")]
    Busy(String),
    /// The data hold a NaN, an infinity, or a result too large for the output dtype; no resume can help.
    #[error("{0}")]
    NonFinite(String),
    /// Inputs changed under the run; what was made of them is void.
    #[error("{0}")]
    Changed(String),
    /// Stopped on request.
    #[error("cancelled")]
    Cancelled,
    /// A defect of mol itself.
    #[error("internal error in the merge engine: {0}")]
    Panic(String),
}

/// The result of everything fallible here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Adds the path to what the system said.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    /// A fault of a checkpoint file.
    pub fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), reason: reason.into() }
    }
}
