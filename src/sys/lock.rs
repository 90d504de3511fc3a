//! Locks of an open file description: byte ranges (F_OFD_SETLK of fcntl(2)) and whole files (flock(2)). No call waits.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::FlockOperation;

use super::failpoint::fail_call;
use crate::types::Errno;

/// The kind of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// A read lock: others may hold read locks on the same bytes.
    Shared,
    /// A write lock: nobody else may hold a lock on the same bytes.
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

/// A constant of `struct flock` in the type of its field.
#[expect(clippy::cast_possible_truncation, reason = "the constants are 0, 1 and 2")]
const fn short(constant: i32) -> i16 {
    constant as i16
}

fn describe(span: Span, kind: Option<LockKind>) -> libc::flock {
    let l_type = match kind {
        Some(LockKind::Shared) => short(libc::F_RDLCK),
        Some(LockKind::Exclusive) => short(libc::F_WRLCK),
        None => short(libc::F_UNLCK),
    };
    let to_the_end = span.end >= Span::WHOLE.end;
    // A length of zero is up to the end of the file, however it grows.
    let l_len = if to_the_end { 0 } else { (span.end - span.start + 1).cast_signed() };
    libc::flock { l_type, l_whence: short(libc::SEEK_SET), l_start: span.start.cast_signed(), l_len, l_pid: 0 }
}

/// Sets the lock of `file`'s description on `span`, or removes it. EAGAIN where a lock of another description or of a process
/// conflicts, EBADF for a kind that the file was not opened for, ENOLCK where the kernel has no memory for locks.
pub fn set(file: BorrowedFd<'_>, span: Span, kind: Option<LockKind>) -> Result<(), Errno> {
    fail_call!("fcntl_setlk");
    let lock = describe(span, kind);
    // SAFETY: the kernel reads the structure and keeps no pointer to it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        // man fcntl(2): EACCES and EAGAIN both mean that the lock is held.
        _ => Err(Errno::last()).map_err(|e| if e == Errno::EACCES { Errno::EAGAIN } else { e }),
    }
}

/// A lock that conflicts with one of `kind` on `span` of `file`'s description: its bytes and kind. `None` where the lock can be
/// set. EBADF as for [`set`].
pub fn in_the_way(file: BorrowedFd<'_>, span: Span, kind: LockKind) -> Result<Option<(Span, LockKind)>, Errno> {
    fail_call!("fcntl_getlk");
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

/// Sets or removes the flock(2) lock of `file`'s description. EAGAIN where another description holds a conflicting lock, EBADF
/// where the file system needs write access for an exclusive one. A conversion that fails has lost the old lock (man flock(2),
/// NOTES).
pub fn set_whole(file: BorrowedFd<'_>, kind: Option<LockKind>) -> Result<(), Errno> {
    fail_call!("flock");
    let operation = match kind {
        Some(LockKind::Shared) => FlockOperation::NonBlockingLockShared,
        Some(LockKind::Exclusive) => FlockOperation::NonBlockingLockExclusive,
        None => FlockOperation::NonBlockingUnlock,
    };
    Ok(rustix::fs::flock(file, operation)?)
}
