//! getdents64(2): directory entries in the kernel's format.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::failpoint::fail_call;
use crate::types::Errno;

/// Bytes before the name in `struct linux_dirent64`.
const HEADER_LEN: usize = 19;

/// One directory entry.
#[derive(Debug, Clone, Copy)]
pub struct HostEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Directory offset of the next entry (`d_off`).
    pub next_offset: u64,
    /// File type as in `d_type`.
    pub kind: u8,
    /// The name.
    pub name: &'a CStr,
}

/// Replaces `entries` by those from the directory's current position on, of at most `len` bytes; by none at the end of the
/// directory. EINVAL where `len` is too small for the next entry, ENOTDIR for another file, ENOENT for a removed directory.
pub fn read(dir: BorrowedFd<'_>, entries: &mut Vec<u8>, len: usize) -> Result<(), Errno> {
    fail_call!("getdents64");
    entries.clear();
    entries.reserve(len);
    // SAFETY: the kernel writes at most `len` bytes, for which there is room.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), entries.as_mut_ptr(), len) };
    let n = usize::try_from(n).map_err(|_| Errno::last())?;
    // SAFETY: the kernel has written the first `n` bytes, at most `len`.
    unsafe { entries.set_len(n.min(len)) };
    Ok(())
}

/// The first entry of `bytes` and the bytes behind it. `None` at the end.
pub fn next(bytes: &[u8]) -> Option<(HostEntry<'_>, &[u8])> {
    let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let entry = bytes.get(..len)?;
    let name = CStr::from_bytes_until_nul(entry.get(HEADER_LEN..)?).ok()?;
    Some((HostEntry { ino: word(0)?, next_offset: word(8)?, kind: bytes[18], name }, &bytes[len..]))
}
