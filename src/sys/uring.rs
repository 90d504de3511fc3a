//! io_uring(7): a ring that reads, writes and syncs open files. The kernel refuses every other operation of it, so that nobody
//! who takes the process over can open files through it, where seccomp(2) does not look.

mod buffers;
mod faults;
mod in_flight;
mod leftover;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use caps::Capability;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};

use super::identity;

pub use buffers::{BUFFERS_MAX, REGISTRATIONS};
pub use in_flight::{Request, Ring};
pub use leftover::wait_for_leftover;

/// The operations of a ring.
const OPERATIONS: [u8; 3] = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
/// Those that name a registered buffer.
const WITH_BUFFERS: [u8; 2] = [opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE];

/// Whose capabilities an operation has. Those of the thread that enters the ring do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The process's own.
    Own,
    /// The same without CAP_FSETID: the kernel clears setuid and setgid bits of a file that is written to.
    WithoutFsetid,
}

/// A ring without requests. Any thread may enter it.
pub struct Uring {
    ring: IoUring,
    /// Numbers of the registered credentials.
    own: u16,
    without_fsetid: u16,
    has_buffers: bool,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("fd", &self.ring.as_raw_fd()).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring of `entries` requests, with the capabilities that the calling thread has now. `with_buffers`: memory may be
    /// registered with it, where the kernel supports that (Linux 6.15, [`Uring::has_buffers`]).
    ///
    /// A completion is posted by the thread that entered the ring with the request, in its next system call or when it sleeps in
    /// one (IORING_SETUP_COOP_TASKRUN): a thread that is awake is not interrupted for it and finds a flag set instead.
    ///
    /// # Errors
    /// EPERM or ENOSYS where the kernel or a seccomp filter does not allow io_uring, EINVAL before Linux 5.19, ENOMEM, EMFILE.
    pub fn new(entries: u32, with_buffers: bool) -> io::Result<Uring> {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        let ring = builder.build(entries)?;
        let own = ring.submitter().register_personality()?;
        let has_fsetid = identity::has_capability(Capability::CAP_FSETID);
        let is_down = has_fsetid && identity::set_capability(Capability::CAP_FSETID, false);
        let without_fsetid = ring.submitter().register_personality();
        if is_down && !identity::set_capability(Capability::CAP_FSETID, true) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let mut allowed = vec![Restriction::sqe_flags_allowed(0)];
        allowed.extend(OPERATIONS.map(Restriction::sqe_op));
        let has_buffers = with_buffers && buffers::prepare(&ring.submitter())?;
        if has_buffers {
            allowed.extend(WITH_BUFFERS.map(Restriction::sqe_op));
            allowed.extend(buffers::REGISTRATIONS.map(Restriction::register_op));
        }
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        Ok(Uring { ring, own, without_fsetid: without_fsetid?, has_buffers })
    }

    /// The most requests at a time.
    fn entries(&self) -> u32 {
        self.ring.params().sq_entries()
    }

    fn personality(&self, rights: Rights) -> u16 {
        match rights {
            Rights::Own => self.own,
            Rights::WithoutFsetid => self.without_fsetid,
        }
    }

    /// Whether memory can be registered.
    pub fn has_buffers(&self) -> bool {
        self.has_buffers
    }

    /// The number of its descriptor, for a filter of system calls.
    pub fn raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}
