//! name_to_handle_at(2) and open_by_handle_at(2): an identifier of a file that is independent of its names and needs no
//! descriptor. Opening one needs CAP_DAC_READ_SEARCH.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::failpoint::fail_call;
use crate::types::Errno;

/// The longest handle that is kept, in bytes. ext4 and tmpfs use 8 to 12, XFS 12, btrfs 20, overlayfs up to about 60. A longer
/// one (the kernel allows 128) is treated as no handle.
pub const HANDLE_LEN_MAX: usize = HANDLE_BYTES_MAX as usize;
/// The same as the kernel takes it.
const HANDLE_BYTES_MAX: u32 = 64;

/// A file handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// Type, specific to the file system.
    pub kind: i32,
    /// Bytes of the handle in `bytes`.
    pub len: u32,
    /// Opaque. Zero after `len`.
    pub bytes: [u8; HANDLE_LEN_MAX],
}

/// `struct file_handle`.
#[repr(C)]
struct Raw {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; HANDLE_LEN_MAX],
}

/// The handle of `name` in `dir` and the id of its mount. A symbolic link is not followed; an empty name is `dir` itself.
/// `None` where the file system has no handles, or longer ones than are kept. ENOENT, ENOTDIR, EACCES and ESTALE as for a
/// lookup.
pub fn of(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<(Handle, u64)>, Errno> {
    fail_call!("name_to_handle_at");
    let mut raw = Raw { handle_bytes: HANDLE_BYTES_MAX, handle_type: 0, f_handle: [0; HANDLE_LEN_MAX] };
    let mut mount_id: i32 = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `raw` has the layout of `struct file_handle` with room for `handle_bytes`, and the kernel
    // writes no more; `name` is a C string; `mount_id` is an int.
    let r = unsafe { libc::syscall(libc::SYS_name_to_handle_at, dir.as_raw_fd(), name.as_ptr(), &raw mut raw, &raw mut mount_id, flags) };
    if r == 0 {
        let handle = Handle { kind: raw.handle_type, len: raw.handle_bytes, bytes: raw.f_handle };
        return Ok(Some((handle, u64::from(mount_id.cast_unsigned()))));
    }
    match Errno::last() {
        Errno::EOPNOTSUPP | Errno::ENOSYS => Ok(None),
        e if e.raw() == libc::EOVERFLOW || e.raw() == libc::EPERM => Ok(None),
        e => Err(e),
    }
}

/// Opens the file that `handle` identifies. `mount` is a descriptor on its mount that is not O_PATH. ESTALE where the file does
/// not exist any more, EPERM without CAP_DAC_READ_SEARCH, EINVAL for an impossible length, and the errors of open(2).
pub fn open(mount: BorrowedFd<'_>, handle: &Handle, flags: i32) -> Result<OwnedFd, Errno> {
    fail_call!("open_by_handle_at");
    if handle.len > HANDLE_BYTES_MAX {
        return Err(Errno::EINVAL);
    }
    let mut raw = Raw { handle_bytes: handle.len, handle_type: handle.kind, f_handle: handle.bytes };
    // SAFETY: `raw` has the layout of `struct file_handle` with at least `handle_bytes` bytes; the kernel reads it.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags | libc::O_CLOEXEC) };
    match i32::try_from(fd) {
        // SAFETY: the call above returned this descriptor, and it has no other owner.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Errno::last()),
    }
}
