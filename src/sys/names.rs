//! Names in directories: made, removed, moved and read. Each takes a directory's descriptor and one name in it, and follows no
//! symbolic link. Does not know nodes, nor for whom a name is made.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags};

use super::failpoint::fail_call;
use super::working_dir::DescriptorName;
use crate::types::Errno;

/// Bytes of a symbolic link's target that are read at first. A longer one takes another call.
const TARGET_LEN: usize = 256;

/// mknod(2): a regular file, FIFO, socket or device, with the thread's umask. EEXIST, EDQUOT, ENOSPC, EACCES, EPERM, EROFS.
pub fn mknodat(dir: BorrowedFd<'_>, name: &CStr, kind: FileType, mode: Mode, (major, minor): (u32, u32)) -> Result<(), Errno> {
    fail_call!("mknodat");
    Ok(rustix::fs::mknodat(dir, name, kind, mode, rustix::fs::makedev(major, minor))?)
}

/// mkdir(2), with the thread's umask. EMLINK where `dir` has too many directories, and the errors of [`mknodat`].
pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<(), Errno> {
    fail_call!("mkdirat");
    Ok(rustix::fs::mkdirat(dir, name, mode)?)
}

/// symlink(2): `target` is stored as it is. ENAMETOOLONG where it is too long for the file system, and the errors of [`mknodat`].
pub fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    fail_call!("symlinkat");
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// link(2): `name` in `dir` for the file `file`, which may be an O_PATH descriptor, by its name in the thread's working directory:
/// AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH. EMLINK, EXDEV, ENOENT for a file without a name, and the errors of [`mknodat`].
pub fn linkat(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    fail_call!("linkat");
    Ok(rustix::fs::linkat(CWD, DescriptorName::of(file).as_c_str(), dir, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// unlink(2), and rmdir(2) with AT_REMOVEDIR. ENOENT, EISDIR or ENOTDIR, ENOTEMPTY, EBUSY, EACCES, EPERM, EROFS.
pub fn unlinkat(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    fail_call!("unlinkat");
    Ok(rustix::fs::unlinkat(dir, name, flags)?)
}

/// renameat2(2). EEXIST with RENAME_NOREPLACE, EINVAL for flags that the file system does not have, EXDEV, and the errors of
/// [`mknodat`] and [`unlinkat`].
pub fn renameat2(from: (BorrowedFd<'_>, &CStr), to: (BorrowedFd<'_>, &CStr), flags: RenameFlags) -> Result<(), Errno> {
    fail_call!("renameat2");
    Ok(rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags)?)
}

/// The target of the symbolic link behind the O_PATH descriptor `fd`. ENOENT where it is none.
pub fn readlinkat(fd: BorrowedFd<'_>) -> Result<CString, Errno> {
    fail_call!("readlinkat");
    Ok(rustix::fs::readlinkat(fd, c"", Vec::with_capacity(TARGET_LEN))?)
}
