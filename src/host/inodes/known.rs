//! Whether the guest knows a file: what a name leads to is then no other process's work.

use std::os::fd::BorrowedFd;

use super::guest_inodes::Inodes;
use super::identity::{FileKey, kind_of};
use crate::sys::file_handle;
use crate::sys::stat::Statx;
use crate::types::Errno;

impl Inodes {
    /// Whether the guest has looked up the file behind `fd`, which `st` describes, and not forgotten it. The errno of
    /// name_to_handle_at(2).
    pub fn is_known(&self, fd: BorrowedFd<'_>, st: &Statx) -> Result<bool, Errno> {
        let Some(known) = self.table.looked_up(&FileKey::of(st)).filter(|known| known.kind == kind_of(st)) else { return Ok(false) };
        match known.handle {
            // A number that the host gave to another file meanwhile has another generation in its handle.
            Some(handle) => Ok(file_handle::of(fd, c"")?.is_some_and(|(present, _)| present == handle)),
            // The node keeps its file open, so that its number is not given again.
            None => Ok(true),
        }
    }
}
