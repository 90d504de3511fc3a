//! Owner and times of a file: fchownat(2) and utimensat(2). The mode is in `mode`. Does not know the guest's ids.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Timestamps, Uid};

use super::failpoint::fail_call;
use crate::types::Errno;

/// Sets owner and group of `name` in `dir`, of which `None` stays as it is. A symbolic link is not followed; an empty name is
/// `dir` itself, which may be an O_PATH descriptor. EPERM, EROFS, EDQUOT, EINVAL for an id that is not mapped.
pub fn fchownat(dir: BorrowedFd<'_>, name: &CStr, uid: Option<Uid>, gid: Option<Gid>) -> Result<(), Errno> {
    fail_call!("fchownat");
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    Ok(rustix::fs::chownat(dir, name, uid, gid, flags)?)
}

/// Sets the times of the file `fd`, which may be an O_PATH descriptor. EPERM, EROFS.
pub fn utimensat(fd: BorrowedFd<'_>, times: &Timestamps) -> Result<(), Errno> {
    fail_call!("utimensat");
    Ok(rustix::fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH)?)
}
