//! GETLK, SETLK and SETLKW, and what ends locks: FLUSH, RELEASE and INTERRUPT.

use crate::fuse::abi::{LK_FLOCK, LkIn, LkOut, init_flags};
use crate::host::Share;
use crate::host::locks::{LockFamily, LockFile, LockOwner, LockRequest, LockWait, Locked};
use crate::state::OpenFile;
use crate::sys::lock::{LockKind, Span};
use crate::sys::stat;
use crate::types::{Errno, FileHandle, NodeId, Unique};

fn owner_of(lk: &LkIn) -> LockOwner {
    let family = if lk.lk_flags & LK_FLOCK != 0 { LockFamily::Flock } else { LockFamily::Posix };
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
        let found = self.locks.find_conflict(node, owner, span, kind.ok_or(Errno::EINVAL)?, file.fd())?;
        Ok(match found {
            None => LkOut { start: lk.start, end: lk.end, kind: libc::F_UNLCK.cast_unsigned(), pid: 0 },
            Some(held) => {
                let kind = if held.kind == LockKind::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
                LkOut { start: held.span.start, end: held.span.end, kind: kind.cast_unsigned(), pid: held.pid }
            }
        })
    }

    /// SETLK, and with `wait` SETLKW: takes a lock or takes it off. EAGAIN where another is in the way; with `wait`
    /// the request is suspended, and answered later. EBADF for an exclusive record lock through a file that is open for reading
    /// only; EDEADLK, ENOLCK, EINTR as in man fcntl(2).
    pub fn setlk(&self, node: NodeId, lk: &LkIn, wait: Option<LockWait<'_>>) -> Result<Locked, Errno> {
        let (handle, owner) = (FileHandle(lk.fh), owner_of(lk));
        self.lockable(node, handle)?;
        let (span, kind) = decode(lk)?;
        match kind {
            None => self.locks.unlock(node, owner, span).map(|()| Locked::Done),
            Some(kind) => {
                let wanted = LockRequest { node, handle, owner, span, kind, pid: lk.pid };
                let file = self.open_file(handle)?;
                let is_writable = file.flags() & libc::O_ACCMODE != libc::O_RDONLY;
                // Opening for writing is seen by who watches the file, and copies it up on an overlay.
                let (needs_write, writes) = match owner.family {
                    LockFamily::Posix if kind == LockKind::Exclusive && !is_writable => return Err(Errno::EBADF),
                    // Whoever may write will: most programs turn their shared locks into exclusive ones.
                    LockFamily::Posix => (kind == LockKind::Exclusive, is_writable),
                    LockFamily::Flock => {
                        let writes = kind == LockKind::Exclusive && !self.has_local_flock(node, &file)?;
                        (writes, writes)
                    }
                };
                drop(file);
                // There is no errno for a lock that the file table has no room for but this one.
                let no_room = |errno| if errno == Errno::ENFILE { Errno::ENOLCK } else { errno };
                let is_known = || self.inodes.is_looked_up(node);
                self.locks.lock(&wanted, needs_write, is_known, || self.open_for_locks(node, writes).map_err(no_room), wait)
            }
        }
    }

    /// Whether flock(2) of `file`, which is `node`, needs no right to write: so on the share's own file system where that is
    /// local, and on the others by their type.
    fn has_local_flock(&self, node: NodeId, file: &OpenFile<'_>) -> Result<bool, Errno> {
        let is_here = self.is_local && self.inodes.identity(node)?.mount_id == self.root.mount_id;
        if is_here { Ok(true) } else { stat::has_local_flock(file.fd()) }
    }

    /// A description of its own: with `writes` for both kinds of lock where the file may be written, else for shared ones.
    fn open_for_locks(&self, node: NodeId, writes: bool) -> Result<LockFile, Errno> {
        if writes && !self.options.readonly {
            match self.counted(|| self.open_node(node, libc::O_RDWR)) {
                Err(errno) if [libc::EACCES, libc::EPERM, libc::EROFS, libc::ETXTBSY].contains(&errno.raw()) => {}
                opened => return opened.map(|file| LockFile { file, is_writable: true }),
            }
        }
        self.counted(|| self.open_node(node, libc::O_RDONLY)).map(|file| LockFile { file, is_writable: false })
    }

    /// INTERRUPT: a wait for a lock on the host ends with EINTR. Other requests are not interrupted.
    pub fn interrupt(&self, unique: Unique) {
        if self.has_host_locks() {
            self.locks.interrupt(unique);
        }
    }

    /// The request `unique` does not wait for a lock: an INTERRUPT of it that came before is forgotten.
    pub fn forget_interrupt(&self, unique: Unique) {
        self.locks.forget_interrupt(unique);
    }

    /// Ends the record locks of a process that closed the file: each close(2) of any of its descriptors does.
    pub(in crate::host) fn end_posix_locks(&self, node: NodeId, owner: u64) {
        // A process that ends cannot be told of an error.
        let _ = self.locks.unlock(node, LockOwner { family: LockFamily::Posix, id: owner }, Span::WHOLE);
    }

    /// Ends what hangs on an open file that is released: waits, and the flock(2) lock of `owner`.
    pub(in crate::host) fn end_file_locks(&self, node: NodeId, handle: FileHandle, owner: Option<u64>) {
        self.locks.release(node, handle);
        if let Some(id) = owner {
            let _ = self.locks.unlock(node, LockOwner { family: LockFamily::Flock, id }, Span::WHOLE);
        }
    }
}
