//! Offering chains to the device: descriptors written, heads entered, the index published, the kick.

use std::sync::atomic::{Ordering, fence};

use super::layout::{DESCRIPTOR_SIZE, USED_F_NO_NOTIFY};
use super::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, Indirect, Ring, Segment};

impl Ring {
    /// Offers one chain to the device and returns its head.
    pub fn submit(&mut self, segments: &[Segment]) -> u16 {
        let head = self.add(segments);
        self.publish();
        head
    }

    /// Writes a chain of `segments` and enters it in the available ring, not yet visible to the
    /// device. Panics when the ring has not enough free descriptors.
    pub fn add(&mut self, segments: &[Segment]) -> u16 {
        assert!(!segments.is_empty(), "a chain has a segment");
        let head = if self.use_indirect && segments.len() > 1 { self.write_indirect(segments) } else { self.write_direct(segments) };
        self.push_head(head);
        head
    }

    fn write_direct(&mut self, segments: &[Segment]) -> u16 {
        assert!(segments.len() <= self.free.len(), "the ring is full");
        let head = *self.free.last().expect("a free descriptor");
        for (i, segment) in segments.iter().enumerate() {
            let index = self.free.pop().expect("counted above");
            let last = i + 1 == segments.len();
            let next = if last { 0 } else { *self.free.last().expect("counted above") };
            self.next[usize::from(index)] = next;
            self.write_descriptor(index, descriptor(*segment, next, last));
        }
        self.chain_len[usize::from(head)] = segments.len() as u16;
        head
    }

    fn write_indirect(&mut self, segments: &[Segment]) -> u16 {
        let head = self.free.pop().expect("the ring is full");
        let table = self.indirect_table(head, segments.len());
        for (i, segment) in segments.iter().enumerate() {
            let last = i + 1 == segments.len();
            let next = if last { 0 } else { i as u16 + 1 };
            let entry = table.host.wrapping_add(i);
            // SAFETY: `indirect_table` made room for all segments and the device does not hold it.
            unsafe { entry.write_volatile(descriptor(*segment, next, last)) };
        }
        let len = segments.len() as u32 * DESCRIPTOR_SIZE as u32;
        let entry = Descriptor { addr: table.gpa, len, flags: DESC_F_INDIRECT, next: 0 };
        self.write_descriptor(head, entry);
        self.chain_len[usize::from(head)] = 1;
        head
    }

    fn indirect_table(&mut self, head: u16, count: usize) -> Indirect {
        let kept = self.indirect[usize::from(head)];
        if let Some(table) = kept.filter(|table| table.room >= count) {
            return table;
        }
        if let Some(table) = kept {
            self.memory.release(table.gpa, table.room as u64 * DESCRIPTOR_SIZE);
        }
        let room = count.next_power_of_two().max(8);
        let len = room as u64 * DESCRIPTOR_SIZE;
        let gpa = self.memory.alloc(len, DESCRIPTOR_SIZE);
        let host = self.memory.region_of(gpa, len).host(gpa).cast();
        let table = Indirect { gpa, host, room };
        self.indirect[usize::from(head)] = Some(table);
        table
    }

    /// Makes all entered chains visible with one store of avail.idx and kicks if the device asks.
    pub fn publish(&mut self) {
        let old = self.published;
        let new = self.avail_idx;
        self.avail_word(1).store(new, Ordering::Release);
        self.published = new;
        // virtio 1.3 section 2.7.13.4.1: the index is visible before the suppression is read.
        fence(Ordering::SeqCst);
        let wanted = if self.options.event_idx {
            let event = 2 + 4 * usize::from(self.options.size);
            passed(self.used_word(event).load(Ordering::Relaxed), new, old)
        } else {
            self.used_word(0).load(Ordering::Relaxed) & USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.kick();
        }
    }

    /// Kicks the device, asked for or not.
    pub fn kick(&mut self) {
        self.kicks += 1;
        self.kick.write(1).expect("the kick eventfd takes a count");
    }
}

/// The table entry of `segment`.
fn descriptor(segment: Segment, next: u16, last: bool) -> Descriptor {
    let write = if segment.writable { DESC_F_WRITE } else { 0 };
    let follow = if last { 0 } else { DESC_F_NEXT };
    Descriptor { addr: segment.addr, len: segment.len, flags: write | follow, next }
}

/// virtio 1.3 section 2.7.7.2: whether the step from `old` to `new` went past `event`.
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
