//! The last steps of the sandbox: Landlock and the lists of system calls.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;

use super::error::{JailError, Step};
use super::landlock;
use super::seccomp::{self, OptionalCalls, RootDirectory, Seccomp};

/// The paths that remain accessible.
#[derive(Debug, Clone, Copy)]
pub struct Reach<'f> {
    /// The share.
    pub share: BorrowedFd<'f>,
    /// Whether its inodes are kept as file handles, which Landlock does not allow to open.
    pub by_handle: bool,
    /// A directory in which this process removes a file when it ends.
    pub removable: Option<BorrowedFd<'f>>,
}

/// Gives up other files, where Landlock can tell them, and what else it restricts. Call it after [`super::enter`], before the first
/// thread is started. It cannot be undone, and holds for the processes that this one starts. False where the kernel has no Landlock.
///
/// [`JailError::Step`] where the share cannot be examined.
pub fn restrict_files(reach: &Reach<'_>) -> Result<bool, JailError> {
    let kind = rustix::fs::fstat(reach.share).step("examine the share")?.st_mode;
    let is_directory = FileType::from_raw_mode(kind) == FileType::Directory;
    let files = landlock::Files { share: reach.share.as_fd(), is_directory, removable: reach.removable };
    Ok(landlock::restrict((!reach.by_handle).then_some(&files)))
}

/// Gives up the system calls that neither the keeper nor a worker that it starts needs. It cannot be undone.
///
/// [`JailError::Seccomp`] where the filter cannot be installed.
pub fn seal_keeper(seccomp: Seccomp, root: RootDirectory) -> Result<(), JailError> {
    seccomp::install_for_keeper(seccomp, root).map_err(JailError::Seccomp)
}

/// Gives up the system calls that serving does not need. Call it when everything is open, and before the first thread is started.
/// It cannot be undone. io_uring rings other than those of `optional` cannot be made or used. `root` as in [`seal_keeper`], or
/// [`RootDirectory::Host`] in a worker, for which that has been called.
///
/// [`JailError::Seccomp`] where the filter cannot be installed.
pub fn seal(seccomp: Seccomp, root: RootDirectory, optional: &OptionalCalls) -> Result<(), JailError> {
    seccomp::install(seccomp, root, optional).map_err(JailError::Seccomp)
}
