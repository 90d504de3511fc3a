//! The rings of the process. All are made when it starts, because the sandbox then forbids to make others; a queue has one as
//! long as it transfers.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::pinned::PinnedMemory;
use crate::guest::GuestMap;
use crate::sys::uring::{self, Uring};

/// Requests of a ring at most. More than a disk has in flight (a SATA disk 32, a virtio disk 128 to 256), and few enough for the
/// 16 KiB that the kernel keeps for each ring. The completion queue has twice as many entries, so that it never overflows.
pub const REQUESTS_MAX: u32 = 128;

/// Rings for the queues of one session after the other.
#[derive(Debug)]
pub struct Rings {
    all: Vec<Arc<Uring>>,
    /// Held to take one.
    taking: Mutex<()>,
    /// Guest memory that is registered with all of them.
    pinned: Option<Arc<PinnedMemory>>,
}

/// io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
#[error("{}", reason(.0))]
pub struct NoRings(#[from] io::Error);

/// Why, and what to do.
fn reason(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::EPERM) => "the sysctl kernel.io_uring_disabled, or a seccomp filter around the daemon, forbids io_uring".to_owned(),
        Some(libc::ENOSYS) => "the kernel has no io_uring, or a seccomp filter around the daemon forbids it".to_owned(),
        Some(libc::EINVAL) => "it takes Linux 5.19".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "there are not enough descriptors; raise --rlimit-nofile".to_owned(),
        _ => format!("the kernel makes no ring: {e}"),
    }
}

impl Rings {
    /// Makes `count` rings, which have the capabilities of the calling thread. With `pins_memory` guest memory is registered with
    /// them, where the kernel supports that.
    pub fn new(count: u16, pins_memory: bool) -> Result<Rings, NoRings> {
        let make = |_| Uring::new(REQUESTS_MAX, pins_memory).map(Arc::new);
        let all = (0..count).map(make).collect::<io::Result<Vec<_>>>()?;
        let has_buffers = all.iter().all(|ring| ring.has_buffers());
        if pins_memory && !has_buffers {
            tracing::warn!("--pin-guest-memory has no effect: it takes Linux 6.15");
        }
        let pinned = (pins_memory && has_buffers).then(Arc::default);
        Ok(Rings { all, taking: Mutex::new(()), pinned })
    }

    /// Waits until the kernel has done what a process that died has given to its rings, by their descriptors.
    pub fn wait_for_leftover(rings: &[RawFd]) -> io::Result<()> {
        uring::wait_for_leftover(rings, REQUESTS_MAX)
    }

    /// Guest memory was replaced. It is pinned, if that was asked for.
    pub fn set_memory(&self, map: &Arc<GuestMap>) {
        if let Some(pinned) = &self.pinned {
            pinned.replace(&self.all, Arc::clone(map));
        }
    }

    /// Whether guest memory is registered with the rings.
    pub fn pins_memory(&self) -> bool {
        self.pinned.is_some()
    }

    /// The memory that is registered, if any is.
    pub(super) fn pinned(&self) -> Option<Arc<PinnedMemory>> {
        self.pinned.clone()
    }

    /// The numbers of their descriptors.
    pub fn descriptors(&self) -> Vec<RawFd> {
        self.all.iter().map(|uring| uring.raw_fd()).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// A ring that no queue has. It is free again when the last reference is dropped.
    pub(super) fn take(&self) -> Option<Arc<Uring>> {
        let _taking = self.taking.lock();
        self.all.iter().find(|uring| Arc::strong_count(uring) == 1).cloned()
    }
}
