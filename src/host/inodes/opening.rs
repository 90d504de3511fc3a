//! From a node id to a descriptor. What is opened for reading or writing is what was checked: no object of the host whose
//! type was not seen, through one descriptor, to be a regular file or a directory (docs/SEMANTICS.md).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::host::attributes;
use crate::host::share::Share;
use crate::state::InodeIdentity;
use crate::sys::file_handle;
use crate::sys::stat;
use crate::sys::working_dir::DescriptorName;
use crate::types::{Errno, NodeId};

impl Share {
    /// An O_PATH descriptor of `node`: kept, or opened by its handle. ESTALE where the node or its file is
    /// gone.
    pub(in crate::host) fn path_fd(&self, node: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.path_fds.get(node) {
            return Ok(fd);
        }
        let identity = self.inodes.identity(node)?;
        let fd = Arc::new(self.open_identity(node, &identity, libc::O_PATH | libc::O_NOFOLLOW)?);
        self.path_fds.insert(node, Arc::clone(&fd));
        self.drop_if_forgotten(node);
        Ok(fd)
    }

    /// Closes what was just kept of `node` where the guest has forgotten it since: its FORGET came too early to close this.
    pub(in crate::host) fn drop_if_forgotten(&self, node: NodeId) {
        if !self.inodes.is_looked_up(node) {
            self.close_node(node);
        }
    }

    /// Opens `node`, a regular file or a directory, for reading or writing. EBADF for every other type, which the daemon
    /// never opens; ESTALE where the node is not the file that the guest was told of.
    ///
    /// The first time it looks at the object behind an O_PATH descriptor: a record may have the type of one file and the
    /// handle of another that took its name.
    pub(in crate::host) fn open_node(&self, node: NodeId, flags: i32) -> Result<OwnedFd, Errno> {
        let identity = self.inodes.identity(node)?;
        if ![libc::S_IFREG, libc::S_IFDIR].contains(&identity.kind) {
            return Err(Errno::EBADF);
        }
        // With O_DIRECTORY the kernel itself opens nothing else (man open(2)).
        if identity.type_seen || (identity.kind == libc::S_IFDIR && flags & libc::O_DIRECTORY != 0) {
            return self.open_identity(node, &identity, flags);
        }
        let path_fd = self.path_fd(node)?;
        self.see_type(node, path_fd.as_fd())?;
        self.reopen(path_fd.as_fd(), flags)
    }

    /// Makes sure that the object behind `path_fd`, which [`Share::path_fd`] gave for `node`, has the node's type: S_IFMT
    /// bits. ESTALE where it has another.
    pub(in crate::host) fn see_type(&self, node: NodeId, path_fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        let identity = self.inodes.identity(node)?;
        if !identity.type_seen {
            if attributes::kind(&stat::of(path_fd)?) != identity.kind {
                return Err(Errno::ESTALE);
            }
            self.inodes.mark_type_seen(node)?;
        }
        Ok(identity.kind)
    }

    fn open_identity(&self, node: NodeId, identity: &InodeIdentity, flags: i32) -> Result<OwnedFd, Errno> {
        if let (Some(handle), Some(mount)) = (identity.handle, self.mounts.get(identity.mount_id)) {
            // A mount is kept as long as one of its nodes is there: so this is the node's own, and not another mount that
            // was given its number after the node went.
            self.kind(node)?;
            match file_handle::open(mount.as_fd(), &handle, flags) {
                // Some file systems do not find a deleted file that is still open; an open handle does.
                Err(Errno::ESTALE) => {
                    let open = self.handles.find(node).ok_or(Errno::ESTALE)?;
                    return self.reopen(open.fd(), flags);
                }
                opened => return opened,
            }
        }
        let fd = self.path_fds.get(node).ok_or(Errno::ESTALE)?;
        self.reopen(fd.as_fd(), flags)
    }

    /// Opens the file behind `fd` once more, by its name in the thread's working directory.
    pub(in crate::host) fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
        let name = DescriptorName::of(fd);
        // The name is a magic link: it must be followed, and leads to the file itself and no further.
        let flags = OFlags::from_bits_retain((flags & !libc::O_NOFOLLOW | libc::O_CLOEXEC).cast_unsigned());
        Ok(rustix::fs::openat(rustix::fs::CWD, name.as_c_str(), flags, Mode::empty())?)
    }
}
