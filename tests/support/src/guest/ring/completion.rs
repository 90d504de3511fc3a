//! Taking used chains back from the device, and waiting for them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Ring;

impl Ring {
    /// Takes the next used entry, `(head, used length)`, if there is one.
    /// Panics when the device uses a head it does not hold, unless the driver misbehaved first.
    pub fn poll_used(&mut self) -> Option<(u16, u32)> {
        let (head, len) = self.next_used()?;
        self.free_chain(head);
        Some((head, len))
    }

    fn next_used(&mut self) -> Option<(u16, u32)> {
        if self.used_idx() == self.last_used {
            return None;
        }
        let element = 2 + 4 * usize::from(self.last_used % self.options.size);
        let word = |i| u32::from(self.used_word(element + i).load(Ordering::Relaxed));
        let id = word(0) | word(1) << 16;
        let len = word(2) | word(3) << 16;
        self.last_used = self.last_used.wrapping_add(1);
        self.retire(id);
        Some((id as u16, len))
    }

    /// Whether `head` has been used and not taken; puts other used entries by for their takers.
    pub fn is_used(&mut self, head: u16) -> bool {
        self.put_by_used();
        self.is_put_by(head)
    }

    /// Puts all used entries by for their takers. With `is_put_by`, of many heads each is looked at without the ring.
    pub fn put_by_used(&mut self) {
        while let Some((used, len)) = self.next_used() {
            if let Some(put_by) = self.used_lens.get_mut(usize::from(used)) {
                *put_by = Some(len);
            }
        }
    }

    /// Whether `head` has been put by.
    pub fn is_put_by(&self, head: u16) -> bool {
        self.used_lens[usize::from(head)].is_some()
    }

    /// Takes the used length of `head` if the device has used it; others are put by.
    pub fn take_used(&mut self, head: u16) -> Option<u32> {
        self.is_used(head);
        let len = self.used_lens[usize::from(head)].take()?;
        // Not before: a head that was put by must not be used again until its taker has come.
        self.free_chain(head);
        Some(len)
    }

    fn retire(&mut self, id: u32) {
        let head = id as usize;
        let held = self.outstanding.get(head).is_some_and(|count| *count > 0);
        assert!(held || self.lenient, "the device used head {id}, which it does not hold");
        if held {
            self.outstanding[head] -= 1;
        }
    }

    /// Gives the descriptors of a used chain back.
    fn free_chain(&mut self, head: u16) {
        let mut index = head;
        let len = self.chain_len.get_mut(usize::from(head)).map_or(0, std::mem::take);
        for _ in 0..len {
            self.free.push(index);
            index = self.next[usize::from(index)];
        }
    }

    /// Waits until a used entry is there; false when `timeout` passes or the daemon goes first.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let start = Instant::now();
        if self.options.busy_poll {
            return self.spin(start, timeout);
        }
        let mut alive = true;
        loop {
            self.request_call();
            // The event index is visible before the used index is read again.
            fence(Ordering::SeqCst);
            if self.used_idx() != self.last_used {
                return true;
            }
            match timeout.checked_sub(start.elapsed()) {
                Some(left) if alive => alive = self.sleep(left),
                _ => return false,
            }
        }
    }

    /// Requests a call for the next used entry. Without event indexes there is one for each already.
    pub fn request_call(&mut self) {
        if self.options.event_idx && !self.options.busy_poll {
            let word = 2 + usize::from(self.options.size);
            self.avail_word(word).store(self.last_used, Ordering::Release);
        }
    }

    fn spin(&mut self, start: Instant, timeout: Duration) -> bool {
        const LOOK_AROUND: u32 = 1 << 14;
        let mut turns = 0u32;
        let mut alive = true;
        while self.used_idx() == self.last_used {
            if !alive || start.elapsed() > timeout {
                return false;
            }
            for _ in 0..64 {
                std::hint::spin_loop();
                if self.used_idx() != self.last_used {
                    return true;
                }
            }
            turns += 64;
            if turns.is_multiple_of(LOOK_AROUND) {
                alive = self.sleep(Duration::ZERO);
            }
        }
        true
    }

    /// Sleeps until the device calls; false when the daemon has closed the connection.
    fn sleep(&mut self, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).expect("a timeout of a test is short");
        // SAFETY: the descriptor is the ring's own and stays open during the call.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let peer = self.peer.as_deref();
        let mut fds = [PollFd::new(&call, PollFlags::IN), PollFd::from_borrowed_fd(peer.map_or(call, AsFd::as_fd), PollFlags::RDHUP)];
        let woken = poll(&mut fds, Some(&timeout));
        let alive = !fds[1].revents().intersects(PollFlags::HUP | PollFlags::RDHUP);
        if woken.is_ok()
            && let Ok(count) = self.call.read()
        {
            self.calls += count;
        }
        alive
    }
}
