//! The parts of a ring by hand, for a test that is a bad driver: any descriptor, any head, any index.
//! What a good driver offers goes through `write_descriptor` and `push_head` too.

use std::sync::atomic::{Ordering, fence};

use super::{Descriptor, Ring};

impl Ring {
    /// Writes entry `index` of the descriptor table, whatever it says.
    pub fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        assert!(index < self.options.size);
        let entry = self.table.wrapping_add(index.into());
        // SAFETY: the entry lies in the table, which `_region` keeps mapped.
        unsafe { entry.write_volatile(descriptor) };
    }

    /// Takes `count` descriptors out of the free list for chains written by hand.
    pub fn reserve(&mut self, count: usize) -> Vec<u16> {
        assert!(count <= self.free.len(), "the ring is full");
        self.free.split_off(self.free.len() - count)
    }

    /// Gives descriptors of `reserve` back.
    pub fn unreserve(&mut self, descriptors: &[u16]) {
        self.free.extend_from_slice(descriptors);
    }

    /// Enters any `head` in the available ring, not yet visible to the device.
    pub fn push_head(&mut self, head: u16) {
        let slot = self.avail_idx % self.options.size;
        self.avail_word(2 + usize::from(slot)).store(head, Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        match self.outstanding.get_mut(usize::from(head)) {
            Some(count) => {
                *count += 1;
                self.used_lens[usize::from(head)] = None;
            }
            None => self.lenient = true,
        }
    }

    /// Sets avail.idx to anything. From here on the ring accepts any used entry.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.lenient = true;
        self.avail_idx = idx;
        self.published = idx;
        self.avail_word(1).store(idx, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Has both sides of the empty ring begin at `idx`. The device must not be using it.
    pub fn begin_at(&mut self, idx: u16) {
        (self.avail_idx, self.published, self.last_used) = (idx, idx, idx);
        self.avail_word(1).store(idx, Ordering::Release);
        self.used_word(1).store(idx, Ordering::Release);
        self.request_call();
    }

    /// Writes used.idx, which is the device's.
    pub fn set_used_idx(&mut self, idx: u16) {
        self.used_word(1).store(idx, Ordering::Release);
    }

    /// Whether the device holds `head`.
    pub fn holds(&self, head: u16) -> bool {
        self.outstanding[usize::from(head)] > 0
    }

    /// The driver's own avail.idx.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }
}
