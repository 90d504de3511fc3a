//! How the descriptors are shared out: by need, from one budget. What was used recently gives way to what the guest
//! opens, looks up or locks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::host::files::by_node::Pinnable;
use crate::host::share::Share;
use crate::state::{Budget, Reserved};
use crate::types::{Errno, FileHandle, NodeId};

/// How many descriptors there are for the guest's objects, and how many of them may be held without need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Open files, inodes that are kept as descriptors, locks and recently used inodes together; ENFILE beyond, for locks
    /// ENOLCK.
    pub all: usize,
    /// Recently used inodes; others are closed beyond.
    pub recent: usize,
}

/// What is left to the daemon: the listening socket, each queue's events, the memory of the next connection, and what a
/// request opens for a moment. 65 queues with five descriptors each and 509 regions of memory fit in.
const OWN_MAX: u64 = 1024;
/// A daemon with two queues has about 35 open.
const OWN_MIN: u64 = 64;

/// One part in this many stays for files that the guest opens, when inodes have taken the rest.
const FOR_OPEN_FILES: usize = 16;

impl Descriptors {
    /// Shares out `open_files` (RLIMIT_NOFILE): an eighth, between `OWN_MIN` and `OWN_MAX`, stays with the daemon, and no more than
    /// half.
    pub fn of(open_files: u64) -> Descriptors {
        let own = (open_files / 8).clamp(OWN_MIN, OWN_MAX).min(open_files / 2);
        let all = open_files.saturating_sub(own).clamp(16, 1 << 31);
        Descriptors { all: all as usize, recent: (open_files / 16).clamp(16, 65_536) as usize }
    }
}

/// A descriptor that has its place in the budget as long as it is open.
#[derive(Debug)]
pub struct Counted {
    // Closed first: the place is another's from then on.
    file: OwnedFd,
    _place: Place,
}

impl Counted {
    /// `file`, for which `reserved` is the place, in `budget`.
    fn new(file: OwnedFd, reserved: Reserved<'_>, budget: &Arc<Budget>) -> Counted {
        reserved.keep();
        Counted { file, _place: Place(Arc::clone(budget)) }
    }
}

impl AsFd for Counted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One place in the budget.
#[derive(Debug)]
struct Place(Arc<Budget>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.give(1);
    }
}

impl Share {
    /// Places for `count` descriptors, of which `spare` others stay free. Recently used inodes are closed for them. ENFILE
    /// where there are none.
    fn reserve(&self, count: usize, spare: usize) -> Result<Reserved<'_>, Errno> {
        loop {
            if let Some(reserved) = self.budget.reserve(count, spare) {
                return Ok(reserved);
            }
            if !self.path_fds.close_recent() && !self.handleless.close_recent() {
                return Err(Errno::ENFILE);
            }
        }
    }

    /// Takes in a file that the guest opened; `flags` are those it was opened with. ENFILE where there are too many.
    pub(in crate::host) fn keep_open(&self, file: OwnedFd, node: NodeId, flags: i32) -> Result<FileHandle, Errno> {
        let reserved = self.reserve(crate::state::HandleTable::descriptors_of(flags), 0)?;
        let handle = self.handles.insert(file, node, flags, reserved).map_err(|_| Errno::ENFILE)?;
        // The session may have ended meanwhile, and its handles been closed.
        if self.has_ended() {
            self.handles.remove(handle);
            return Err(Errno::EIO);
        }
        Ok(handle)
    }

    /// Makes `fd` one that a node may keep. ENFILE where there are too many.
    pub(in crate::host) fn pinnable(&self, fd: OwnedFd) -> Result<Pinnable<'_, OwnedFd>, Errno> {
        Ok(Pinnable::new(fd, self.reserve(1, self.budget.max() / FOR_OPEN_FILES)?))
    }

    /// What `open` opens, counted. ENFILE where there are too many, and nothing is opened then.
    pub(in crate::host) fn counted(&self, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<Counted, Errno> {
        let reserved = self.reserve(1, 0)?;
        Ok(Counted::new(open()?, reserved, &self.budget))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_keeps_its_own_and_the_guest_has_the_rest() {
        let of = |open_files| Descriptors::of(open_files).all;
        assert_eq!((of(1_000_000), of(20_000), of(1024), of(64)), (998_976, 18_976, 896, 32));
        assert_eq!((of(0), of(40), of(256)), (16, 20, 192));
        assert_eq!(of(u64::MAX), 1 << 31);
    }
}
