//! The share of a process that is gone with all its descriptors, as where a service manager has kept only what a session is made of:
//! its records are made over for the descriptors that this process opens, and then they are recovered as any others. Nodes are found by
//! their file handles; what had none, and locks, are lost.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::fs::OFlags;

use super::inodes::{FileKey, device_of, kind_of};
use super::share::Share;
use super::share_error::ShareError;
use crate::state::{Arena, ArenaError, HandleTable, InodeIdentity, InodeRecords, LockRecords, MountRecords, SessionRecord};
use crate::sys::{file_handle, stat};
use crate::types::{Errno, NodeId};

/// What a file was opened with that must not happen again.
const ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;

/// What a guest has lost that is more than a pause to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Inodes: ESTALE.
    pub inodes: u64,
    /// Open files and directories: EBADF.
    pub handles: u64,
    /// Locks, without notice.
    pub locks: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost { inodes: 0, handles: 0, locks: 0 } => write!(f, "nothing that the guest had is lost"),
            Lost { inodes, handles, locks } => write!(f, "{inodes} inodes, {handles} open files and {locks} locks of the guest are lost"),
        }
    }
}

impl Share {
    /// As [`Share::recovered`], where no descriptor of the process that has ended is open in this one: whatever a record names, it is
    /// something else. Opens the guest's files again. Where this process dies in it, the next one may call it again.
    ///
    /// # Errors
    /// As of [`Share::recovered`]; also where the records are of another share, or there is no descriptor for the root.
    pub fn restored(&self, arena: &OwnedFd, taken: &[RawFd]) -> Result<(Share, Lost), ShareError> {
        let attached = || -> Result<_, ArenaError> { Arena::attach(again(arena)?) };
        let root = &self.inodes().root().identity;
        let (root_fd, path_fd) = self.root_descriptors()?;
        let tables = attached()?;
        let mut lost = Lost { inodes: InodeRecords::make_over(&tables, root)?, ..Lost::default() };
        MountRecords::make_over(&tables)?;
        lost.locks = LockRecords::make_over(&tables)?;
        let known = InodeRecords::attach(&attached()?)?.records;
        let open = |node: NodeId, flags: i32| {
            let opened = known.identity(node).ok_or(Errno::ESTALE).and_then(|identity| self.open_anew(&root_fd, node, &identity, flags));
            opened.inspect_err(|errno| tracing::debug!("an open file of node {} is lost: {errno}", node.0)).ok()
        };
        lost.handles = HandleTable::make_over(&tables, open)?;
        SessionRecord::make_over(&tables, root_fd, path_fd)?;
        Ok((self.recovered(again(arena)?, taken)?, lost))
    }

    /// Opens `node` as it was opened with `flags`. ESTALE where another file is found, or none; the errno of open(2).
    fn open_anew(&self, mount: &OwnedFd, node: NodeId, identity: &InodeIdentity, flags: i32) -> Result<OwnedFd, Errno> {
        // A file without a name: with O_TMPFILE the kernel would make another one.
        let made = if flags & libc::O_TMPFILE == libc::O_TMPFILE { libc::O_TMPFILE } else { 0 };
        let flags = flags & !(ONCE | made);
        let Some(handle) = identity.handle else {
            return if node == NodeId::ROOT { self.open_root(flags) } else { Err(Errno::ESTALE) };
        };
        let found = file_handle::open(mount.as_fd(), &handle, libc::O_PATH | libc::O_NOFOLLOW)?;
        let st = stat::of(found.as_fd())?;
        let is_same = (device_of(&st), st.stx_ino, kind_of(&st)) == (identity.device, identity.ino, identity.kind);
        if !is_same || FileKey::of(&st).mount_id != identity.mount_id || ![libc::S_IFREG, libc::S_IFDIR].contains(&identity.kind) {
            return Err(Errno::ESTALE);
        }
        file_handle::open(mount.as_fd(), &handle, flags)
    }

    fn open_root(&self, flags: i32) -> Result<OwnedFd, Errno> {
        let path_fd = self.inodes().path_fd(NodeId::ROOT)?;
        self.descriptor_dir().reopen(path_fd.as_fd(), OFlags::from_bits_retain(flags.cast_unsigned())).map_err(Errno::from)
    }
}

fn again(arena: &OwnedFd) -> Result<OwnedFd, ArenaError> {
    Ok(arena.try_clone().map_err(Errno::from)?)
}
