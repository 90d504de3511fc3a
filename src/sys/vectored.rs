//! preadv2(2) and pwritev2(2) on memory that is given by address.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::failpoint::fail_call;
use crate::types::Errno;

/// The most segments of one call (IOV_MAX; UIO_MAXIOV of linux/uio.h).
pub const SEGMENTS_MAX: usize = 1024;

/// RWF_APPEND: the write goes to the end of the file, and the offset is ignored.
pub const APPEND: i32 = libc::RWF_APPEND;

/// A list of memory ranges in the layout of `struct iovec`.
///
/// # Safety
/// Each entry is memory that stays mapped while the value is borrowed, and to which no Rust reference exists, so that the kernel
/// may write to it.
pub unsafe trait Segments {
    /// The first entry and the number of entries.
    fn raw(&self) -> (*const libc::iovec, usize);
}

/// An offset as an argument of the call. EINVAL above `i64::MAX`: preadv2(2) takes -1 for the descriptor's own position.
fn position(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::EINVAL)
}

/// The number of segments as an argument of the call. EINVAL where it does not fit, as of the kernel above [`SEGMENTS_MAX`].
fn segments(count: usize) -> Result<i32, Errno> {
    i32::try_from(count).map_err(|_| Errno::EINVAL)
}

/// `pages`, or for a failpoint their first half, for which `half` is room.
#[inline(always)]
fn part(pages: &(impl Segments + ?Sized), is_short: bool, half: &mut libc::iovec) -> (*const libc::iovec, usize) {
    let (first, count) = pages.raw();
    if !is_short || count != 1 {
        return (first, if is_short { count / 2 } else { count });
    }
    // SAFETY: the list has one entry.
    *half = unsafe { *first };
    half.iov_len /= 2;
    (half, 1)
}

/// No memory.
const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Reads into `pages` from `offset` and returns the bytes read, fewer at the end of the file. EINVAL above [`SEGMENTS_MAX`] pages
/// or for an offset above `i64::MAX`, and the errors of preadv2(2).
pub fn read(file: BorrowedFd<'_>, pages: &(impl Segments + ?Sized), offset: u64) -> Result<usize, Errno> {
    fail_call!("preadv2", short is_short);
    let mut half = NOTHING;
    let (first, count) = part(pages, is_short, &mut half);
    let (count, offset) = (segments(count)?, position(offset)?);
    // SAFETY: by the contract of `Segments`, the memory stays mapped during this call and no reference to it exists.
    let n = unsafe { libc::preadv2(file.as_raw_fd(), first, count, offset, 0) };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// Reads into `to`, memory of the daemon's own, and returns the bytes read. Errors as for [`read`].
pub fn read_own(file: BorrowedFd<'_>, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
    fail_call!("preadv2");
    Ok(rustix::io::preadv2(file, &mut [IoSliceMut::new(to)], offset, rustix::io::ReadWriteFlags::empty())?)
}

/// Writes `pages` at `offset` and returns the bytes written. `flags` are RWF_ bits. EINVAL as for [`read`], EOPNOTSUPP for flags
/// that the kernel does not know, and the errors of pwritev2(2).
pub fn write(file: BorrowedFd<'_>, pages: &(impl Segments + ?Sized), offset: u64, flags: i32) -> Result<usize, Errno> {
    fail_call!("pwritev2", short is_short);
    let mut half = NOTHING;
    let (first, count) = part(pages, is_short, &mut half);
    let (count, offset) = (segments(count)?, position(offset)?);
    // SAFETY: as in `read`. The kernel only reads the memory.
    let n = unsafe { libc::pwritev2(file.as_raw_fd(), first, count, offset, flags) };
    usize::try_from(n).map_err(|_| Errno::last())
}
