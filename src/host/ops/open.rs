//! OPEN, RELEASE, FLUSH, FSYNC: the life of an open file.

use std::os::fd::{AsFd, BorrowedFd};

use crate::fuse::abi::{OpenOut, init_flags};
use crate::host::rights::caller::without_fsetid;
use crate::host::{RequestContext, Share};
use crate::sys::descriptor;
use crate::types::{Errno, FileHandle, NodeId};

impl Share {
    /// The guest's open flags as the host's: those that change what the host does. O_APPEND is given with
    /// each write, since the guest may change it later (man fcntl(2), F_SETFL); the others are the guest
    /// kernel's own affair.
    pub(in crate::host) fn host_flags(&self, flags: u32) -> i32 {
        let mut kept = libc::O_ACCMODE | libc::O_TRUNC | libc::O_DSYNC | libc::O_SYNC;
        if self.options.allow_direct_io {
            kept |= libc::O_DIRECT;
        }
        if self.options.preserve_noatime {
            kept |= libc::O_NOATIME;
        }
        let mut flags = flags.cast_signed() & kept;
        // The guest's page cache reads what it partly overwrites, also of a file opened for writing only.
        if self.agreed(init_flags::WRITEBACK_CACHE) && flags & libc::O_ACCMODE == libc::O_WRONLY {
            flags = flags & !libc::O_ACCMODE | libc::O_RDWR;
        }
        flags
    }

    /// What the guest is told of a file that it opened.
    pub(in crate::host) fn open_out(&self, handle: FileHandle, node: NodeId, host_flags: i32) -> OpenOut {
        let open_flags = self.options.cache.file_flags(self.needs_flush(node, host_flags)) | self.kept_flags(node);
        OpenOut { fh: handle.0, open_flags, backing_id: 0 }
    }

    /// OPEN of a regular file. EBADF for any other type: special files are the guest kernel's own affair.
    /// ENOSYS where the guest can do without; ESTALE where the file is gone; EIO where a request to truncate was given up.
    pub fn open(&self, node: NodeId, flags: u32, kill_suidgid: bool, context: &RequestContext<'_>) -> Result<OpenOut, Errno> {
        if self.has_no_open() {
            return Err(Errno::ENOSYS);
        }
        if self.kind(node)? != libc::S_IFREG {
            return Err(Errno::EBADF);
        }
        let host_flags = self.host_flags(flags);
        if host_flags & libc::O_ACCMODE != libc::O_RDONLY || host_flags & libc::O_TRUNC != 0 {
            self.writable()?;
        }
        let open = || self.open_node(node, host_flags);
        let truncates = host_flags & libc::O_TRUNC != 0;
        if truncates {
            context.check_wanted()?;
        }
        let file = if truncates && self.kills_suidgid(kill_suidgid) { without_fsetid(open) } else { open() }?;
        if truncates {
            self.drop_hidden_capability(node, file.as_fd())?;
        }
        let handle = self.keep_open(file, node, host_flags & !libc::O_TRUNC)?;
        Ok(self.open_out(handle, node, host_flags))
    }

    /// RELEASE; `flock_owner` has a flock(2) lock that ends with it. EBADF for a directory's handle, which has
    /// RELEASEDIR.
    pub fn release(&self, handle: FileHandle, flock_owner: Option<u64>) -> Result<(), Errno> {
        let file = self.open_file(handle)?;
        if file.flags() & libc::O_DIRECTORY != 0 {
            return Err(Errno::EBADF);
        }
        self.end_file_locks(file.node(), handle, flock_owner);
        drop(file);
        self.end_handle(handle)
    }

    /// Closes what was opened for a request whose answer did not reach the guest.
    pub fn release_unanswered(&self, handle: FileHandle) {
        self.directories.write().remove(&handle);
        self.handles.remove(handle);
    }

    pub(in crate::host) fn end_handle(&self, handle: FileHandle) -> Result<(), Errno> {
        if self.handles.remove(handle) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// FLUSH, which follows each close(2) in the guest: ends the record locks of `lock_owner`, and closes a
    /// duplicate, so that a file system that reports write errors at close (NFS) reports them to the guest. ENOSYS
    /// where nothing is ever opened.
    pub fn flush(&self, handle: FileHandle, lock_owner: u64) -> Result<(), Errno> {
        if handle == FileHandle::NONE && self.has_no_open() {
            return Err(Errno::ENOSYS);
        }
        let file = self.open_file(handle)?;
        self.end_posix_locks(file.node(), lock_owner);
        let duplicate = rustix::io::fcntl_dupfd_cloexec(file.fd(), 0)?;
        descriptor::close(duplicate)
    }

    /// FSYNC.
    pub fn fsync(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<(), Errno> {
        sync(self.opened(node, handle)?.fd(), data_only)
    }

    /// FSYNCDIR. EBADF for a file's handle, which has FSYNC.
    pub fn fsyncdir(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<(), Errno> {
        let directory = self.opened(node, handle)?;
        if !directory.is_directory() {
            return Err(Errno::EBADF);
        }
        sync(directory.fd(), data_only)
    }
}

fn sync(file: BorrowedFd<'_>, data_only: bool) -> Result<(), Errno> {
    Ok(if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }?)
}
