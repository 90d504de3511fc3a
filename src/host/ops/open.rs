//! OPEN, RELEASE, FLUSH and FSYNCDIR.

use std::os::fd::{AsFd, OwnedFd};

use crate::host::caching::OpenCaching;
use crate::host::request_context::RequestContext;
use crate::host::share::Share;
use crate::sys::descriptor;
use crate::sys::fsetid::without_fsetid;
use crate::sys::space::ftruncate;
use crate::types::{Errno, FileHandle, NodeId};

/// An open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: FileHandle,
    /// How the guest may cache it.
    pub caching: OpenCaching,
    /// The guest must send FLUSH when a descriptor of the file is closed.
    pub needs_flush: bool,
}

impl Share {
    /// OPEN of a regular file.
    ///
    /// # Errors
    /// ENOSYS where the guest need not send OPEN; EBADF for any other type, as the guest's kernel opens special files itself; EROFS
    /// for writing on a read-only share; ESTALE where the file is gone; EIO where a request that truncates was withdrawn; ENFILE
    /// where too many files are open; those of man open(2).
    pub fn open(&self, node: NodeId, flags: u32, kill_suidgid: bool, context: &RequestContext<'_>) -> Result<Opened, Errno> {
        if self.session.has_no_open() {
            return Err(Errno::ENOSYS);
        }
        if self.inodes.kind(node)? != libc::S_IFREG {
            return Err(Errno::EBADF);
        }
        let host_flags = self.host_flags(flags);
        if host_flags & libc::O_ACCMODE != libc::O_RDONLY || host_flags & libc::O_TRUNC != 0 {
            self.writable()?;
        }
        if let Some(handle) = self.opened_before(context) {
            return Ok(self.opened(handle, node, host_flags));
        }
        let truncates = host_flags & libc::O_TRUNC != 0;
        if truncates {
            context.check_wanted()?;
        }
        let clears = truncates && self.session.clears_suidgid(kill_suidgid);
        let file = if clears { self.open_truncated(node, host_flags) } else { self.inodes.open_node(node, host_flags) }?;
        if truncates {
            self.drop_mapped_capability(node, file.as_fd())?;
        }
        let handle = self.files.insert(file, node, host_flags & !libc::O_TRUNC, context.record, || self.session.has_ended())?;
        Ok(self.opened(handle, node, host_flags))
    }

    /// Opens `node` with O_TRUNC among `flags`, and lets the kernel clear setuid and setgid bits. Two calls, as CAP_FSETID must not
    /// be laid down while a file is opened (`sys::working_dir`).
    fn open_truncated(&self, node: NodeId, flags: i32) -> Result<OwnedFd, Errno> {
        let flags = flags & !libc::O_TRUNC;
        let file = self.inodes.open_node(node, flags)?;
        let truncate = |file: &OwnedFd| without_fsetid(|| ftruncate(file.as_fd(), 0));
        // O_TRUNC takes the right to write, also of a file that is opened for reading; ftruncate(2) takes a file open for writing.
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            truncate(&self.inodes.open_node(node, libc::O_WRONLY)?)?;
        } else {
            truncate(&file)?;
        }
        Ok(file)
    }

    /// RELEASE; a flock(2) lock of `flock_owner` ends with it. EBADF where the handle is not open, and for a directory's handle,
    /// which has RELEASEDIR.
    pub fn release(&self, handle: FileHandle, flock_owner: Option<u64>, context: &RequestContext<'_>) -> Result<(), Errno> {
        let file = match self.files.get(handle) {
            Err(_) if context.is_repeated() => return Ok(()),
            file => file?,
        };
        if file.flags() & libc::O_DIRECTORY != 0 {
            return Err(Errno::EBADF);
        }
        self.end_file_locks(file.node(), handle, flock_owner);
        context.once(0, || if file.remove() { Ok(()) } else { Err(Errno::EBADF) })
    }

    /// Closes what was opened for a request whose answer did not reach the guest.
    pub fn release_unanswered(&self, handle: FileHandle) {
        // Not open where the session ended meanwhile.
        let _ = self.directories.remove(handle);
        let _ = self.files.remove(handle);
    }

    /// FLUSH, which follows each close(2) in the guest: ends the record locks of `lock_owner`, and closes a duplicate, so that a
    /// file system that reports write errors at close (NFS) reports them to the guest. ENOSYS where the guest sends no OPEN, EBADF
    /// where the handle is not open; the errno of close(2).
    pub fn flush(&self, handle: FileHandle, lock_owner: u64, context: &RequestContext<'_>) -> Result<(), Errno> {
        if handle == FileHandle::NONE && self.session.has_no_open() {
            return Err(Errno::ENOSYS);
        }
        let file = self.files.get(handle)?;
        self.end_posix_locks(file.node(), lock_owner);
        let flush = || descriptor::close(descriptor::duplicate(file.fd())?);
        if self.reports_nothing_at_close(file.node()) { flush() } else { self.once_witnessed(file.fd(), context, flush) }
    }

    /// FSYNCDIR. EBADF where the handle is not open, and for a file's handle, which has FSYNC; the errno of fsync(2).
    pub fn fsyncdir(&self, node: NodeId, handle: FileHandle, data_only: bool, context: &RequestContext<'_>) -> Result<(), Errno> {
        let directory = self.open_target(node, handle)?;
        if !directory.is_directory() {
            return Err(Errno::EBADF);
        }
        self.once_witnessed(directory.fd(), context, || descriptor::sync(directory.fd(), data_only))
    }

    /// The guest's open flags that matter on the host. O_APPEND comes with each WRITE, since the guest may change it later (man
    /// fcntl(2), F_SETFL); the guest's kernel implements the others.
    pub(super) fn host_flags(&self, flags: u32) -> i32 {
        let mut kept = libc::O_ACCMODE | libc::O_TRUNC | libc::O_DSYNC | libc::O_SYNC;
        if self.policy.allow_direct_io {
            kept |= libc::O_DIRECT;
        }
        if self.policy.preserve_noatime {
            kept |= libc::O_NOATIME;
        }
        let mut flags = flags.cast_signed() & kept;
        // The guest's page cache reads pages that it partly overwrites, also of a file opened for writing only.
        if self.session.has_writeback() && flags & libc::O_ACCMODE == libc::O_WRONLY {
            flags = flags & !libc::O_ACCMODE | libc::O_RDWR;
        }
        flags
    }

    /// The reply for a file that was opened on the host with `host_flags`.
    pub(in crate::host) fn opened(&self, handle: FileHandle, node: NodeId, host_flags: i32) -> Opened {
        let by_policy = self.policy.cache.of_file();
        let caching = OpenCaching { keep: by_policy.keep || self.freshness.is_unchanged(node), ..by_policy };
        Opened { handle, caching, needs_flush: self.needs_flush(node, host_flags) }
    }

    /// Whether the guest must send FLUSH at each close(2): locks end with it, it writes back its dirty pages, or the host's file
    /// system may have an error to report.
    fn needs_flush(&self, node: NodeId, host_flags: i32) -> bool {
        let nothing_to_report = host_flags & libc::O_ACCMODE == libc::O_RDONLY || self.reports_nothing_at_close(node);
        self.has_host_locks() || self.session.has_writeback() || !nothing_to_report
    }

    /// Whether close(2) never fails on the file system of `node`.
    fn reports_nothing_at_close(&self, node: NodeId) -> bool {
        self.policy.is_local && self.inodes.is_on_root_mount(node)
    }
}
