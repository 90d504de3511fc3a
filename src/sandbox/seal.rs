//! The last step of the sandbox: Landlock and the list of system calls.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;

use super::error::{JailError, Step};
use super::landlock;
use super::seccomp::{self, OptionalCalls, Seccomp};

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

/// Gives up what serving does not need: other files and other system calls. Call it after [`super::enter`], when everything
/// is open, and before the first thread is started. It cannot be undone. io_uring rings other than
/// those of `optional` cannot be made or used. False where the kernel has no Landlock.
///
/// [`JailError::Step`] where the share cannot be examined, [`JailError::Seccomp`] where the filter cannot be installed.
pub fn seal(seccomp: Seccomp, reach: &Reach<'_>, optional: &OptionalCalls) -> Result<bool, JailError> {
    let kind = rustix::fs::fstat(reach.share).step("examine the share")?.st_mode;
    let is_directory = FileType::from_raw_mode(kind) == FileType::Directory;
    let files = landlock::Files { share: reach.share.as_fd(), is_directory, removable: reach.removable };
    let has_landlock = landlock::restrict((!reach.by_handle).then_some(&files));
    seccomp::install(seccomp, optional).map_err(JailError::Seccomp)?;
    Ok(has_landlock)
}
