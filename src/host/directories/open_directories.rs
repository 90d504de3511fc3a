//! The streams of open directories: by handle, or beside the descriptor where the guest sends no OPENDIR.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

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
    /// `file` at its first entry. There are so few of these directories that each may keep what it read.
    pub fn new(file: OwnedFd) -> OpenDirectory {
        OpenDirectory { file, stream: Mutex::new(DirectoryStream::new(&Arc::default())) }
    }
}

/// The streams of the directories that the guest has open, by handle.
#[derive(Debug, Default)]
pub(in crate::host) struct OpenDirectories {
    streams: RwLock<HashMap<FileHandle, Arc<Mutex<DirectoryStream>>>>,
    /// Bytes that all streams keep for their next request.
    kept_len: Arc<AtomicUsize>,
}

impl OpenDirectories {
    /// Begins a stream for `handle`.
    pub fn insert(&self, handle: FileHandle) {
        self.streams.write().insert(handle, Arc::new(Mutex::new(DirectoryStream::new(&self.kept_len))));
    }

    /// Begins a stream for `handle`, whose descriptor another process has read.
    pub fn insert_read(&self, handle: FileHandle) {
        self.streams.write().insert(handle, Arc::new(Mutex::new(DirectoryStream::anywhere(&self.kept_len))));
    }

    /// The stream of `handle`; EBADF where it is no directory's.
    pub fn get(&self, handle: FileHandle) -> Result<Arc<Mutex<DirectoryStream>>, Errno> {
        self.streams.read().get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// Ends the stream of `handle`; EBADF where it is no directory's.
    pub fn remove(&self, handle: FileHandle) -> Result<(), Errno> {
        self.streams.write().remove(&handle).map(drop).ok_or(Errno::EBADF)
    }

    /// Ends every stream.
    pub fn clear(&self) {
        self.streams.write().clear();
    }
}
