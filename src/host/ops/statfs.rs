//! STATFS and SYNCFS.

use std::os::fd::AsFd;

use crate::fuse::abi::Kstatfs;
use crate::host::Share;
use crate::sys::stat;
use crate::types::{Errno, NodeId};

impl Share {
    /// STATFS of the file system that `node` is on.
    pub fn statfs(&self, node: NodeId) -> Result<Kstatfs, Errno> {
        let st = stat::file_system(self.path_fd(node)?.as_fd())?;
        Ok(Kstatfs {
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
            bsize: st.f_bsize as u32,
            namelen: st.f_namemax as u32,
            frsize: st.f_frsize as u32,
            ..Kstatfs::default()
        })
    }

    /// SYNCFS of the file system that `node` is on. EBADF where the node cannot be opened (a socket, say).
    pub fn syncfs(&self, node: NodeId) -> Result<(), Errno> {
        let flags = match self.kind(node)? {
            libc::S_IFDIR => libc::O_RDONLY | libc::O_DIRECTORY,
            libc::S_IFREG => libc::O_RDONLY | libc::O_NONBLOCK,
            _ => return Err(Errno::EBADF),
        };
        Ok(rustix::fs::syncfs(self.open_node(node, flags)?)?)
    }
}
