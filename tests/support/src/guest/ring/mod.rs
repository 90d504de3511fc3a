//! The driver side of a split virtqueue, virtio 1.3 section 2.7.
//!
//! After warm-up no request allocates: the free list and the indirect tables are kept per head.
//! `offer` gives chains to the device, `completion` takes them back. The functions of `raw`
//! (`write_descriptor`, `push_head`, `set_avail_idx`) let a test be a bad driver.

mod completion;
mod layout;
mod offer;
mod raw;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::{Memory, PAGE_SIZE, Region};
use layout::{AVAIL_F_NO_INTERRUPT, offsets};

pub use layout::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, Segment};

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
    /// Keeps mapped what `table`, `avail` and `used` lead into.
    _region: Arc<Region>,
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

// SAFETY: the pointers lead into `_region`, which the ring keeps mapped; moving the ring to another
// thread moves its only driver.
unsafe impl Send for Ring {}

impl Ring {
    /// Lays a ring out in `memory`, empty, with both indexes 0.
    pub fn new(memory: &Arc<Memory>, options: RingOptions) -> io::Result<Self> {
        let size = options.size;
        assert!(size.is_power_of_two() && (2..=32768).contains(&size), "queue size {size}");
        let (avail, used, len) = offsets(u64::from(size));
        let gpa = memory.alloc(len, PAGE_SIZE);
        let region = memory.region_of(gpa, len);
        let mut ring = Self {
            options,
            memory: Arc::clone(memory),
            table: region.host(gpa).cast(),
            avail: region.host(gpa + avail).cast(),
            used: region.host(gpa + used).cast(),
            _region: region,
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
        let (avail, used, _) = offsets(u64::from(self.options.size));
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

    /// Lets `wait` give up as soon as the other end of `peer`, the daemon's socket, is closed.
    pub fn set_peer(&mut self, peer: Arc<OwnedFd>) {
        self.peer = Some(peer);
    }

    /// The used.idx the device has published.
    pub fn used_idx(&self) -> u16 {
        self.used_word(1).load(Ordering::Acquire)
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

    /// Word `index` of the available ring: flags, idx, ring[size], used_event.
    fn avail_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < 3 + usize::from(self.options.size));
        // SAFETY: the index lies in the ring, which `_region` keeps mapped and is 2-aligned.
        unsafe { AtomicU16::from_ptr(self.avail.wrapping_add(index)) }
    }

    /// Word `index` of the used ring: flags, idx, elements of four words, avail_event.
    fn used_word(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < 3 + 4 * usize::from(self.options.size));
        // SAFETY: as in `avail_word`.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(index)) }
    }
}
