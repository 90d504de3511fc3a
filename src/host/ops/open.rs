//! OPEN, RELEASE, FLUSH and FSYNCDIR.

use std::os::fd::{AsFd, OwnedFd};

use crate::host::caching::OpenCaching;
use crate::host::request_context::RequestContext;
use crate::host::share::Share;
use crate::sys::descriptor;
use crate::sys::fsetid::without_fsetid;
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
        let truncates = host_flags & libc::O_TRUNC != 0;
        if truncates {
            context.check_wanted()?;
        }
        let file = if truncates && self.session.clears_suidgid(kill_suidgid) {
            self.open_and_clear(node, host_flags & !libc::O_TRUNC)
        } else {
            self.inodes.open_node(node, host_flags)
        }?;
        if truncates {
            self.drop_mapped_capability(node, file.as_fd())?;
        }
        let handle = self.files.insert(file, node, host_flags & !libc::O_TRUNC, || self.session.has_ended())?;
        Ok(self.opened(handle, node, host_flags))
    }

    /// Opens `node`, truncates it and lets the kernel clear setuid and setgid bits. Not in one call: a thread that has laid
    /// CAP_FSETID down may not be able to open it (`sys/working_dir.rs`). As of man open(2) and ftruncate(2).
    fn open_and_clear(&self, node: NodeId, flags: i32) -> Result<OwnedFd, Errno> {
        let file = self.inodes.open_node(node, flags)?;
        let writable = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => Some(self.inodes.open_node(node, libc::O_WRONLY)?),
            _ => None,
        };
        without_fsetid(|| rustix::fs::ftruncate(writable.as_ref().unwrap_or(&file), 0))?;
        Ok(file)
    }

    /// RELEASE; a flock(2) lock of `flock_owner` ends with it. EBADF where the handle is not open, and for a directory's handle,
    /// which has RELEASEDIR.
    pub fn release(&self, handle: FileHandle, flock_owner: Option<u64>) -> Result<(), Errno> {
        let file = self.files.get(handle)?;
        if file.flags() & libc::O_DIRECTORY != 0 {
            return Err(Errno::EBADF);
        }
        self.end_file_locks(file.node(), handle, flock_owner);
        if file.remove() { Ok(()) } else { Err(Errno::EBADF) }
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
    pub fn flush(&self, handle: FileHandle, lock_owner: u64) -> Result<(), Errno> {
        if handle == FileHandle::NONE && self.session.has_no_open() {
            return Err(Errno::ENOSYS);
        }
        let file = self.files.get(handle)?;
        self.end_posix_locks(file.node(), lock_owner);
        let duplicate = rustix::io::fcntl_dupfd_cloexec(file.fd(), 0)?;
        descriptor::close(duplicate)
    }

    /// FSYNCDIR. EBADF where the handle is not open, and for a file's handle, which has FSYNC; the errno of fsync(2).
    pub fn fsyncdir(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<(), Errno> {
        let directory = self.open_target(node, handle)?;
        if !directory.is_directory() {
            return Err(Errno::EBADF);
        }
        descriptor::sync(directory.fd(), data_only)
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
    pub(super) fn opened(&self, handle: FileHandle, node: NodeId, host_flags: i32) -> Opened {
        let by_policy = self.policy.cache.of_file();
        let caching = OpenCaching { keep: by_policy.keep || self.freshness.is_unchanged(node), ..by_policy };
        Opened { handle, caching, needs_flush: self.needs_flush(node, host_flags) }
    }

    /// Whether the guest must send FLUSH at each close(2): locks end with it, it writes back its dirty pages, or the host's file
    /// system may have an error to report.
    fn needs_flush(&self, node: NodeId, host_flags: i32) -> bool {
        let is_here = || self.policy.is_local && self.inodes.is_on_root_mount(node);
        let nothing_to_report = host_flags & libc::O_ACCMODE == libc::O_RDONLY || is_here();
        self.has_host_locks() || self.session.has_writeback() || !nothing_to_report
    }
}
