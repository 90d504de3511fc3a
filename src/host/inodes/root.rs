//! The shared directory or file itself: its identity, and whether this process may open file handles of its file system.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::identity::identity_of;
use crate::state::{ArenaError, InodeIdentity};
use crate::sys::file_handle::{self, Handle};
use crate::sys::stat::{self, Statx};
use crate::types::Errno;

/// How inodes are kept while the guest knows them (virtiofsd's `--inode-file-handles`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileHandles {
    /// As open descriptors.
    Never,
    /// As file handles where the file system has them and this process may open them.
    Prefer,
    /// As file handles; the share is refused without them, and a file that has none is EOPNOTSUPP.
    Mandatory,
}

/// The root of the share.
#[derive(Debug, Clone)]
pub(in crate::host) struct Root {
    /// Its path, for messages.
    pub path: PathBuf,
    /// Which file it is; with a handle if inodes of its mount are kept as handles.
    pub identity: InodeIdentity,
    /// This process may open file handles, and uses them on each mount that has lasting ones.
    pub by_handle: bool,
    /// The option.
    pub file_handles: FileHandles,
}

/// Why the root cannot be shared; the path is added by the caller.
#[derive(Debug)]
pub(in crate::host) enum RootFault {
    /// No memory for the records.
    Arena(ArenaError),
    /// File handles are mandatory and cannot be opened.
    NoFileHandles,
    /// A system call failed.
    Failed(Errno),
}

impl<E: Into<Errno>> From<E> for RootFault {
    fn from(e: E) -> RootFault {
        RootFault::Failed(e.into())
    }
}

impl From<ArenaError> for RootFault {
    fn from(e: ArenaError) -> RootFault {
        RootFault::Arena(e)
    }
}

impl Root {
    /// The file behind `fd`, of which `st` was taken.
    ///
    /// # Errors
    /// [`RootFault::NoFileHandles`] where they are mandatory and cannot be opened; the errno of name_to_handle_at(2) or
    /// fstatfs(2).
    pub fn new(path: PathBuf, fd: BorrowedFd<'_>, st: &Statx, file_handles: FileHandles) -> Result<Root, RootFault> {
        let handle = if file_handles == FileHandles::Never { None } else { openable_handle(fd)? };
        if file_handles == FileHandles::Mandatory && handle.is_none() {
            return Err(RootFault::NoFileHandles);
        }
        let by_handle = handle.is_some();
        let is_forgetful = stat::forgets_handles(fd)?;
        // With "mandatory" the user vouches for the file system.
        let handle = handle.filter(|_| !is_forgetful || file_handles == FileHandles::Mandatory);
        Ok(Root { path, identity: InodeIdentity { handle, ..identity_of(st, None) }, by_handle, file_handles })
    }

    /// Whether inodes of the root's mount are kept as file handles.
    pub fn is_by_handle(&self) -> bool {
        self.identity.handle.is_some()
    }
}

/// The file handle of `root`, where the file system has them and this process may open them.
fn openable_handle(root: BorrowedFd<'_>) -> Result<Option<Handle>, Errno> {
    let Some((handle, _)) = file_handle::of(root, c"")? else { return Ok(None) };
    match file_handle::open(root, &handle, libc::O_PATH) {
        Ok(_) => Ok(Some(handle)),
        Err(errno) => {
            tracing::debug!("files are kept open instead of by handle: open_by_handle_at: {errno}");
            Ok(None)
        }
    }
}
