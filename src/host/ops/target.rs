//! What most operations begin with: the open file or the node that a request refers to.

use std::os::fd::{AsFd, BorrowedFd};

use crate::host::directories::DirectoryStream;
use crate::host::files::OpenTarget;
use crate::host::share::Share;
use crate::types::{Errno, FileHandle, NodeId};

impl Share {
    /// What is open behind `handle`; EBADF where nothing is. Without a handle, where the guest sends no OPEN or OPENDIR: what is
    /// open of `node`, opened if need be; ESTALE where that is gone.
    pub(super) fn open_target(&self, node: NodeId, handle: FileHandle) -> Result<OpenTarget<'_>, Errno> {
        if handle != FileHandle::NONE {
            return self.files.get(handle).map(OpenTarget::Handle);
        }
        match self.inodes.kind(node)? {
            libc::S_IFREG if self.session.has_no_open() => self.inodes.file_of(node).map(OpenTarget::File),
            libc::S_IFDIR if self.session.has_no_opendir() => self.inodes.directory_of(node).map(OpenTarget::Directory),
            _ => Err(Errno::EBADF),
        }
    }

    /// Runs `look` on the open file where the request names one, else on an O_PATH descriptor of the node. Errors as of
    /// [`Share::open_target`] and `look`.
    pub(super) fn on_target<R>(
        &self,
        node: NodeId,
        handle: Option<FileHandle>,
        look: impl FnOnce(BorrowedFd<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        match handle {
            Some(handle) => look(self.open_target(node, handle)?.fd()),
            None => look(self.inodes.path_fd(node)?.as_fd()),
        }
    }

    /// Runs `list` on the directory behind `handle`, or on `node` where the guest sends no OPENDIR; there a directory that was
    /// removed meanwhile has no entries. EBADF where no directory is open, and the errors of `list`.
    pub(super) fn with_directory(
        &self,
        node: NodeId,
        handle: FileHandle,
        list: impl FnOnce(BorrowedFd<'_>, &mut DirectoryStream) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if handle != FileHandle::NONE {
            let stream = self.directories.get(handle)?;
            let mut stream = stream.lock();
            let file = self.files.get(handle)?;
            return list(file.fd(), &mut stream);
        }
        if !self.session.has_no_opendir() || self.inodes.kind(node)? != libc::S_IFDIR {
            return Err(Errno::EBADF);
        }
        let listed = self.inodes.directory_of(node).and_then(|directory| list(directory.file.as_fd(), &mut directory.stream.lock()));
        match listed {
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(()),
            listed => listed,
        }
    }

    /// Removes capabilities of the file behind `fd`, which is `node` and is about to change, where the host's kernel does not.
    pub(super) fn drop_mapped_capability(&self, node: NodeId, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.policy.rights.drop_mapped_capability(fd, || Ok(self.inodes.kind(node)? == libc::S_IFREG))
    }
}
