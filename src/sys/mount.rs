//! mount_setattr(2), which rustix does not provide.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets `attributes` (MOUNT_ATTR_ bits) on the mount at `mount` and on every mount below it. Other attributes are unchanged.
/// EPERM without CAP_SYS_ADMIN, ENOSYS before Linux 5.12, EINVAL where `mount` is not the root of a mount.
pub fn set_attributes_recursively(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    let change = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string; the kernel reads `size_of::<mount_attr>()` bytes of `change`.
    let r = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const change, size_of::<libc::mount_attr>())
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
