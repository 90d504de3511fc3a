//! Locks of an open file description: byte ranges (fcntl(2), F_OFD_SETLK) and whole files (flock(2)). None of
//! these calls waits.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::FlockOperation;

use crate::types::Errno;

/// What holds, or is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Others may hold it too.
    Shared,
    /// Nobody else holds anything.
    Exclusive,
}

/// Bytes `start` to `end`, both included; `end` at `i64::MAX` is the end of any file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
}

impl Span {
    /// Every byte.
    pub const WHOLE: Span = Span { start: 0, end: i64::MAX as u64 };
}

fn describe(span: Span, kind: Option<LockKind>) -> libc::flock {
    let l_type = match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    let to_the_end = span.end >= Span::WHOLE.end;
    // A length of zero reaches to the end, wherever that will be.
    let l_len = if to_the_end { 0 } else { (span.end - span.start + 1).cast_signed() };
    libc::flock { l_type: l_type as i16, l_whence: libc::SEEK_SET as i16, l_start: span.start.cast_signed(), l_len, l_pid: 0 }
}

/// Sets the lock of `file`'s description on `span`, or takes it off. EAGAIN where another description's or a
/// process's lock is in the way; EBADF for a kind that the file was not opened for.
pub fn set(file: BorrowedFd<'_>, span: Span, kind: Option<LockKind>) -> Result<(), Errno> {
    let lock = describe(span, kind);
    // SAFETY: the kernel reads the structure and keeps no pointer to it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        // man fcntl(2): either errno says that the lock is held.
        _ => Err(Errno::last()).map_err(|e| if e == Errno::EACCES { Errno::EAGAIN } else { e }),
    }
}

/// A lock that keeps `file`'s description from setting one of `kind` on `span`: its bytes and kind.
pub fn in_the_way(file: BorrowedFd<'_>, span: Span, kind: LockKind) -> Result<Option<(Span, LockKind)>, Errno> {
    let mut lock = describe(span, Some(kind));
    // SAFETY: the kernel reads and writes the structure and keeps no pointer to it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(Errno::last());
    }
    let kind = match i32::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => LockKind::Shared,
        _ => LockKind::Exclusive,
    };
    let start = lock.l_start.cast_unsigned();
    let end = if lock.l_len == 0 { Span::WHOLE.end } else { start.saturating_add(lock.l_len.cast_unsigned()).saturating_sub(1) };
    Ok(Some((Span { start, end }, kind)))
}

/// As [`set`], for the whole file and among flock(2)'s own locks. A change of kind that fails has lost the old
/// lock (man flock(2), NOTES).
pub fn set_whole(file: BorrowedFd<'_>, kind: Option<LockKind>) -> Result<(), Errno> {
    let operation = match kind {
        Some(LockKind::Shared) => FlockOperation::NonBlockingLockShared,
        Some(LockKind::Exclusive) => FlockOperation::NonBlockingLockExclusive,
        None => FlockOperation::NonBlockingUnlock,
    };
    Ok(rustix::fs::flock(file, operation)?)
}
