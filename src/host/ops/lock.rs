//! GETLK, SETLK and SETLKW, and what ends locks: FLUSH and RELEASE.

use std::os::fd::OwnedFd;

use crate::fuse::abi::{LK_FLOCK, LkIn, LkOut, init_flags};
use crate::host::Share;
use crate::host::locks::{Family, LockAnswer, LockOwner, Locked, Wanted};
use crate::sys::lock::{LockKind, Span};
use crate::types::{Errno, FileHandle, NodeId};

fn owner_of(lk: &LkIn) -> LockOwner {
    let family = if lk.lk_flags & LK_FLOCK != 0 { Family::Flock } else { Family::Posix };
    LockOwner { family, id: lk.owner }
}

/// The bytes and the kind that a request names; no kind is an unlock. EINVAL for what makes no sense.
fn decode(lk: &LkIn) -> Result<(Span, Option<LockKind>), Errno> {
    let kind = match lk.kind.cast_signed() {
        libc::F_RDLCK => Some(LockKind::Shared),
        libc::F_WRLCK => Some(LockKind::Exclusive),
        libc::F_UNLCK => None,
        _ => return Err(Errno::EINVAL),
    };
    let span = if lk.lk_flags & LK_FLOCK != 0 { Span::WHOLE } else { Span { start: lk.start, end: lk.end.min(Span::WHOLE.end) } };
    if span.start > span.end { Err(Errno::EINVAL) } else { Ok((span, kind)) }
}

impl Share {
    /// Fails with ENOSYS where locks are the guest's own affair, and for what cannot be locked.
    fn lockable(&self, node: NodeId, handle: FileHandle) -> Result<(), Errno> {
        if !self.agreed(init_flags::POSIX_LOCKS) && !self.agreed(init_flags::FLOCK_LOCKS) {
            return Err(Errno::ENOSYS);
        }
        let is_open = self.open_file(handle)?.node() == node;
        if is_open && self.kind(node)? == libc::S_IFREG { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// GETLK: the lock that is in the way, or F_UNLCK. The process is known for locks of this guest, else 0.
    pub fn getlk(&self, node: NodeId, lk: &LkIn) -> Result<LkOut, Errno> {
        let (handle, owner) = (FileHandle(lk.fh), owner_of(lk));
        self.lockable(node, handle)?;
        let (span, kind) = decode(lk)?;
        let file = self.open_file(handle)?;
        let found = self.locks.in_the_way(node, owner, span, kind.ok_or(Errno::EINVAL)?, file.fd())?;
        Ok(match found {
            None => LkOut { start: lk.start, end: lk.end, kind: libc::F_UNLCK.cast_unsigned(), pid: 0 },
            Some(held) => {
                let kind = if held.kind == LockKind::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
                LkOut { start: held.span.start, end: held.span.end, kind: kind.cast_unsigned(), pid: held.pid }
            }
        })
    }

    /// SETLK, and with `wait` SETLKW: takes a lock or takes it off. EAGAIN where another is in the way; with `wait`
    /// the answer that it makes is called later. EDEADLK, ENOLCK as in man fcntl(2).
    pub fn setlk(&self, node: NodeId, lk: &LkIn, wait: Option<&dyn Fn() -> Result<LockAnswer, Errno>>) -> Result<Locked, Errno> {
        let (handle, owner) = (FileHandle(lk.fh), owner_of(lk));
        self.lockable(node, handle)?;
        let (span, kind) = decode(lk)?;
        match kind {
            None => self.locks.unlock(node, owner, span).map(|()| Locked::Done),
            Some(kind) => {
                let wanted = Wanted { node, handle, owner, span, kind, pid: lk.pid };
                let open = || self.counted(|| self.open_for_locks(node, owner.family));
                // There is no errno for a lock that the file table has no room for but this one.
                let open = || open().map_err(|errno| if errno == Errno::ENFILE { Errno::ENOLCK } else { errno });
                self.locks.lock(&wanted, open, wait)
            }
        }
    }

    /// A description of its own: for both kinds of lock where the file may be written, else for shared ones. flock(2)
    /// needs no right to write, but on a server's file systems.
    fn open_for_locks(&self, node: NodeId, family: Family) -> Result<OwnedFd, Errno> {
        let needs_write = family == Family::Posix || !self.is_local;
        if !self.options.readonly && needs_write {
            match self.open_node(node, libc::O_RDWR) {
                Err(errno) if [libc::EACCES, libc::EPERM, libc::EROFS, libc::ETXTBSY].contains(&errno.raw()) => {}
                opened => return opened,
            }
        }
        self.open_node(node, libc::O_RDONLY)
    }

    /// Ends the record locks of a process that closed the file: each close(2) of any of its descriptors does.
    pub(in crate::host) fn end_posix_locks(&self, node: NodeId, owner: u64) {
        // A process that ends cannot be told of an error.
        let _ = self.locks.unlock(node, LockOwner { family: Family::Posix, id: owner }, Span::WHOLE);
    }

    /// Ends what hangs on an open file that is released: waits, and the flock(2) lock of `owner`.
    pub(in crate::host) fn end_file_locks(&self, node: NodeId, handle: FileHandle, owner: Option<u64>) {
        self.locks.release(node, handle);
        if let Some(id) = owner {
            let _ = self.locks.unlock(node, LockOwner { family: Family::Flock, id }, Span::WHOLE);
        }
    }
}
