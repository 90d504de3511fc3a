//! Why a directory or file cannot be shared: one sentence each, with what to do instead.

use std::path::PathBuf;

use crate::state::ArenaError;
use crate::types::Errno;

/// Why a directory or file cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// File handles were asked for and cannot be had.
    #[error(
        "--inode-file-handles mandatory: {path} has no file handles that this process may open; \
         run it with CAP_DAC_READ_SEARCH on a file system that has them, or say prefer"
    )]
    NoFileHandles {
        /// The directory.
        path: PathBuf,
    },
    /// Security labels were demanded and cannot be had.
    #[error(
        "--security-label=always: {path} lies on a file system without extended attributes; \
         share a directory of one that has them, or say auto"
    )]
    NoLabels {
        /// The directory.
        path: PathBuf,
    },
    /// No memory for the records.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The root cannot be looked at.
    #[error("cannot read the attributes of {path}: {errno}")]
    Root {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
}
