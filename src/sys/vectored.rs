//! preadv2(2) and pwritev2(2) on memory that is named by address.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::types::Errno;

/// Segments that one call takes (IOV_MAX, linux/uio.h UIO_MAXIOV).
pub const SEGMENTS_MAX: usize = 1024;

/// RWF_APPEND: the write goes to the end of the file, whatever the offset.
pub const APPEND: i32 = libc::RWF_APPEND;

/// A list of memory ranges in the layout of `struct iovec`.
///
/// # Safety
/// Each entry names memory that stays mapped while the value is borrowed, and to which the kernel may
/// write (for a read) without breaking a reference.
pub unsafe trait Segments {
    /// First entry and number of entries.
    fn raw(&self) -> (*const libc::iovec, usize);
}

/// `offset` as the kernel takes it. EINVAL where it has no such offset: -1 would mean the file's own position
/// (man preadv2(2)).
fn host_offset(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::EINVAL)
}

/// Reads into `pages` from `offset`: the number of bytes, fewer at end of file. EINVAL above
/// [`SEGMENTS_MAX`] pages.
pub fn read(file: BorrowedFd<'_>, pages: &(impl Segments + ?Sized), offset: u64) -> Result<usize, Errno> {
    let (first, count) = pages.raw();
    let offset = host_offset(offset)?;
    // SAFETY: `Segments` promises memory that stays mapped for this call; the kernel checks the rest.
    let n = unsafe { libc::preadv2(file.as_raw_fd(), first, count as i32, offset, 0) };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// Writes `pages` at `offset`: the number of bytes taken. `flags` are RWF_ bits.
pub fn write(file: BorrowedFd<'_>, pages: &(impl Segments + ?Sized), offset: u64, flags: i32) -> Result<usize, Errno> {
    let (first, count) = pages.raw();
    let offset = host_offset(offset)?;
    // SAFETY: as in `read`; the kernel only reads the memory.
    let n = unsafe { libc::pwritev2(file.as_raw_fd(), first, count as i32, offset, flags) };
    usize::try_from(n).map_err(|_| Errno::last())
}
