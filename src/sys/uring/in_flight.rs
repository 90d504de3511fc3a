//! The requests of a ring, from when they are placed until they are reaped. The ring keeps what a request refers to in one place
//! until the kernel is done with it.

use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use io_uring::{EnterFlags, opcode, squeue, types};
use parking_lot::Mutex;

use super::faults::{completed, fail_transfer};
use super::{Rights, Uring};
use crate::sys::vectored::Segments;
use crate::types::Errno;

/// Time until the next attempt, where the kernel has no memory for a request.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// What the kernel is to do. It refers to a file and memory that are borrowed for `'v`.
#[derive(Debug)]
pub struct Request<'v> {
    entry: squeue::Entry,
    rights: Rights,
    /// The errno with which a failpoint has it complete, or 0.
    fails_with: u32,
    refers_to: PhantomData<&'v ()>,
}

impl<'v> Request<'v> {
    fn new(entry: squeue::Entry, rights: Rights, fails_with: u32) -> Request<'v> {
        Request { entry, rights, fails_with, refers_to: PhantomData }
    }

    /// As preadv2(2).
    pub fn read(file: BorrowedFd<'v>, pages: &'v (impl Segments + ?Sized), offset: u64) -> Request<'v> {
        let ((first, count), fails_with) = fail_transfer("uring_read", raw(pages));
        let entry = opcode::Readv::new(types::Fd(file.as_raw_fd()), first, count).offset(offset);
        Request::new(entry.build(), Rights::Own, fails_with)
    }

    /// As pwritev2(2), with RWF_ `flags`.
    pub fn write(file: BorrowedFd<'v>, pages: &'v (impl Segments + ?Sized), offset: u64, (flags, rights): (i32, Rights)) -> Request<'v> {
        let ((first, count), fails_with) = fail_transfer("uring_write", raw(pages));
        let entry = opcode::Writev::new(types::Fd(file.as_raw_fd()), first, count).offset(offset).rw_flags(flags);
        Request::new(entry.build(), rights, fails_with)
    }

    /// As [`Request::read`], of pages that are all in the registered buffer number `buffer`. EFAULT where they are not.
    pub fn read_registered(file: BorrowedFd<'v>, pages: &'v (impl Segments + ?Sized), offset: u64, buffer: u16) -> Request<'v> {
        let ((first, count), fails_with) = fail_transfer("uring_read", raw(pages));
        let entry = opcode::ReadvFixed::new(types::Fd(file.as_raw_fd()), first, count, buffer).offset(offset);
        Request::new(entry.build(), Rights::Own, fails_with)
    }

    /// As [`Request::write`], of pages that are all in the registered buffer number `buffer`. EFAULT where they are not.
    pub fn write_registered(
        file: BorrowedFd<'v>,
        pages: &'v (impl Segments + ?Sized),
        offset: u64,
        (flags, rights): (i32, Rights),
        buffer: u16,
    ) -> Request<'v> {
        let ((first, count), fails_with) = fail_transfer("uring_write", raw(pages));
        let entry = opcode::WritevFixed::new(types::Fd(file.as_raw_fd()), first, count, buffer).offset(offset).rw_flags(flags);
        Request::new(entry.build(), rights, fails_with)
    }

    /// As fsync(2), or fdatasync(2).
    pub fn sync(file: BorrowedFd<'v>, data_only: bool) -> Request<'v> {
        let (_, fails_with) = fail_transfer("uring_fsync", (std::ptr::null(), 0));
        let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
        Request::new(opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(flags).build(), Rights::Own, fails_with)
    }
}

/// The kernel answers EINVAL to more segments than a call may have.
fn raw(pages: &(impl Segments + ?Sized)) -> (*const libc::iovec, u32) {
    let (first, count) = pages.raw();
    (first, u32::try_from(count).unwrap_or(u32::MAX))
}

/// A ring with the values that its requests refer to.
pub struct Ring<T> {
    uring: Arc<Uring>,
    /// A slot that is not free belongs to the kernel until its completion is reaped.
    slots: Box<[UnsafeCell<Option<T>>]>,
    /// Slots that are free. Whoever holds the lock may use the queues.
    free: Mutex<Vec<usize>>,
    in_flight: AtomicUsize,
    /// Requests that were placed and that no thread has entered the ring for.
    placed: AtomicUsize,
    /// Threads that have entered the ring with requests and have not come back.
    inside: AtomicUsize,
}

// SAFETY: a value is accessed with the lock, by the thread that places it and by the one that reaps it.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above. The kernel's side is atomic.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> std::fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("uring", &self.uring).field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl<T> Ring<T> {
    /// A ring for requests on `uring`, which no other ring may use at the same time.
    pub fn new(uring: Arc<Uring>) -> Ring<T> {
        let entries = uring.entries() as usize;
        let slots = (0..entries).map(|_| UnsafeCell::new(None)).collect();
        let free = Mutex::new((0..entries).rev().collect());
        Ring { uring, slots, free, in_flight: AtomicUsize::new(0), placed: AtomicUsize::new(0), inside: AtomicUsize::new(0) }
    }

    /// Places the request that `request_of` makes of `value`: how many are placed and not entered. `value` stays in the ring
    /// until the request is reaped. Given back where the ring is full; `request_of` is not called then.
    pub fn place(&self, value: T, request_of: impl for<'v> FnOnce(&'v T) -> Request<'v>) -> Result<usize, T> {
        let mut free = self.free.lock();
        let Some(index) = free.pop() else { return Err(value) };
        // SAFETY: the slot is free, so neither the kernel nor another thread uses it. The lock is held.
        let slot = unsafe { &mut *self.slots[index].get() };
        let Request { entry, rights, fails_with, .. } = request_of(slot.insert(value));
        let user_data = index as u64 | u64::from(fails_with) << 32;
        let entry = entry.personality(self.uring.personality(rights)).user_data(user_data);
        // SAFETY: the lock is held, so there is no other view of the queue.
        let mut queue = unsafe { self.uring.ring.submission_shared() };
        // SAFETY: the entry refers to a file and to memory that are borrowed from the value. It stays where it is, untouched,
        // until `reap` finds that the kernel is done.
        let is_placed = unsafe { queue.push(&entry) }.is_ok();
        drop(queue);
        // There are as many entries as slots, so the queue has room.
        if !is_placed && let Some(value) = slot.take() {
            free.push(index);
            return Err(value);
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(self.placed.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Requests that are placed and not reaped.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that are placed and not entered.
    pub fn placed(&self) -> usize {
        self.placed.load(Ordering::Relaxed)
    }

    /// Whether a thread is submitting requests. Another one that enters the ring waits for it, however long the kernel holds it up.
    pub fn is_entered(&self) -> bool {
        self.inside.load(Ordering::Relaxed) > 0
    }

    /// Enters the ring for what is placed. Whether there was anything. An error where the kernel does not take it, with an errno
    /// that io_uring_enter(2) has for a mistake of the program.
    pub fn enter(&self) -> io::Result<bool> {
        if self.placed.swap(0, Ordering::Relaxed) == 0 {
            return Ok(false);
        }
        self.inside.fetch_add(1, Ordering::Relaxed);
        let entered = self.submit_all();
        self.inside.fetch_sub(1, Ordering::Relaxed);
        entered.map(|()| true)
    }

    fn submit_all(&self) -> io::Result<()> {
        loop {
            match self.uring.ring.submitter().submit() {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => std::thread::sleep(RETRY_AFTER),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            let _lock = self.free.lock();
            // SAFETY: the lock is held, so there is no other view of the queue.
            if unsafe { self.uring.ring.submission_shared() }.is_empty() {
                return Ok(());
            }
        }
    }

    /// Whether [`Ring::reap`] may find something. No system call.
    pub fn has_completions(&self) -> bool {
        self.in_flight() > 0 && {
            let (has_posted, has_task_work) = self.completions();
            has_posted || has_task_work
        }
    }

    /// Whether completions are posted, and whether the kernel has some that a thread must post.
    fn completions(&self) -> (bool, bool) {
        let _lock = self.free.lock();
        // SAFETY: the lock is held, so there is no other view of the queue.
        let has_posted = !unsafe { self.uring.ring.completion_shared() }.is_empty();
        // SAFETY: as above.
        (has_posted, unsafe { self.uring.ring.submission_shared() }.taskrun())
    }

    /// Calls `each` for every completion with the value and the result. `each` must not use the ring.
    pub fn reap(&self, mut each: impl FnMut(T, Result<usize, Errno>)) {
        if self.completions() == (false, true) {
            // SAFETY: without arguments. This thread's part of the work posts completions.
            let _ = unsafe { self.uring.ring.submitter().enter::<()>(0, 0, EnterFlags::GETEVENTS.bits(), None) };
        }
        let mut free = self.free.lock();
        // SAFETY: the lock is held, so there is no other view of the queue.
        let queue = unsafe { self.uring.ring.completion_shared() };
        let mut count = 0;
        for completion in queue {
            let (user_data, result) = completed(completion.user_data(), completion.result());
            let index = usize::try_from(user_data).unwrap_or(usize::MAX);
            let Some(slot) = self.slots.get(index) else { continue };
            // SAFETY: the kernel is done with the slot, which is not free. The lock is held.
            let Some(value) = unsafe { &mut *slot.get() }.take() else { continue };
            free.push(index);
            count += 1;
            each(value, usize::try_from(result).map_err(|_| Errno::from_raw(-result)));
        }
        self.in_flight.fetch_sub(count, Ordering::Relaxed);
    }

    /// Waits for a completion.
    pub fn wait(&self) -> io::Result<()> {
        match self.uring.ring.submitter().submit_and_wait(1) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(()),
        }
    }

    /// Becomes readable with each completion.
    pub fn completion_event(&self) -> BorrowedFd<'_> {
        self.uring.as_fd()
    }
}

impl<T> Drop for Ring<T> {
    /// Waits until the kernel is done with what is in flight.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            let mut values = Vec::new();
            self.reap(|value, _| values.push(value));
            if values.is_empty() && self.wait().is_err() {
                // The kernel may still use what the slots hold.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
        }
    }
}
