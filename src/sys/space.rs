//! Length and space of an open file: ftruncate(2), fallocate(2), copy_file_range(2) and lseek(2). Transfers with memory are in
//! `vectored`. Does not know the guest's handles.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::failpoint::fail_call;
use crate::types::Errno;

/// Sets the length. EINVAL for a file that is not open for writing, EFBIG, EPERM for a file that may only grow, ENOSPC and EIO
/// where the file system needs space or data for it.
pub fn ftruncate(file: BorrowedFd<'_>, len: u64) -> Result<(), Errno> {
    fail_call!("ftruncate");
    Ok(rustix::fs::ftruncate(file, len)?)
}

/// Allocates or frees `len` bytes from `offset` on, or moves what is behind them, as `mode` says. EOPNOTSUPP for a mode that the
/// file system does not have, EINVAL, EFBIG, ENOSPC, EDQUOT, EPERM.
pub fn fallocate(file: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    fail_call!("fallocate");
    Ok(rustix::fs::fallocate(file, mode, offset, len)?)
}

/// Copies at most `len` bytes and returns how many. `from` and `to` are a file and a byte offset in it, each. Zero at the end of
/// the source. EINVAL for overlapping ranges of one file, EXDEV where the two file systems cannot, EFBIG, ENOSPC, EDQUOT, EIO.
pub fn copy_file_range(from: (BorrowedFd<'_>, u64), to: (BorrowedFd<'_>, u64), len: usize) -> Result<usize, Errno> {
    fail_call!("copy_file_range", short is_short);
    let len = if is_short { len.div_ceil(2) } else { len };
    let (mut from_offset, mut to_offset) = (from.1, to.1);
    Ok(rustix::fs::copy_file_range(from.0, Some(&mut from_offset), to.0, Some(&mut to_offset), len)?)
}

/// lseek(2): the new offset. ENXIO where no data or hole follows, EINVAL beyond what the file system has.
pub fn lseek(file: BorrowedFd<'_>, to: SeekFrom) -> Result<u64, Errno> {
    fail_call!("lseek");
    Ok(rustix::fs::seek(file, to)?)
}
