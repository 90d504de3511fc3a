//! STATFS and SYNCFS.

use std::os::fd::AsFd;

use crate::host::share::Share;
use crate::sys::descriptor::sync_file_system;
use crate::sys::stat::{self, StatVfs};
use crate::types::{Errno, NodeId};

impl Share {
    /// STATFS of the file system that `node` is on. ESTALE where the node is gone; the errno of statvfs(3).
    pub fn statfs(&self, node: NodeId) -> Result<StatVfs, Errno> {
        stat::file_system(self.inodes.path_fd(node)?.as_fd())
    }

    /// SYNCFS of the file system that `node` is on. EBADF where the node is neither a directory nor a regular file,
    /// ESTALE where it is gone; the errno of syncfs(2).
    pub fn syncfs(&self, node: NodeId) -> Result<(), Errno> {
        let flags = match self.inodes.kind(node)? {
            libc::S_IFDIR => libc::O_RDONLY | libc::O_DIRECTORY,
            libc::S_IFREG => libc::O_RDONLY | libc::O_NONBLOCK,
            _ => return Err(Errno::EBADF),
        };
        sync_file_system(self.inodes.open_node(node, flags)?.as_fd())
    }
}
