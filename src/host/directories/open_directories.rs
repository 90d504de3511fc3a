//! The streams of open directories: by handle, or beside the descriptor where the guest sends no OPENDIR.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::stream::DirectoryStream;
use crate::types::{Errno, FileHandle};

/// A directory with its stream, for a guest that sends no OPENDIR.
#[derive(Debug)]
pub(in crate::host) struct OpenDirectory {
    /// The directory, open for reading.
    pub file: OwnedFd,
    /// Its stream.
    pub stream: Mutex<DirectoryStream>,
}

impl OpenDirectory {
    /// `file` at its first entry.
    pub fn new(file: OwnedFd) -> OpenDirectory {
        OpenDirectory { file, stream: Mutex::default() }
    }
}

/// The streams of the directories that the guest has open, by handle.
#[derive(Debug, Default)]
pub(in crate::host) struct OpenDirectories(RwLock<HashMap<FileHandle, Arc<Mutex<DirectoryStream>>>>);

impl OpenDirectories {
    /// Begins a stream for `handle`.
    pub fn insert(&self, handle: FileHandle) {
        self.0.write().insert(handle, Arc::default());
    }

    /// The stream of `handle`; EBADF where it is no directory's.
    pub fn get(&self, handle: FileHandle) -> Result<Arc<Mutex<DirectoryStream>>, Errno> {
        self.0.read().get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// Ends the stream of `handle`; EBADF where it is no directory's.
    pub fn remove(&self, handle: FileHandle) -> Result<(), Errno> {
        self.0.write().remove(&handle).map(drop).ok_or(Errno::EBADF)
    }

    /// Ends every stream.
    pub fn clear(&self) {
        self.0.write().clear();
    }
}
