//! Identities as types, in place of bare numbers between rooms. Knows nothing of how they are stored.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// An error number (man errno(3)), never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Errno = Errno(libc::EPERM);
    /// No such file or directory.
    pub const ENOENT: Errno = Errno(libc::ENOENT);
    /// Input/output error.
    pub const EIO: Errno = Errno(libc::EIO);
    /// Interrupted by a signal, or by the guest.
    pub const EINTR: Errno = Errno(libc::EINTR);
    /// Argument list too long.
    pub const E2BIG: Errno = Errno(libc::E2BIG);
    /// Bad file handle.
    pub const EBADF: Errno = Errno(libc::EBADF);
    /// Permission denied.
    pub const EACCES: Errno = Errno(libc::EACCES);
    /// A conflicting lock is held.
    pub const EAGAIN: Errno = Errno(libc::EAGAIN);
    /// Waiting for the lock would be a deadlock.
    pub const EDEADLK: Errno = Errno(libc::EDEADLK);
    /// Too many locks.
    pub const ENOLCK: Errno = Errno(libc::ENOLCK);
    /// Address outside guest memory.
    pub const EFAULT: Errno = Errno(libc::EFAULT);
    /// Canceled.
    pub const ECANCELED: Errno = Errno(libc::ECANCELED);
    /// File exists.
    pub const EEXIST: Errno = Errno(libc::EEXIST);
    /// Invalid argument.
    pub const EINVAL: Errno = Errno(libc::EINVAL);
    /// Not a directory.
    pub const ENOTDIR: Errno = Errno(libc::ENOTDIR);
    /// A table is full, or no descriptor is available.
    pub const ENFILE: Errno = Errno(libc::ENFILE);
    /// The share is read-only.
    pub const EROFS: Errno = Errno(libc::EROFS);
    /// The result does not fit the buffer.
    pub const ERANGE: Errno = Errno(libc::ERANGE);
    /// A name above 255 bytes, or a path above PATH_MAX.
    pub const ENAMETOOLONG: Errno = Errno(libc::ENAMETOOLONG);
    /// No such ioctl for this file.
    pub const ENOTTY: Errno = Errno(libc::ENOTTY);
    /// Operation not implemented.
    pub const ENOSYS: Errno = Errno(libc::ENOSYS);
    /// No such attribute.
    pub const ENODATA: Errno = Errno(libc::ENODATA);
    /// Protocol error.
    pub const EPROTO: Errno = Errno(libc::EPROTO);
    /// Operation not supported by the file system.
    pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
    /// The node or its file does not exist any more.
    pub const ESTALE: Errno = Errno(libc::ESTALE);

    /// The errno `raw`; EIO for a number that is not an errno (1 to 4095).
    pub fn from_raw(raw: i32) -> Errno {
        if (1..4096).contains(&raw) { Errno(raw) } else { Errno::EIO }
    }

    /// The errno of the last failed system call of this thread.
    pub fn last() -> Errno {
        std::io::Error::last_os_error().into()
    }

    /// The positive error number.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", rustix::io::Errno::from_raw_os_error(self.0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    fn from(e: std::io::Error) -> Errno {
        Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(e: rustix::io::Errno) -> Errno {
        Errno::from_raw(e.raw_os_error())
    }
}

/// A FUSE node id. The inode table makes it at the first lookup of a file, counts the lookups, and ends it when FORGET brings the
/// count to zero. It holds the slot of the inode's record and the generation of the slot, so that the id of a forgotten inode is
/// not that of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the share (`FUSE_ROOT_ID`): slot 1, generation 0.
    pub const ROOT: NodeId = NodeId(1);
}

/// A FUSE file handle. OPEN, OPENDIR, CREATE and TMPFILE make it, RELEASE and RELEASEDIR end it. It holds a slot and a generation,
/// as [`NodeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileHandle(pub u64);

impl FileHandle {
    /// The handle that a guest sends for files that it did not open (NO_OPEN_SUPPORT). No open file has it.
    pub const NONE: FileHandle = FileHandle(0);
}

/// The number by which the guest matches a reply to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Unique(pub u64);

/// The index of a virtqueue: hiprio is 0, request queues follow (virtio 1.3 section 5.11.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QueueIndex(pub u16);

impl QueueIndex {
    /// The high-priority queue, for FORGET and INTERRUPT.
    pub const HIPRIO: QueueIndex = QueueIndex(0);
}

/// The identity of a request, from the pop of its chain to its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Its queue.
    pub queue: QueueIndex,
    /// The head of its descriptor chain. Unique among the requests in flight of the queue, unless the guest violates the protocol.
    pub head: u16,
    /// The guest's number of it.
    pub unique: Unique,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {} (queue {}, head {})", self.unique.0, self.queue.0, self.head)
    }
}

/// A user id in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestUid(pub u32);

/// A group id in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestGid(pub u32);

/// A user id on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostUid(pub u32);

/// A group id on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostGid(pub u32);
