//! The open file that a request refers to, borrowed while a thread serves the request, or held while its I/O is in flight.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::host::directories::OpenDirectory;
use crate::state::{HeldFile, OpenFile};

/// What a request on an open file refers to.
#[derive(Debug)]
pub(in crate::host) enum OpenTarget<'s> {
    /// A handle of the guest.
    Handle(OpenFile<'s>),
    /// A file that was opened for a guest that sends no OPEN, for reading.
    File(Arc<OwnedFd>),
    /// A directory that was opened for a guest that sends no OPENDIR.
    Directory(Arc<OpenDirectory>),
}

impl OpenTarget<'_> {
    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            OpenTarget::Handle(file) => file.fd(),
            OpenTarget::File(file) => file.as_fd(),
            OpenTarget::Directory(directory) => directory.file.as_fd(),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        match self {
            OpenTarget::Handle(file) => file.flags() & libc::O_DIRECTORY != 0,
            OpenTarget::File(_) => false,
            OpenTarget::Directory(_) => true,
        }
    }

    /// The file, held without the borrow. `None` for a directory that the guest has not opened.
    pub fn hold(self) -> Option<FileInUse> {
        match self {
            OpenTarget::Handle(file) => Some(FileInUse::of_handle(file)),
            OpenTarget::File(file) => Some(FileInUse(Held::Node(file))),
            OpenTarget::Directory(_) => None,
        }
    }
}

/// A file that a request holds while its I/O is in flight, on any thread. To be given back by `Share::let_go`; one that is
/// dropped instead keeps the file open until the session's end.
#[derive(Debug)]
pub struct FileInUse(pub(super) Held);

#[derive(Debug)]
pub(super) enum Held {
    /// A handle of the guest.
    Handle(HeldFile),
    /// A file that was opened for a guest that sends no OPEN.
    Node(Arc<OwnedFd>),
}

impl FileInUse {
    /// The open file `file`, held.
    pub(in crate::host) fn of_handle(file: OpenFile<'_>) -> FileInUse {
        FileInUse(Held::Handle(file.hold()))
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Held::Handle(file) => file.fd(),
            Held::Node(file) => file.as_fd(),
        }
    }
}
