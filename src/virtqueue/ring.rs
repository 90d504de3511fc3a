//! The avail and used rings: pop heads, push used elements, and the rules of notification (virtio 1.3 sections 2.7.6 to
//! 2.7.10).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::guest::RingMemory;
use crate::sys::failpoint::crash_point;

/// VIRTQ_AVAIL_F_NO_INTERRUPT: the driver does not want a call.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY: the device does not want a kick.
const USED_NO_NOTIFY: u16 = 1;

/// The driver's avail index lies further ahead than the ring is long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvailJump {
    /// The index that the driver wrote.
    pub index: u16,
    /// The index that we were at.
    pub next: u16,
}

/// What tells, without the ring itself, whether chains wait.
#[derive(Debug)]
pub struct Arrivals {
    memory: Arc<RingMemory>,
    next_avail: u16,
}

impl Arrivals {
    /// Whether chains wait, as [`Ring::waiting`] would say. An impossible index of the driver's is none.
    #[inline]
    pub fn are_there(&self) -> bool {
        let waiting = self.memory.avail_index().wrapping_sub(self.next_avail);
        waiting != 0 && waiting <= self.memory.size()
    }
}

/// A running ring: its memory and the device's place in it. Made when the frontend starts the queue,
/// dropped when it stops it; the caller keeps `next_avail` in between.
#[derive(Debug)]
pub struct Ring {
    /// `None` while the ring does not lie in guest memory, and nothing of it is in service.
    memory: Option<Arc<RingMemory>>,
    event_idx: bool,
    next_avail: u16,
    /// Where the next used element goes: the used index that the driver sees.
    next_used: u16,
    /// The used index at the last call, or when the driver was found not to want one.
    signalled: u16,
    /// With EVENT_IDX: a kick is requested for a chain behind the next one.
    is_event_ahead: bool,
}

impl Ring {
    /// A ring at `memory`, with the indexes that the frontend handed over.
    pub fn new(memory: Arc<RingMemory>, event_idx: bool, next_avail: u16, next_used: u16) -> Ring {
        Ring { memory: Some(memory), event_idx, next_avail, next_used, signalled: next_used, is_event_ahead: false }
    }

    /// Moves the ring to another generation of guest memory.
    pub fn remap(&mut self, memory: Arc<RingMemory>) {
        self.memory = Some(memory);
    }

    /// Releases the memory. The ring keeps its indexes, and runs again after `remap`.
    pub fn detach(&mut self) {
        self.memory = None;
    }

    /// The memory in which the ring lies, if it lies in any.
    pub fn memory(&self) -> Option<&Arc<RingMemory>> {
        self.memory.as_ref()
    }

    /// Entries of the queue; 0 without memory.
    pub fn size(&self) -> u16 {
        self.memory.as_ref().map_or(0, |memory| memory.size())
    }

    /// The index of the next chain to pop.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Where the next used element goes.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Chains that wait. An error where the driver's index is impossible; nothing is popped then.
    pub fn waiting(&self) -> Result<u16, AvailJump> {
        let Some(memory) = &self.memory else { return Ok(0) };
        let index = memory.avail_index();
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > memory.size() { Err(AvailJump { index, next: self.next_avail }) } else { Ok(waiting) }
    }

    /// What tells whether chains arrive after this. `None` without memory.
    pub fn arrivals(&self) -> Option<Arrivals> {
        let memory = Arc::clone(self.memory.as_ref()?);
        Some(Arrivals { memory, next_avail: self.next_avail })
    }

    /// The head of the next chain and the memory to walk it in; the caller saw that one waits. The head may be out of
    /// range. `None` without memory.
    pub fn pop(&mut self) -> Option<(u16, Arc<RingMemory>)> {
        let memory = self.memory.as_ref()?;
        let head = memory.avail_head(self.next_avail);
        self.next_avail = self.next_avail.wrapping_add(1);
        Some((head, Arc::clone(memory)))
    }

    /// Pushes a used element: chain `head`, `len` bytes written. Visible to the driver from now on.
    pub fn push_used(&mut self, head: u16, len: u32) {
        self.push_used_at(self.next_used, head, len);
    }

    /// The same at used index `at`, where the ring goes on then: what an earlier process may have pushed there is pushed again.
    pub fn push_used_at(&mut self, at: u16, head: u16, len: u32) {
        if let Some(memory) = &self.memory {
            memory.set_used_element(at, head, len);
            crash_point!("push, before the index");
            self.next_used = at.wrapping_add(1);
            memory.set_used_index(self.next_used);
        }
    }

    /// Used elements since the last call.
    pub fn unsignalled(&self) -> u16 {
        self.next_used.wrapping_sub(self.signalled)
    }

    /// Whether the driver wants a call for the used elements since the last one (section 2.7.7.2), which is then taken for
    /// made. True without memory, where nothing says whether it does.
    pub fn needs_call(&mut self) -> bool {
        let old = std::mem::replace(&mut self.signalled, self.next_used);
        if old == self.next_used {
            return false;
        }
        let Some(memory) = &self.memory else { return true };
        // The index store must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        if self.event_idx { need_event(memory.used_event(), self.next_used, old) } else { memory.avail_flags() & AVAIL_NO_INTERRUPT == 0 }
    }

    /// Requests a kick for the next chain. True if chains arrived meanwhile, so that there is no need to wait.
    pub fn enable_kicks(&mut self) -> bool {
        let Some(memory) = &self.memory else { return false };
        if self.event_idx {
            memory.set_avail_event(self.next_avail);
            self.is_event_ahead = false;
        } else {
            memory.set_used_flags(0);
        }
        fence(Ordering::SeqCst);
        memory.avail_index() != self.next_avail
    }

    /// Requests a kick for when `count` chains wait. `None` without EVENT_IDX, or without memory; true if that many wait already.
    pub fn enable_kick_after(&mut self, count: u16) -> Option<bool> {
        let memory = self.memory.as_ref().filter(|_| self.event_idx)?;
        memory.set_avail_event(self.next_avail.wrapping_add(count.max(1) - 1));
        self.is_event_ahead = true;
        fence(Ordering::SeqCst);
        Some(self.waiting().is_ok_and(|waiting| waiting >= count))
    }

    /// Suppresses kicks. With EVENT_IDX an avail_event behind the next chain does so already.
    pub fn disable_kicks(&mut self) {
        let Some(memory) = &self.memory else { return };
        if !self.event_idx {
            memory.set_used_flags(USED_NO_NOTIFY);
        } else if std::mem::take(&mut self.is_event_ahead) {
            memory.set_avail_event(self.next_avail.wrapping_sub(1));
        }
    }
}

/// Whether moving the index from `old` to `new` passed `event` (vring_need_event of section 2.7.10).
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{GuestMap, MappedMemory};
    use vm_memory::{Bytes, GuestAddress};

    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;

    fn ring(event_idx: bool) -> (Ring, MappedMemory) {
        let memory = MappedMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let map = Arc::new(GuestMap::new(memory.clone(), Arc::default()));
        let ring = Arc::new(RingMemory::new(map, 4, 0, AVAIL, USED).unwrap());
        (Ring::new(ring, event_idx, 0, 0), memory)
    }

    fn put(memory: &MappedMemory, at: u64, value: u16) {
        memory.write_obj(value.to_le(), GuestAddress(at)).unwrap();
    }

    fn get(memory: &MappedMemory, at: u64) -> u16 {
        u16::from_le(memory.read_obj(GuestAddress(at)).unwrap())
    }

    #[test]
    fn heads_come_in_order_and_an_impossible_index_pops_nothing() {
        let (mut ring, memory) = ring(false);
        assert_eq!(ring.waiting(), Ok(0));
        put(&memory, AVAIL + 4, 3);
        put(&memory, AVAIL + 6, 1);
        put(&memory, AVAIL + 2, 2);
        assert_eq!(ring.waiting(), Ok(2));
        assert_eq!([ring.pop(), ring.pop()].map(|popped| popped.unwrap().0), [3, 1]);
        put(&memory, AVAIL + 2, 7);
        assert_eq!(ring.waiting(), Err(AvailJump { index: 7, next: 2 }));
        assert!(!ring.arrivals().unwrap().are_there(), "nothing can be popped");
        put(&memory, AVAIL + 2, 2);
        let arrivals = ring.arrivals().unwrap();
        assert!(!arrivals.are_there());
        put(&memory, AVAIL + 2, 3);
        assert_eq!((ring.waiting(), arrivals.are_there()), (Ok(1), true));
    }

    #[test]
    fn used_elements_are_seen_at_once_and_one_call_covers_them() {
        let (mut ring, memory) = ring(false);
        ring.push_used(3, 100);
        assert_eq!(get(&memory, USED + 2), 1);
        ring.push_used(1, 16);
        assert_eq!((get(&memory, USED + 2), ring.unsignalled()), (2, 2));
        assert_eq!((get(&memory, USED + 4), get(&memory, USED + 8)), (3, 100));
        assert_eq!((get(&memory, USED + 12), get(&memory, USED + 16)), (1, 16));
        assert!(ring.needs_call());
        assert!(!ring.needs_call(), "nothing new");
    }

    #[test]
    fn a_ring_without_memory_keeps_its_place() {
        let (mut ring, memory) = ring(false);
        put(&memory, AVAIL + 2, 2);
        let mapped = ring.pop().unwrap().1;
        ring.push_used(3, 100);
        ring.detach();
        assert_eq!((ring.waiting(), ring.size(), ring.next_avail(), ring.next_used()), (Ok(0), 0, 1, 1));
        assert!(ring.pop().is_none() && !ring.enable_kicks());
        assert!(ring.needs_call(), "whether the driver wants the call is not known");
        ring.remap(mapped);
        assert_eq!((ring.waiting(), ring.size(), ring.needs_call()), (Ok(1), 4, false));
    }

    #[test]
    fn verify_spec_2_7_7_2_the_drivers_wish_is_honoured() {
        let (mut plain, memory) = ring(false);
        put(&memory, AVAIL, AVAIL_NO_INTERRUPT);
        plain.push_used(0, 0);
        assert!(!plain.needs_call());

        let (mut events, memory) = ring(true);
        let used_event = AVAIL + 4 + 2 * 4;
        put(&memory, used_event, 1);
        events.push_used(0, 0);
        assert!(!events.needs_call(), "the driver waits for the second answer");
        events.push_used(1, 0);
        assert!(events.needs_call());
        events.push_used(2, 0);
        assert!(!events.needs_call());
    }

    #[test]
    fn verify_spec_2_7_10_kicks_are_asked_for_and_chains_in_between_are_seen() {
        let (mut ring, memory) = ring(true);
        assert!(!ring.enable_kicks());
        put(&memory, AVAIL + 2, 1);
        assert!(ring.enable_kicks());
        ring.pop();
        assert!(!ring.enable_kicks());
        assert_eq!(get(&memory, USED + 4 + 8 * 4), 1);
        let (mut plain, memory) = super::tests::ring(false);
        plain.disable_kicks();
        assert_eq!(get(&memory, USED), USED_NO_NOTIFY);
        plain.enable_kicks();
        assert_eq!(get(&memory, USED), 0);
    }

    #[test]
    fn a_kick_can_be_asked_for_later_chains_and_is_suppressed_again() {
        let (mut ring, memory) = ring(true);
        let avail_event = USED + 4 + 8 * 4;
        put(&memory, AVAIL + 2, 1);
        assert_eq!((ring.enable_kick_after(2), get(&memory, avail_event)), (Some(false), 1));
        assert!(need_event(1, 2, 1) && !need_event(1, 1, 0), "the driver kicks for the second chain only");
        ring.pop();
        ring.disable_kicks();
        assert!(!need_event(get(&memory, avail_event), 2, 1));
        put(&memory, AVAIL + 2, 3);
        assert_eq!(ring.enable_kick_after(2), Some(true), "there are that many");
        assert_eq!(super::tests::ring(false).0.enable_kick_after(2), None);
    }

    #[test]
    fn events_are_needed_when_the_index_passes_them_also_around_the_wrap() {
        assert!(need_event(0, 1, 0));
        assert!(!need_event(1, 1, 0));
        assert!(need_event(u16::MAX, 0, u16::MAX));
        assert!(need_event(0, 1, u16::MAX));
        assert!(!need_event(5, 1, u16::MAX));
    }
}
