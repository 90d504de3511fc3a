//! GETLK, SETLK and SETLKW, and what ends locks: FLUSH, RELEASE and INTERRUPT.

use crate::host::locks::{HeldLock, LockFamily, LockFile, LockOwner, LockRequest, LockWait, Locked};
use crate::host::share::Share;
use crate::state::OpenFile;
use crate::sys::lock::{LockKind, Span};
use crate::sys::stat;
use crate::types::{Errno, FileHandle, NodeId, Unique};

impl Share {
    /// GETLK: the lock that conflicts with `wanted`, if there is one. The process is known for locks of this guest, otherwise 0.
    /// ENOSYS where locks are the guest kernel's own; EBADF where the handle is not an open regular file of the node.
    pub fn getlk(&self, wanted: &LockRequest) -> Result<Option<HeldLock>, Errno> {
        let LockRequest { node, handle, owner, span, kind, .. } = *wanted;
        self.check_lockable(node, handle)?;
        let file = self.files.get(handle)?;
        self.locks.find_conflict(node, owner, span, kind, file.fd())
    }

    /// SETLK, and with `wait` SETLKW: takes a lock. EAGAIN where another owner holds a conflicting one; with `wait` the request
    /// is suspended instead and answered later. EBADF for an exclusive record lock through a file that is open for reading only;
    /// EDEADLK, ENOLCK, EINTR as in man fcntl(2); those of [`Share::getlk`].
    pub fn setlk(&self, wanted: &LockRequest, wait: Option<LockWait<'_>>) -> Result<Locked, Errno> {
        let LockRequest { node, handle, owner, kind, .. } = *wanted;
        self.check_lockable(node, handle)?;
        let file = self.files.get(handle)?;
        let is_writable = file.flags() & libc::O_ACCMODE != libc::O_RDONLY;
        // Opening for writing is visible to watchers of the file, and copies it up on an overlay.
        let (needs_write, writes) = match owner.family {
            LockFamily::Posix if kind == LockKind::Exclusive && !is_writable => return Err(Errno::EBADF),
            // Most programs that may write convert their shared locks into exclusive ones.
            LockFamily::Posix => (kind == LockKind::Exclusive, is_writable),
            LockFamily::Flock => {
                let writes = kind == LockKind::Exclusive && !self.has_local_flock(node, &file)?;
                (writes, writes)
            }
        };
        drop(file);
        // The only errno for a lock that the file table has no room for.
        let no_room = |errno| if errno == Errno::ENFILE { Errno::ENOLCK } else { errno };
        let is_known = || self.inodes.is_looked_up(node);
        self.locks.lock(wanted, needs_write, is_known, || self.open_for_locks(node, writes).map_err(no_room), wait)
    }

    /// SETLK and SETLKW with F_UNLCK: releases what `owner` holds of `span`. Errors as of [`Share::getlk`].
    pub fn unlock(&self, node: NodeId, handle: FileHandle, owner: LockOwner, span: Span) -> Result<(), Errno> {
        self.check_lockable(node, handle)?;
        self.locks.unlock(node, owner, span)
    }

    /// Whether the guest's locks are held on the host, by its open files.
    pub(super) fn has_host_locks(&self) -> bool {
        self.policy.host_locks && self.session.has_locks()
    }

    fn check_lockable(&self, node: NodeId, handle: FileHandle) -> Result<(), Errno> {
        if !self.session.has_locks() {
            return Err(Errno::ENOSYS);
        }
        let is_open = self.files.get(handle)?.node() == node;
        if is_open && self.inodes.kind(node)? == libc::S_IFREG { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// Whether flock(2) of `file`, which is `node`, needs no write access: on the share's own file system where that is local,
    /// and on the others by their type.
    fn has_local_flock(&self, node: NodeId, file: &OpenFile<'_>) -> Result<bool, Errno> {
        let is_here = self.policy.is_local && self.inodes.identity(node)?.mount_id == self.inodes.root().identity.mount_id;
        if is_here { Ok(true) } else { stat::has_local_flock(file.fd()) }
    }

    /// A description of its own: with `writes` for both kinds of lock where the file may be written, else for shared ones.
    fn open_for_locks(&self, node: NodeId, writes: bool) -> Result<LockFile, Errno> {
        if writes && !self.policy.readonly {
            match self.files.counted(|| self.inodes.open_node(node, libc::O_RDWR)) {
                Err(errno) if [libc::EACCES, libc::EPERM, libc::EROFS, libc::ETXTBSY].contains(&errno.raw()) => {}
                opened => return opened.map(|file| LockFile { file, is_writable: true }),
            }
        }
        self.files.counted(|| self.inodes.open_node(node, libc::O_RDONLY)).map(|file| LockFile { file, is_writable: false })
    }

    /// INTERRUPT: a wait for a lock on the host ends with EINTR. Other requests are not interrupted.
    pub fn interrupt(&self, unique: Unique) {
        if self.has_host_locks() {
            self.locks.interrupt(unique);
        }
    }

    /// The request `unique` does not wait for a lock: an INTERRUPT of it that came before is dropped.
    pub fn forget_interrupt(&self, unique: Unique) {
        self.locks.forget_interrupt(unique);
    }

    /// Ends the record locks of a process that closed the file: each close(2) of any of its descriptors does.
    pub(super) fn end_posix_locks(&self, node: NodeId, owner: u64) {
        // The lock ends with the process, also where the host reports an error.
        let _ = self.locks.unlock(node, LockOwner { family: LockFamily::Posix, id: owner }, Span::WHOLE);
    }

    /// Ends what belongs to an open file that is released: waits, and the flock(2) lock of `owner`.
    pub(super) fn end_file_locks(&self, node: NodeId, handle: FileHandle, owner: Option<u64>) {
        self.locks.release(node, handle);
        if let Some(id) = owner {
            let _ = self.locks.unlock(node, LockOwner { family: LockFamily::Flock, id }, Span::WHOLE);
        }
    }
}
