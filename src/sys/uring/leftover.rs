//! A ring whose process has died. The kernel goes on with what it took off the ring, also into the memory of a guest that other
//! processes have mapped, as long as anybody has the ring's descriptor (docs/RECOVERY.md, section 6).

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::buffers::unregister_left;

/// Between two looks at a ring that is not done.
const LOOK_AGAIN: Duration = Duration::from_micros(200);
/// The host is slow: worth a line in the log.
const SLOW: Duration = Duration::from_secs(1);

/// What io_uring_setup(2) says of a ring: `struct io_uring_params` of linux/io_uring.h, with what is not needed left as room.
#[repr(C)]
#[derive(Debug, Default)]
struct Parameters {
    sq_entries: u32,
    cq_entries: u32,
    room: [u32; 8],
    sq_head: u32,
    sq_tail: u32,
    sq_others: [u32; 4],
    sq_array: u32,
    sq_room: [u32; 3],
    cq_head: u32,
    cq_tail: u32,
    cq_others: [u32; 3],
    cq_entries_at: u32,
    cq_room: [u32; 4],
}

const _: () = assert!(size_of::<Parameters>() == 120);
/// Bytes of a completion queue entry.
const CQE_LEN: usize = 16;
/// IORING_OFF_SQ_RING: both queues, with one mapping (IORING_FEAT_SINGLE_MMAP, Linux 5.4).
const QUEUES: u64 = 0;

/// Waits until the kernel has finished everything that it took off `rings`, which had `entries` requests each, and has them let go of
/// the memory that is registered with them. A descriptor that is no
/// ring is passed over: its process died before it said so.
///
/// # Errors
/// The kernel makes no ring, or there is no memory.
pub fn wait_for_leftover(rings: &[RawFd], entries: u32) -> io::Result<()> {
    let Some(entries) = NonZeroU32::new(entries).filter(|_| !rings.is_empty()) else { return Ok(()) };
    let layout = Layout::of(entries)?;
    for ring in rings {
        // SAFETY: the number is only handed to the kernel, which answers EBADF where it is not open.
        let ring = unsafe { BorrowedFd::borrow_raw(*ring) };
        match layout.wait_for(ring) {
            Ok(()) => unregister_left(ring),
            Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(())
}

/// The layout of rings of one size, the same for all of them.
#[derive(Debug)]
struct Layout {
    /// Where the kernel counts what it took off the submission queue, and what it put on the completion queue.
    taken: usize,
    posted: usize,
    len: usize,
}

impl Layout {
    /// Of rings of `entries` requests. Makes one to ask the kernel.
    fn of(entries: NonZeroU32) -> io::Result<Layout> {
        let mut parameters = Parameters::default();
        // SAFETY: the kernel reads and writes one structure of 120 bytes.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries.get(), &raw mut parameters) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a new descriptor, which nobody else owns.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        let Parameters { sq_entries, cq_entries, sq_head, sq_array, cq_tail, cq_entries_at, .. } = parameters;
        let submissions = sq_array as usize + sq_entries as usize * size_of::<u32>();
        let completions = cq_entries_at as usize + cq_entries as usize * CQE_LEN;
        Ok(Layout { taken: sq_head as usize, posted: cq_tail as usize, len: submissions.max(completions) })
    }

    /// Waits until the kernel has finished everything that it took off `ring`. What was placed and not taken is never begun.
    ///
    /// # Errors
    /// `ring` is no ring, or there is no memory to map it.
    fn wait_for(&self, ring: BorrowedFd<'_>) -> io::Result<()> {
        let flags = MapFlags::SHARED;
        // SAFETY: the kernel chooses an unused address range for the new mapping.
        let base = unsafe { mmap(std::ptr::null_mut(), self.len, ProtFlags::READ, flags, ring, QUEUES) }?;
        // SAFETY: the offset is within the mapping, by the kernel's own figures.
        let taken = unsafe { base.byte_add(self.taken) };
        // SAFETY: as above.
        let posted = unsafe { base.byte_add(self.posted) };
        // SAFETY: an aligned word of the mapping, which both sides access atomically.
        let taken = unsafe { AtomicU32::from_ptr(taken.cast()) };
        // SAFETY: as above.
        let posted = unsafe { AtomicU32::from_ptr(posted.cast()) };
        let began = Instant::now();
        let mut is_told = false;
        while taken.load(Ordering::Acquire) != posted.load(Ordering::Acquire) {
            std::thread::sleep(LOOK_AGAIN);
            if !is_told && began.elapsed() > SLOW {
                is_told = true;
                tracing::warn!(
                    "the host has not finished {} transfers of the worker that died (io_uring {}); the guest waits for them",
                    taken.load(Ordering::Relaxed).wrapping_sub(posted.load(Ordering::Relaxed)),
                    ring.as_raw_fd()
                );
            }
        }
        // SAFETY: mapped above; the references to it are not used any more.
        Ok(unsafe { munmap(base, self.len) }?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use io_uring::{IoUring, opcode, types};

    use super::*;

    #[test]
    fn a_ring_is_done_when_everything_that_was_taken_is_posted() {
        let entries = NonZeroU32::new(8).unwrap();
        let Ok(layout) = Layout::of(entries) else {
            return eprintln!("skipped: this kernel makes no io_uring");
        };
        let mut ring = IoUring::new(entries.get()).unwrap();
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        layout.wait_for(fd).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut byte = [0u8];
        let request = opcode::Read::new(types::Fd(read.as_raw_fd()), byte.as_mut_ptr(), 1).build();
        // SAFETY: the byte outlives the request, which is waited for below.
        unsafe { ring.submission().push(&request) }.unwrap();
        // Placed and not taken.
        layout.wait_for(fd).unwrap();
        ring.submit().unwrap();
        let waits = std::thread::scope(|scope| {
            let wait = scope.spawn(|| layout.wait_for(fd));
            std::thread::sleep(Duration::from_millis(20));
            let waits = !wait.is_finished();
            rustix::io::write(&write, b"x").unwrap();
            wait.join().unwrap().unwrap();
            waits
        });
        assert!(waits && byte == *b"x");
        assert!(layout.wait_for(read.as_fd()).is_err(), "no ring");
    }
}
