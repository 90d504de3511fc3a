//! name_to_handle_at(2) and open_by_handle_at(2): a file's name that outlives renames and needs no
//! descriptor. Opening one needs CAP_DAC_READ_SEARCH.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::types::Errno;

/// Bytes of handle that are kept. ext4 and tmpfs use 8 to 12, XFS 12, btrfs 20, overlayfs up to about 60;
/// a longer one (the kernel allows 128) counts as "no handle".
pub const HANDLE_LEN_MAX: usize = 64;

/// A file handle as the kernel made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// File-system specific type.
    pub kind: i32,
    /// Bytes of `bytes` that count.
    pub len: u32,
    /// Opaque; zero behind `len`.
    pub bytes: [u8; HANDLE_LEN_MAX],
}

#[repr(C)]
struct Raw {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; HANDLE_LEN_MAX],
}

/// The handle of `name` in `dir` (no symbolic link is followed) and the id of its mount. An empty name is
/// `dir` itself. `None` where the file system has no handles or longer ones than we keep.
pub fn of(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<(Handle, u64)>, Errno> {
    let mut raw = Raw { handle_bytes: HANDLE_LEN_MAX as u32, handle_type: 0, f_handle: [0; HANDLE_LEN_MAX] };
    let mut mount_id: i32 = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `raw` has the layout of `struct file_handle` with room for `handle_bytes`, and the kernel
    // writes no more; `name` is a C string; `mount_id` is an int.
    let r = unsafe { libc::syscall(libc::SYS_name_to_handle_at, dir.as_raw_fd(), name.as_ptr(), &raw mut raw, &raw mut mount_id, flags) };
    if r == 0 {
        let handle = Handle { kind: raw.handle_type, len: raw.handle_bytes, bytes: raw.f_handle };
        return Ok(Some((handle, mount_id as u64)));
    }
    match Errno::last() {
        Errno::EOPNOTSUPP | Errno::ENOSYS => Ok(None),
        e if e.raw() == libc::EOVERFLOW || e.raw() == libc::EPERM => Ok(None),
        e => Err(e),
    }
}

/// Opens the file behind `handle`; `mount` is any open, not O_PATH, descriptor on its mount.
/// ESTALE where the file is gone, EPERM without the capability, EINVAL for a length that no handle has.
pub fn open(mount: BorrowedFd<'_>, handle: &Handle, flags: i32) -> Result<OwnedFd, Errno> {
    if handle.len as usize > HANDLE_LEN_MAX {
        return Err(Errno::EINVAL);
    }
    let mut raw = Raw { handle_bytes: handle.len, handle_type: handle.kind, f_handle: handle.bytes };
    // SAFETY: `raw` has the layout of `struct file_handle` with at least `handle_bytes` bytes; the kernel reads it.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
