//! mount_setattr(2), which rustix does not have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets `attributes` (MOUNT_ATTR_ bits) of the mount whose root `mount` is, and of every mount below it; others stay. Needs
/// CAP_SYS_ADMIN and Linux 5.12 (ENOSYS before).
pub fn set_attributes_recursively(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    let change = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string; the kernel reads as many bytes of `change` as it has.
    let r = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const change, size_of::<libc::mount_attr>())
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
