//! From a node id to a descriptor. What is opened for reading or writing is what was checked: only an object whose type was
//! seen, through one descriptor, to be a regular file or a directory (docs/SEMANTICS.md).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::guest_inodes::Inodes;
use super::identity::kind_of;
use crate::host::directories::OpenDirectory;
use crate::state::InodeIdentity;
use crate::sys::file_handle;
use crate::sys::open;
use crate::sys::stat;
use crate::types::{Errno, NodeId};

impl Inodes {
    /// An O_PATH descriptor of `node`: one that is kept, or opened by its handle. ESTALE where the node or its file is gone.
    pub fn path_fd(&self, node: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.files.path_fd(node) {
            return Ok(fd);
        }
        let identity = self.table.identity(node)?;
        let fd = Arc::new(self.open_identity(node, &identity, libc::O_PATH | libc::O_NOFOLLOW)?);
        self.files.keep_path_fd(node, &fd);
        self.close_if_forgotten(node);
        Ok(fd)
    }

    /// Closes what was just kept of `node` where the guest has forgotten it meanwhile: FORGET came too early to close it.
    fn close_if_forgotten(&self, node: NodeId) {
        if !self.table.is_looked_up(node) {
            self.files.close_node(node);
        }
    }

    /// The file `node`, open for reading, for a guest that sends no OPEN. Errors as of [`Inodes::open_node`].
    pub fn file_of(&self, node: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = self.files.file_of(node) {
            return Ok(file);
        }
        let file = Arc::new(self.open_node(node, libc::O_RDONLY)?);
        self.files.keep_file_of(node, &file);
        self.close_if_forgotten(node);
        Ok(file)
    }

    /// The directory `node` with its stream, for a guest that sends no OPENDIR. Errors as of [`Inodes::open_node`].
    pub fn directory_of(&self, node: NodeId) -> Result<Arc<OpenDirectory>, Errno> {
        if let Some(directory) = self.files.directory_of(node) {
            return Ok(directory);
        }
        let file = self.open_node(node, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let directory = Arc::new(OpenDirectory::new(file));
        self.files.keep_directory_of(node, &directory);
        self.close_if_forgotten(node);
        Ok(directory)
    }

    /// Opens `node`, a regular file or a directory, for reading or writing. EBADF for every other type, which the daemon never
    /// opens; ESTALE where the node or its file is gone; the errno of open(2).
    ///
    /// The first time it checks the type of the object behind an O_PATH descriptor: a record may have the type of one file and
    /// the handle of another that took its name.
    pub fn open_node(&self, node: NodeId, flags: i32) -> Result<OwnedFd, Errno> {
        let identity = self.table.identity(node)?;
        if ![libc::S_IFREG, libc::S_IFDIR].contains(&identity.kind) {
            return Err(Errno::EBADF);
        }
        // With O_DIRECTORY the kernel itself opens nothing else (man open(2)).
        if identity.type_seen || (identity.kind == libc::S_IFDIR && flags & libc::O_DIRECTORY != 0) {
            return self.open_identity(node, &identity, flags);
        }
        let path_fd = self.path_fd(node)?;
        self.see_type(node, path_fd.as_fd())?;
        open::again(path_fd.as_fd(), flags)
    }

    /// The type of `node`, S_IFMT bits, after a check that the object behind `path_fd`, which [`Inodes::path_fd`] returned,
    /// has it. ESTALE where it has another.
    pub fn see_type(&self, node: NodeId, path_fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        let identity = self.table.identity(node)?;
        if !identity.type_seen {
            if kind_of(&stat::of(path_fd)?) != identity.kind {
                return Err(Errno::ESTALE);
            }
            self.table.mark_type_seen(node)?;
        }
        Ok(identity.kind)
    }

    /// Whether a file that is looked up now is to be held.
    pub fn holds_files(&self) -> bool {
        self.holding.is_under_way()
    }

    /// Ends that.
    #[cfg(feature = "failpoints")]
    pub fn end_holding(&self) {
        self.holding.end();
    }

    /// Holds `node`, of which `fd` is an O_PATH descriptor. One that keeps a descriptor in any case needs no other.
    pub fn hold(&self, node: NodeId, fd: OwnedFd) {
        if self.files.path_fd(node).is_none() {
            self.files.keep_path_fd(node, &Arc::new(fd));
            self.close_if_forgotten(node);
        }
    }

    fn open_identity(&self, node: NodeId, identity: &InodeIdentity, flags: i32) -> Result<OwnedFd, Errno> {
        if let (Some(handle), Some(mount)) = (identity.handle, self.mounts.get(identity.mount_id)) {
            // A mount is kept as long as one of its nodes is known: while the node is known, this is its mount, and not a later
            // one with the same number.
            self.table.kind(node)?;
            match file_handle::open(mount.as_fd(), &handle, flags) {
                // Deleted. Some file systems do not find a deleted file that is still open, either.
                Err(Errno::ESTALE) => {
                    if let Some(open) = self.files.find(node) {
                        return open::again(open.fd(), flags);
                    }
                    if let Some(fd) = self.files.path_fd(node) {
                        return open::again(fd.as_fd(), flags);
                    }
                    self.holding.begin();
                    return Err(Errno::ESTALE);
                }
                opened => return opened,
            }
        }
        let fd = self.files.path_fd(node).ok_or(Errno::ESTALE)?;
        open::again(fd.as_fd(), flags)
    }
}
