//! What a lock request consists of, and how one that waits is answered. Does not know tables or the host.

use crate::sys::lock::{LockKind, Span};
use crate::types::{Errno, FileHandle, NodeId, Unique};

/// Kind of locks; the two do not conflict with each other (man flock(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockFamily {
    /// Record locks, fcntl(2).
    Posix,
    /// flock(2).
    Flock,
}

/// The owner of a lock, as the guest's kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockOwner {
    /// The kind of locks.
    pub family: LockFamily,
    /// The guest's number for a process or an open file.
    pub id: u64,
}

/// A lock that is requested.
#[derive(Debug, Clone, Copy)]
pub struct LockRequest {
    /// The file.
    pub node: NodeId,
    /// The open file that the request was made through.
    pub handle: FileHandle,
    /// The owner.
    pub owner: LockOwner,
    /// The byte range.
    pub span: Span,
    /// Shared or exclusive.
    pub kind: LockKind,
    /// The guest's process.
    pub pid: u32,
}

/// Ends a wait: called once, by a thread that holds none of the locks of this room.
pub type LockAnswer = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// How a request waits for a lock.
pub struct LockWait<'w> {
    /// The request, for an INTERRUPT of it.
    pub unique: Unique,
    /// Suspends the request and returns the function that answers it when the wait ends. An error where it cannot be suspended.
    pub suspend: &'w mut dyn FnMut() -> Result<LockAnswer, Errno>,
}

impl std::fmt::Debug for LockWait<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LockWait").field("unique", &self.unique).finish_non_exhaustive()
    }
}

/// Result of a lock request that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    /// The lock is held, or released where an unlock was requested.
    Done,
    /// The request is suspended and answered later.
    Waits,
}
