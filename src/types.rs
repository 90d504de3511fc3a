//! Identities as types: what may cross from one room to another in place of a bare number.
//! Knows nothing of how any of them is stored.
#![forbid(unsafe_code)]

use std::fmt;

/// An error number as the guest sees it (man errno(3)); never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Errno = Errno(libc::EPERM);
    /// No such file or directory.
    pub const ENOENT: Errno = Errno(libc::ENOENT);
    /// Input/output error.
    pub const EIO: Errno = Errno(libc::EIO);
    /// A signal came.
    pub const EINTR: Errno = Errno(libc::EINTR);
    /// Argument list too long.
    pub const E2BIG: Errno = Errno(libc::E2BIG);
    /// Bad file handle.
    pub const EBADF: Errno = Errno(libc::EBADF);
    /// Permission denied.
    pub const EACCES: Errno = Errno(libc::EACCES);
    /// A lock is held by another.
    pub const EAGAIN: Errno = Errno(libc::EAGAIN);
    /// Waiting for the lock would never end.
    pub const EDEADLK: Errno = Errno(libc::EDEADLK);
    /// Too many locks.
    pub const ENOLCK: Errno = Errno(libc::ENOLCK);
    /// Address outside guest memory.
    pub const EFAULT: Errno = Errno(libc::EFAULT);
    /// The name exists.
    pub const EEXIST: Errno = Errno(libc::EEXIST);
    /// Invalid argument.
    pub const EINVAL: Errno = Errno(libc::EINVAL);
    /// Not a directory.
    pub const ENOTDIR: Errno = Errno(libc::ENOTDIR);
    /// A table is full.
    pub const ENFILE: Errno = Errno(libc::ENFILE);
    /// The share is read-only.
    pub const EROFS: Errno = Errno(libc::EROFS);
    /// The reply does not fit its descriptors.
    pub const ERANGE: Errno = Errno(libc::ERANGE);
    /// A name longer than 255 bytes.
    pub const ENAMETOOLONG: Errno = Errno(libc::ENAMETOOLONG);
    /// No such ioctl for this file.
    pub const ENOTTY: Errno = Errno(libc::ENOTTY);
    /// Operation not implemented.
    pub const ENOSYS: Errno = Errno(libc::ENOSYS);
    /// No such attribute.
    pub const ENODATA: Errno = Errno(libc::ENODATA);
    /// Protocol error.
    pub const EPROTO: Errno = Errno(libc::EPROTO);
    /// Not supported here.
    pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
    /// The node or its file is gone.
    pub const ESTALE: Errno = Errno(libc::ESTALE);

    /// `raw` as an errno; anything that is not a plausible error number becomes EIO.
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

/// A FUSE node id. Made by the inode table when a name is first looked up, counted by the guest's
/// lookups, and dead when FORGET brings that count to zero. It holds the slot of the inode's record
/// and the slot's generation, so an id that outlived its inode is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the share (`FUSE_ROOT_ID`): slot 1, generation 0.
    pub const ROOT: NodeId = NodeId(1);
}

/// A FUSE file handle. Made by OPEN, OPENDIR, CREATE or TMPFILE, dead after RELEASE or RELEASEDIR.
/// Slot and generation as in [`NodeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileHandle(pub u64);

impl FileHandle {
    /// Not open: what a guest sends that need not open files. No open file has it.
    pub const NONE: FileHandle = FileHandle(0);
}

/// The number by which the guest pairs a reply with its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Unique(pub u64);

/// A virtqueue's index: 0 is hiprio, request queues follow (virtio 1.3 section 5.11.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueIndex(pub u16);

impl QueueIndex {
    /// The high-priority queue, on which FORGET and INTERRUPT arrive.
    pub const HIPRIO: QueueIndex = QueueIndex(0);
}

/// The identity of a request in flight, from the pop of its chain to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The queue that it came on.
    pub queue: QueueIndex,
    /// The first descriptor of its chain: no other request in flight on the queue has it, unless the guest is broken.
    pub head: u16,
    /// The guest's number for it.
    pub unique: Unique,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {} (queue {}, head {})", self.unique.0, self.queue.0, self.head)
    }
}

/// A user id as the guest writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestUid(pub u32);

/// A group id as the guest writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestGid(pub u32);

/// A user id as the host's kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostUid(pub u32);

/// A group id as the host's kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostGid(pub u32);
