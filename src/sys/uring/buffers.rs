//! Memory that is registered with rings: its pages are pinned once, and a request that names it saves the kernel their look-up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::CloneBuffersFlags;
use io_uring::{Probe, Submitter, opcode};

use super::Uring;
use crate::sys::vectored::Segments;

/// Buffers of a ring at most: 1 TiB of guest memory, as one has at most 1 GiB. The kernel keeps 8 bytes for each.
pub const BUFFERS_MAX: usize = 1024;

/// Numbers of linux/io_uring.h.
const IORING_REGISTER_BUFFERS_UPDATE: u8 = 16;
const IORING_REGISTER_CLONE_BUFFERS: u8 = 30;
/// What a ring with buffers may register once it is enabled.
pub const REGISTRATIONS: [u8; 2] = [IORING_REGISTER_BUFFERS_UPDATE, IORING_REGISTER_CLONE_BUFFERS];

/// No buffer.
const NONE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Makes an empty table of buffers. False where the kernel has no vectored operations on buffers.
pub(super) fn prepare(submitter: &Submitter<'_>) -> io::Result<bool> {
    let mut probe = Probe::new();
    submitter.register_probe(&mut probe)?;
    let has_them = probe.is_supported(opcode::ReadvFixed::CODE) && probe.is_supported(opcode::WritevFixed::CODE);
    if has_them {
        submitter.register_buffers_sparse(u32::try_from(BUFFERS_MAX).unwrap_or(0))?;
    }
    Ok(has_them)
}

/// `struct io_uring_rsrc_update2` of linux/io_uring.h.
#[repr(C)]
struct Update {
    first: u32,
    reserved: u32,
    buffers: *const libc::iovec,
    tags: u64,
    count: u32,
    reserved2: u32,
}

/// Has the ring of a process that died register no memory any more: until then the kernel counts it as locked, and another ring cannot
/// register it where the limit has room for it once. Without effect on a ring that has no table of buffers.
pub(super) fn unregister_left(ring: BorrowedFd<'_>) {
    let none = [NONE; BUFFERS_MAX];
    let count = u32::try_from(BUFFERS_MAX).unwrap_or(0);
    let update = Update { first: 0, reserved: 0, buffers: none.as_ptr(), tags: 0, count, reserved2: 0 };
    let (number, len) = (ring.as_raw_fd(), size_of::<Update>());
    // SAFETY: the kernel reads one structure of `len` bytes, and `count` entries, which are empty.
    unsafe { libc::syscall(libc::SYS_io_uring_register, number, u32::from(IORING_REGISTER_BUFFERS_UPDATE), &raw const update, len) };
}

impl Uring {
    /// Registers each of `blocks` as a buffer, instead of those from before: the first one as number 0. Requests in flight keep
    /// the buffer that they began with. EINVAL for more than [`BUFFERS_MAX`], EFAULT for a block above 1 GiB, ENOMEM above
    /// RLIMIT_MEMLOCK.
    pub fn register(&self, blocks: &(impl Segments + ?Sized)) -> io::Result<()> {
        self.unregister()?;
        let (first, count) = blocks.raw();
        if count == 0 {
            return Ok(());
        }
        // SAFETY: `raw` returns the first of `count` iovecs, which `blocks` lends.
        let list = unsafe { std::slice::from_raw_parts(first, count) };
        // SAFETY: the memory is mapped during the call, by the contract of `Segments`. Afterwards the kernel uses the pages that it
        // has pinned, to which no Rust reference exists.
        unsafe { self.ring.submitter().register_buffers_update(0, list, None) }
    }

    /// Registers no memory any more.
    pub fn unregister(&self) -> io::Result<()> {
        // SAFETY: the entries are empty.
        unsafe { self.ring.submitter().register_buffers_update(0, &[NONE; BUFFERS_MAX], None) }
    }

    /// Registers the same buffers as `other`. Their pages are not pinned a second time.
    pub fn register_as(&self, other: &Uring) -> io::Result<()> {
        self.ring.submitter().register_buffers_clone_offset(other.raw_fd(), 0, 0, 0, CloneBuffersFlags::DST_REPLACE)
    }
}
