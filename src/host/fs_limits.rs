//! What the share's file system does not support, for the log at start. The probes leave no files behind.

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, StatxFlags};

use crate::sys::file_handle;
use crate::sys::open;
use crate::sys::stat::{self, Statx};
use crate::types::Errno;

/// A feature that the file system lacks, displayed with its consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsLimit {
    /// name_to_handle_at(2).
    FileHandles,
    /// Handles that can be opened after the inode left the host's cache.
    LastingHandles,
    /// O_TMPFILE.
    Tmpfile,
    /// Birth times in statx(2).
    BirthTimes,
}

impl fmt::Display for FsLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FsLimit::FileHandles => {
                "file handles (each inode that the guest knows keeps a descriptor open, and the guest cannot export the share)"
            }
            FsLimit::LastingHandles => {
                "file handles that outlast the host's cache, as a FUSE file system (each inode that the guest knows keeps a descriptor \
                 open, and the guest cannot export the share)"
            }
            FsLimit::Tmpfile => "O_TMPFILE (the guest gets EOPNOTSUPP)",
            FsLimit::BirthTimes => "birth times (the guest sees none)",
        })
    }
}

/// What the file system of `root`, of which `st` was taken, does not support. O_TMPFILE is not probed on a `readonly` share, and
/// counts as supported where the probe fails for another reason. The errno of name_to_handle_at(2) or fstatfs(2).
pub fn of(root: BorrowedFd<'_>, st: &Statx, readonly: bool) -> Result<Vec<FsLimit>, Errno> {
    let mut limits = Vec::new();
    if file_handle::of(root, c"")?.is_none() {
        limits.push(FsLimit::FileHandles);
    } else if stat::forgets_handles(root)? {
        limits.push(FsLimit::LastingHandles);
    }
    if !readonly && make_nameless(root).is_err_and(is_no_tmpfile) {
        limits.push(FsLimit::Tmpfile);
    }
    if st.stx_mask & StatxFlags::BTIME.bits() == 0 {
        limits.push(FsLimit::BirthTimes);
    }
    Ok(limits)
}

/// Makes a file without a name, which is deleted with its descriptor.
fn make_nameless(root: BorrowedFd<'_>) -> Result<(), Errno> {
    open::nameless(root, OFlags::WRONLY, Mode::RUSR | Mode::WUSR).map(drop)
}

/// Whether `errno` of an open with O_TMPFILE means that it is not supported. EISDIR is the errno of a kernel or file system that
/// knows only the O_DIRECTORY bit in it (man open(2)).
pub fn is_no_tmpfile(errno: Errno) -> bool {
    errno == Errno::EOPNOTSUPP || errno.raw() == libc::EISDIR
}
