//! Opening files by openat(2) and openat2(2): by a name in a directory, and once more by a descriptor. Every descriptor gets
//! O_CLOEXEC. Does not know nodes, nor which files may be opened.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::failpoint::fail_call;
use super::working_dir::DescriptorName;
use crate::types::Errno;

/// What openat2(2) takes; openat(2) ignores other flags, for example that of a guest which opens a program to execute it.
const KNOWN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_ASYNC
    | libc::O_DIRECT
    | libc::O_LARGEFILE
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_CLOEXEC
    | libc::O_PATH
    | libc::O_TMPFILE;

/// Opens `name` in `dir`, or makes it. No component leads out of `dir`, and no magic link is followed. EXDEV and ELOOP where one
/// would be, and the errors of open(2).
pub fn openat2(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    fail_call!("openat2");
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(dir, name, flags | OFlags::CLOEXEC, mode, resolve)?)
}

/// Opens the directory above `dir` as an O_PATH descriptor. The errors of open(2).
pub fn parent(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fail_call!("openat");
    Ok(rustix::fs::openat(dir, c"..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a file without a name in `dir`; `flags` are those beside O_TMPFILE. EOPNOTSUPP where the file system has none, EISDIR
/// where it or the kernel knows only the O_DIRECTORY bit in O_TMPFILE, and the errors of open(2).
pub fn nameless(dir: BorrowedFd<'_>, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    fail_call!("openat");
    Ok(rustix::fs::openat(dir, c".", flags | OFlags::TMPFILE | OFlags::CLOEXEC, mode)?)
}

/// Opens the file behind `fd` once more, by its name in the thread's working directory, see `working_dir`. By openat2(2), for in the
/// sandbox openat(2) opens nothing without a directory. The errors of open(2).
pub fn again(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
    fail_call!("openat");
    let name = DescriptorName::of(fd);
    // The name is a magic link: it must be followed, and leads to the file itself and no further.
    let flags = OFlags::from_bits_retain((flags & KNOWN_FLAGS & !libc::O_NOFOLLOW | libc::O_CLOEXEC).cast_unsigned());
    Ok(rustix::fs::openat2(CWD, name.as_c_str(), flags, Mode::empty(), ResolveFlags::empty())?)
}

/// An O_PATH descriptor of the directory `path`, which the user named. The errors of open(2).
pub fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether the process, with its effective ids, may execute the file behind `fd`: also not where its file system is mounted noexec. Before
/// Linux 5.8, whether anybody may.
pub fn may_execute(fd: BorrowedFd<'_>) -> bool {
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: the path is a string that ends with NUL; the kernel writes nothing.
    if unsafe { libc::syscall(libc::SYS_faccessat2, fd.as_raw_fd(), c"".as_ptr(), libc::X_OK, flags) } == 0 {
        return true;
    }
    let anybody = Mode::XUSR | Mode::XGRP | Mode::XOTH;
    Errno::last().raw() == libc::ENOSYS && rustix::fs::fstat(fd).is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode).intersects(anybody))
}
