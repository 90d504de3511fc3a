//! An open file that a request keeps in use while its bytes are on their way, on whatever thread. Not bound to a borrow of the
//! share, to which it is given back (`Share::let_go`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::host::files::no_open::Opened;
use crate::host::share::Share;
use crate::state;

/// A file in use. One that is not given back keeps the file open until the session's end.
#[derive(Debug)]
pub struct HeldFile(pub(in crate::host) Held);

#[derive(Debug)]
pub(in crate::host) enum Held {
    /// What the guest has opened.
    Handle(state::HeldFile),
    /// What was opened for it, for reading.
    Node(Arc<OwnedFd>),
}

impl HeldFile {
    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Held::Handle(file) => file.fd(),
            Held::Node(file) => file.as_fd(),
        }
    }
}

impl Opened<'_> {
    /// The same without the borrow. `None` for a directory.
    pub(in crate::host) fn hold(self) -> Option<HeldFile> {
        match self {
            Opened::Handle(file) => Some(HeldFile(Held::Handle(file.hold()))),
            Opened::File(file) => Some(HeldFile(Held::Node(file))),
            Opened::Directory(_) => None,
        }
    }
}

impl Share {
    /// The request is done with `file`, which is closed here if its RELEASE came meanwhile.
    pub fn let_go(&self, file: HeldFile) {
        match file.0 {
            Held::Handle(file) => drop(self.handles.take_up(file)),
            Held::Node(file) => drop(file),
        }
    }
}
