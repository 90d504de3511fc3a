//! Why a directory or file cannot be shared: the cause, and what to do instead.

use std::io;
use std::path::{Path, PathBuf};

use super::inodes::RootFault;
use crate::state::ArenaError;
use crate::sys::shortage;
use crate::types::Errno;

/// Why a directory or file cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// File handles are required and cannot be opened.
    #[error(
        "--inode-file-handles mandatory: {path} has no file handles that this process may open; \
         run it with CAP_DAC_READ_SEARCH on a file system with file handles, or use prefer"
    )]
    NoFileHandles {
        /// The directory.
        path: PathBuf,
    },
    /// Security labels are required and not supported.
    #[error(
        "--security-label=always: the file system of {path} does not support extended attributes; \
         share a directory on one that does, or use auto"
    )]
    NoLabels {
        /// The directory.
        path: PathBuf,
    },
    /// No memory for the records.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The root cannot be examined.
    #[error("cannot read the attributes of {path}: {errno}")]
    Root {
        /// The directory.
        path: PathBuf,
        /// The errno of the system call.
        errno: Errno,
    },
}

impl ShareError {
    /// Whether the host lacks memory or an open file at the moment, and nothing else is wrong.
    pub fn is_shortage(&self) -> bool {
        match self {
            ShareError::Arena(ArenaError::Map { source, .. }) => shortage::is_one(source),
            ShareError::Arena(ArenaError::Unreadable(errno)) | ShareError::Root { errno, .. } => {
                shortage::is_one(&io::Error::from_raw_os_error(errno.raw()))
            }
            _ => false,
        }
    }
}

impl ShareError {
    /// `fault` of the root at `path`.
    pub(super) fn of(fault: RootFault, path: &Path) -> ShareError {
        let path = path.to_owned();
        match fault {
            RootFault::Arena(e) => ShareError::Arena(e),
            RootFault::NoFileHandles => ShareError::NoFileHandles { path },
            RootFault::Failed(errno) => ShareError::Root { path, errno },
        }
    }
}
