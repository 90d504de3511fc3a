//! The driver side of a split virtqueue, virtio 1.3 section 2.7.
//!
//! After warm-up no request allocates: the free list and the indirect tables are kept per head.
//! The raw functions (`write_descriptor`, `push_head`, `set_avail_idx`) let a test be a bad driver.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::memory::{Memory, PAGE_SIZE, Region};

/// Descriptor flag: the chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes this buffer.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;
const DESCRIPTOR_SIZE: u64 = 16;

/// One buffer of a request as the driver offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// True when the device writes it, false when the device reads it.
    pub writable: bool,
}

impl Segment {
    /// A buffer the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// A buffer the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }
}

/// A descriptor table entry, virtio 1.3 section 2.7.5.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// The entry that follows, when `DESC_F_NEXT` is set.
    pub next: u16,
}

/// What a ring is made like.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Number of descriptors, a power of two from 2 to 32768.
    pub size: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Completions are found by looking instead of by waiting for the call eventfd.
    pub busy_poll: bool,
}

/// A table of descriptors in guest memory that a head keeps for its next request.
#[derive(Clone, Copy, Debug)]
struct Indirect {
    gpa: u64,
    host: *mut Descriptor,
    room: usize,
}

/// One virtqueue. A guest makes it; whoever locks it is its driver.
#[derive(Debug)]
pub struct Ring {
    options: RingOptions,
    memory: Arc<Memory>,
    region: Arc<Region>,
    gpa: u64,
    len: u64,
    table: *mut Descriptor,
    avail: *mut u16,
    used: *mut u16,
    kick: EventFd,
    call: EventFd,
    peer: Option<Arc<OwnedFd>>,
    free: Vec<u16>,
    next: Vec<u16>,
    chain_len: Vec<u16>,
    outstanding: Vec<u16>,
    used_lens: Vec<Option<u32>>,
    indirect: Vec<Option<Indirect>>,
    avail_idx: u16,
    published: u16,
    last_used: u16,
    lenient: bool,
    use_indirect: bool,
    kicks: u64,
    calls: u64,
}

// SAFETY: the pointers lead into `region`, which the ring keeps mapped; moving the ring to another
// thread moves its only driver.
unsafe impl Send for Ring {}

/// Byte offsets of the available and the used ring behind the table, and the length of all three.
fn layout(size: u64) -> (u64, u64, u64) {
    let avail = size * DESCRIPTOR_SIZE;
    let used = (avail + 6 + 2 * size).next_multiple_of(PAGE_SIZE);
    (avail, used, used + 6 + 8 * size)
}

impl Ring {
    /// Lays a ring out in `memory`, empty, with both indexes 0.
    pub fn new(memory: &Arc<Memory>, options: RingOptions) -> io::Result<Self> {
        let size = options.size;
        assert!(size.is_power_of_two() && (2..=32768).contains(&size), "queue size {size}");
        let (avail, used, len) = layout(u64::from(size));
        let gpa = memory.alloc(len, PAGE_SIZE);
        let region = memory.region_of(gpa, len);
        let mut ring = Self {
            options,
            memory: Arc::clone(memory),
            table: region.host(gpa).cast(),
            avail: region.host(gpa + avail).cast(),
            used: region.host(gpa + used).cast(),
            region,
            gpa,
            len,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            peer: None,
            free: Vec::with_capacity(size.into()),
            next: vec![0; size.into()],
            chain_len: vec![0; size.into()],
            outstanding: vec![0; size.into()],
            used_lens: vec![None; size.into()],
            indirect: vec![None; size.into()],
            avail_idx: 0,
            published: 0,
            last_used: 0,
            lenient: false,
            use_indirect: options.indirect,
            kicks: 0,
            calls: 0,
        };
        ring.reset();
        Ok(ring)
    }

    /// Empties the ring as a driver does after a device reset. The device must not be using it.
    pub fn reset(&mut self) {
        self.memory.fill(self.gpa, self.len as usize, 0);
        self.free.clear();
        self.free.extend((0..self.options.size).rev());
        self.chain_len.fill(0);
        self.outstanding.fill(0);
        self.used_lens.fill(None);
        self.avail_idx = 0;
        self.published = 0;
        self.last_used = 0;
        self.lenient = false;
        let _ = self.call.read();
        let _ = self.kick.read();
        self.set_busy_poll(self.options.busy_poll);
    }

    /// Guest-physical addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> (u64, u64, u64) {
        let (avail, used, _) = layout(u64::from(self.options.size));
        (self.gpa, self.gpa + avail, self.gpa + used)
    }

    /// The same three addresses in this process, as SET_VRING_ADDR wants them.
    pub fn user_addresses(&self) -> (u64, u64, u64) {
        (self.table as u64, self.avail as u64, self.used as u64)
    }

    /// The options the ring was made with.
    pub fn options(&self) -> RingOptions {
        self.options
    }

    /// The eventfd that tells the device about new chains.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The eventfd by which the device tells about used chains.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// Descriptors that are free now.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Kicks sent and calls received since the ring was made.
    pub fn notifications(&self) -> (u64, u64) {
        (self.kicks, self.calls)
    }

    /// Whether `submit` puts chains of several segments into indirect tables. Has an effect only
    /// when the feature was negotiated.
    pub fn set_indirect(&mut self, indirect: bool) {
        self.use_indirect = indirect && self.options.indirect;
    }

    /// Chooses between looking for completions and waiting for the call eventfd.
    pub fn set_busy_poll(&mut self, busy_poll: bool) {
        self.options.busy_poll = busy_poll;
        if self.options.event_idx {
            // virtio 1.3 section 2.7.7: far behind is a value the device does not soon reach.
            let event = if busy_poll { self.last_used.wrapping_sub(1) } else { self.last_used };
            self.avail_word(2 + usize::from(self.options.size)).store(event, Ordering::Release);
        } else {
            let flags = if busy_poll { AVAIL_F_NO_INTERRUPT } else { 0 };
            self.avail_word(0).store(flags, Ordering::Release);
        }
    }

    /// Word `index` of the available ring: flags, idx, ring[size], used_event.
    fn avail_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < 3 + usize::from(self.options.size));
        // SAFETY: the index lies in the ring, which `region` keeps mapped and is 2-aligned.
        unsafe { AtomicU16::from_ptr(self.avail.wrapping_add(index)) }
    }

    /// Word `index` of the used ring: flags, idx, elements of four words, avail_event.
    fn used_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < 3 + 4 * usize::from(self.options.size));
        // SAFETY: as in `avail_word`.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(index)) }
    }

    /// Writes entry `index` of the descriptor table, whatever it says.
    pub fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        assert!(index < self.options.size);
        let entry = self.table.wrapping_add(index.into());
        // SAFETY: the entry lies in the table, which `region` keeps mapped.
        unsafe { entry.write_volatile(descriptor) };
    }

    /// Reads entry `index` of the descriptor table.
    pub fn read_descriptor(&self, index: u16) -> Descriptor {
        assert!(index < self.options.size);
        // SAFETY: as in `write_descriptor`.
        unsafe { self.table.wrapping_add(index.into()).read_volatile() }
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

    /// Sets avail.idx to anything. From here on the ring accepts any used entry.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.lenient = true;
        self.avail_idx = idx;
        self.published = idx;
        self.avail_word(1).store(idx, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The driver's own avail.idx.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// The used.idx the device has published.
    pub fn used_idx(&self) -> u16 {
        self.used_word(1).load(Ordering::Acquire)
    }

    /// The used index up to which the driver has looked.
    pub fn last_used(&self) -> u16 {
        self.last_used
    }

    /// The indexes and events of both sides, for the message of a test that got stuck.
    pub fn describe(&self) -> String {
        let size = usize::from(self.options.size);
        let word = |word: &AtomicU16| word.load(Ordering::SeqCst);
        format!(
            "avail {} (event {}), used {} (event {}, seen {}), {} kicks, {} calls",
            word(self.avail_word(1)),
            word(self.used_word(2 + 4 * size)),
            self.used_idx(),
            word(self.avail_word(2 + size)),
            self.last_used,
            self.kicks,
            self.calls,
        )
    }

    /// Offers one chain to the device and returns its head.
    pub fn submit(&mut self, segments: &[Segment]) -> u16 {
        let head = self.add(segments);
        self.publish();
        head
    }

    /// Offers several chains with one index store and at most one kick; appends their heads.
    pub fn submit_many(&mut self, chains: &[&[Segment]], heads: &mut Vec<u16>) {
        for chain in chains {
            let head = self.add(chain);
            heads.push(head);
        }
        self.publish();
    }

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
        while let Some((used, len)) = self.next_used() {
            if let Some(put_by) = self.used_lens.get_mut(usize::from(used)) {
                *put_by = Some(len);
            }
        }
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

    /// Lets `wait` give up as soon as the other end of `peer`, the daemon's socket, is closed.
    pub fn set_peer(&mut self, peer: Arc<OwnedFd>) {
        self.peer = Some(peer);
    }

    /// Waits until a used entry is there; false when `timeout` passes or the daemon goes first.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let start = Instant::now();
        if self.options.busy_poll {
            return self.spin(start, timeout);
        }
        let mut alive = true;
        loop {
            if self.options.event_idx {
                let word = 2 + usize::from(self.options.size);
                self.avail_word(word).store(self.last_used, Ordering::Release);
            }
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
