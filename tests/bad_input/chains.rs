//! Descriptor chains and ring indexes that break the rules of virtio 1.3 section 2.7.

use gatherfs_support::daemon::{PATIENCE, eventually};
use gatherfs_support::guest::frontend::Guest;
use gatherfs_support::guest::fuse::{Attr, AttrOut, GetattrIn, InHeader, OutHeader, ROOT, opcode};
use gatherfs_support::guest::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use zerocopy::{FromZeros, IntoBytes};

use super::{Mounted, QUEUES};

/// The unique of every request written by hand.
const UNIQUE: u64 = 0xfeed;
const REQUEST_LEN: u32 = (size_of::<InHeader>() + size_of::<GetattrIn>()) as u32;
const REPLY_LEN: u32 = (size_of::<OutHeader>() + size_of::<AttrOut>()) as u32;
const HEADER_LEN: u32 = size_of::<OutHeader>() as u32;
/// An address far behind the memory of any guest here.
const NOWHERE: u64 = 1 << 50;

/// Buffers of a GETATTR of the root, for a chain made by hand. A place of its own for each queue.
#[derive(Clone, Copy)]
struct Buffers {
    request: u64,
    reply: u64,
    table: u64,
    /// First byte behind the first memory region.
    border: u64,
}

impl Buffers {
    fn new(guest: &Guest) -> Self {
        let memory = guest.memory();
        let page = || memory.alloc(4096, 4096);
        let buffers = Self { request: page(), reply: page(), table: page(), border: memory.regions()[0].end() };
        buffers.write_request(guest, REQUEST_LEN);
        buffers
    }

    /// Writes the request with `len` in its header.
    fn write_request(&self, guest: &Guest, len: u32) {
        let header = InHeader { len, opcode: opcode::GETATTR, unique: UNIQUE, nodeid: ROOT, ..InHeader::default() };
        guest.memory().write(self.request, header.as_bytes());
        guest.memory().write(self.request + 40, GetattrIn::default().as_bytes());
    }

    fn readable(&self) -> Descriptor {
        Descriptor { addr: self.request, len: REQUEST_LEN, flags: 0, next: 0 }
    }

    fn writable(&self) -> Descriptor {
        Descriptor { addr: self.reply, len: REPLY_LEN, flags: DESC_F_WRITE, next: 0 }
    }

    /// A descriptor of the first `len` bytes of the page for indirect tables.
    fn indirect(&self, len: u32) -> Descriptor {
        Descriptor { addr: self.table, len, flags: DESC_F_INDIRECT, next: 0 }
    }
}

/// What came back for a chain.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Length 0.
    Nothing,
    /// A header with this errno and unique, and as many bytes as it says.
    Header { errno: i32, unique: u64, len: u32 },
}

/// An error answer.
fn refused(errno: i32) -> Answer {
    Answer::Header { errno, unique: UNIQUE, len: HEADER_LEN }
}

/// An error answer to a request whose header could not be read.
fn refused_unread(errno: i32) -> Answer {
    Answer::Header { errno, unique: 0, len: HEADER_LEN }
}

/// What GETATTR answers.
fn served() -> Answer {
    Answer::Header { errno: 0, unique: UNIQUE, len: REPLY_LEN }
}

/// Links `chain` one behind the other. What has no NEXT bit and is not the last gets it; a NEXT bit that
/// is there keeps its `next`.
fn link(chain: &mut [Descriptor], index_of: impl Fn(usize) -> u16) {
    for i in 0..chain.len().saturating_sub(1) {
        if chain[i].flags & DESC_F_NEXT == 0 {
            chain[i].flags |= DESC_F_NEXT;
            chain[i].next = index_of(i + 1);
        }
    }
}

/// Offers `chain` on `queue` and takes what comes back. The `next` of a descriptor that has its NEXT bit
/// set counts from the chain's first one, so that loops can be written, unless it is outside the table.
fn offer(guest: &Guest, queue: usize, buffers: &Buffers, mut chain: Vec<Descriptor>) -> Answer {
    guest.memory().fill(buffers.reply, 4096, 0xaa);
    let mut ring = guest.lock(queue);
    let slots = ring.reserve(chain.len());
    for descriptor in chain.iter_mut().filter(|d| d.flags & DESC_F_NEXT != 0) {
        descriptor.next = slots.get(usize::from(descriptor.next)).copied().unwrap_or(descriptor.next);
    }
    link(&mut chain, |i| slots[i]);
    for (slot, descriptor) in slots.iter().zip(&chain) {
        ring.write_descriptor(*slot, *descriptor);
    }
    ring.push_head(slots[0]);
    ring.publish();
    let used_len = loop {
        if let Some(used_len) = ring.take_used(slots[0]) {
            break used_len;
        }
        assert!(ring.wait(PATIENCE), "the chain did not come back: {}", ring.describe());
    };
    ring.unreserve(&slots);
    if used_len == 0 {
        return Answer::Nothing;
    }
    let mut header = OutHeader::new_zeroed();
    guest.memory().read(buffers.reply, header.as_mut_bytes());
    assert_eq!(header.len, used_len, "the header's length is the used length");
    Answer::Header { errno: -header.error, unique: header.unique, len: header.len }
}

/// Offers the chain of `make` on both queues, expects `answer` and one count of `counter`, and that the
/// queues go on.
fn mistake(counter: &str, answer: &Answer, make: impl Fn(&Guest, &Buffers) -> Vec<Descriptor>) {
    let mut mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    for (round, queue) in QUEUES.into_iter().enumerate() {
        let chain = make(&mounted.guest, &buffers);
        assert_eq!(&offer(&mounted.guest, queue, &buffers, chain), answer, "on queue {queue}");
        assert_eq!(mounted.count(counter), round as u64 + 1, "{counter} after queue {queue}");
        mounted.assert_serves("the mistake");
    }
}

#[test]
fn a_chain_made_by_hand_is_served_and_counts_as_no_mistake() {
    let mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    for queue in QUEUES {
        assert_eq!(offer(&mounted.guest, queue, &buffers, vec![buffers.readable(), buffers.writable()]), served());
    }
    assert_eq!((mounted.count("malformed_chains"), mounted.count("malformed_requests")), (0, 0));
}

#[test]
fn a_next_index_outside_the_table_is_einval() {
    mistake("malformed_chains", &refused(libc::EINVAL), |_, b| {
        let writable = Descriptor { flags: DESC_F_WRITE | DESC_F_NEXT, next: 1024, ..b.writable() };
        vec![b.readable(), writable]
    });
}

#[test]
fn a_next_index_outside_the_table_without_room_for_a_reply_comes_back_empty() {
    mistake("malformed_chains", &Answer::Nothing, |_, b| vec![Descriptor { flags: DESC_F_NEXT, next: u16::MAX, ..b.readable() }]);
}

#[test]
fn a_head_outside_the_table_is_dropped_and_counted() {
    let mut mounted = Mounted::new(&[]);
    for (round, queue) in QUEUES.into_iter().enumerate() {
        let mut ring = mounted.guest.lock(queue);
        let used = ring.used_idx();
        ring.push_head(1024);
        ring.push_head(u16::MAX);
        ring.publish();
        drop(ring);
        let counted = eventually(|| mounted.count("malformed_chains") == 2 * (round as u64 + 1));
        assert!(counted, "two heads on queue {queue}");
        assert_eq!(mounted.guest.lock(queue).used_idx(), used, "the used ring cannot name them");
        mounted.assert_serves("a head outside the table");
    }
}

#[test]
fn a_loop_of_readable_descriptors_comes_back_empty() {
    mistake("malformed_chains", &Answer::Nothing, |_, b| vec![b.readable(), Descriptor { flags: DESC_F_NEXT, next: 0, ..b.readable() }]);
}

#[test]
fn a_loop_behind_the_reply_is_einval() {
    mistake("malformed_chains", &refused(libc::EINVAL), |_, b| {
        vec![b.readable(), b.writable(), Descriptor { flags: DESC_F_WRITE | DESC_F_NEXT, next: 2, ..b.writable() }]
    });
}

#[test]
fn an_argument_outside_memory_is_efault() {
    mistake("malformed_chains", &refused(libc::EFAULT), |_, b| {
        let header = Descriptor { len: 40, ..b.readable() };
        vec![header, Descriptor { addr: NOWHERE, len: 16, flags: 0, next: 0 }, b.writable()]
    });
}

#[test]
fn a_request_header_outside_memory_is_efault() {
    mistake("malformed_chains", &refused_unread(libc::EFAULT), |_, b| vec![Descriptor { addr: NOWHERE, ..b.readable() }, b.writable()]);
}

#[test]
fn a_buffer_that_runs_over_the_end_of_memory_is_efault() {
    mistake("malformed_chains", &refused(libc::EFAULT), |_, b| {
        let over = Descriptor { addr: b.border - 8, len: 4096, flags: DESC_F_WRITE, next: 0 };
        vec![b.readable(), b.writable(), over]
    });
}

#[test]
fn a_buffer_whose_end_wraps_around_is_efault() {
    mistake("malformed_chains", &refused(libc::EFAULT), |_, b| {
        let wraps = Descriptor { addr: u64::MAX - 7, len: u32::MAX, flags: DESC_F_WRITE, next: 0 };
        vec![b.readable(), b.writable(), wraps]
    });
}

#[test]
fn a_reply_outside_memory_comes_back_empty() {
    mistake("malformed_chains", &Answer::Nothing, |_, b| vec![b.readable(), Descriptor { addr: NOWHERE, ..b.writable() }]);
}

#[test]
fn a_readable_descriptor_behind_the_reply_is_einval() {
    mistake("malformed_chains", &refused(libc::EINVAL), |_, b| vec![b.readable(), b.writable(), b.readable()]);
}

#[test]
fn a_reply_in_front_of_its_request_is_einval() {
    mistake("malformed_chains", &refused_unread(libc::EINVAL), |_, b| vec![b.writable(), b.readable()]);
}

/// Writes `chain` as an indirect table of `b`.
fn write_table(guest: &Guest, b: &Buffers, mut chain: Vec<Descriptor>) {
    link(&mut chain, |i| i as u16);
    guest.memory().write(b.table, chain.as_bytes());
}

#[test]
fn an_indirect_table_is_served_and_its_write_flag_means_nothing() {
    // virtio 1.3 section 2.7.5.3.2: the device ignores the write-only flag of an indirect descriptor.
    let mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    write_table(&mounted.guest, &buffers, vec![buffers.readable(), buffers.writable()]);
    for queue in QUEUES {
        let plain = buffers.indirect(32);
        let marked = Descriptor { flags: DESC_F_INDIRECT | DESC_F_WRITE, ..plain };
        assert_eq!(offer(&mounted.guest, queue, &buffers, vec![plain]), served());
        assert_eq!(offer(&mounted.guest, queue, &buffers, vec![marked]), served());
    }
}

#[test]
fn an_indirect_table_may_follow_ordinary_descriptors() {
    // virtio 1.3 section 2.7.5.3.2.
    let mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    write_table(&mounted.guest, &buffers, vec![buffers.writable()]);
    for queue in QUEUES {
        assert_eq!(offer(&mounted.guest, queue, &buffers, vec![buffers.readable(), buffers.indirect(16)]), served());
    }
}

#[test]
fn an_indirect_table_in_an_indirect_table_is_einval() {
    mistake("malformed_chains", &refused(libc::EINVAL), |guest, b| {
        write_table(guest, b, vec![b.readable(), b.writable(), b.indirect(48)]);
        vec![b.indirect(48)]
    });
}

#[test]
fn an_indirect_table_that_is_not_the_last_descriptor_is_einval() {
    mistake("malformed_chains", &refused(libc::EINVAL), |guest, b| {
        write_table(guest, b, vec![b.writable()]);
        vec![b.readable(), b.writable(), b.indirect(16), b.writable()]
    });
}

#[test]
fn indirect_tables_of_impossible_lengths_are_einval() {
    for len in [0, 8, 17, 16 * 32769, u32::MAX - 15, u32::MAX] {
        mistake("malformed_chains", &refused(libc::EINVAL), |_, b| vec![b.readable(), b.writable(), b.indirect(len)]);
    }
}

#[test]
fn an_indirect_table_outside_memory_is_efault() {
    mistake("malformed_chains", &refused(libc::EFAULT), |_, b| {
        vec![b.readable(), b.writable(), Descriptor { addr: NOWHERE, ..b.indirect(32) }]
    });
}

#[test]
fn an_indirect_table_that_runs_out_of_memory_is_refused() {
    mistake("malformed_chains", &refused(libc::EINVAL), |guest, b| {
        // The first entry is inside and leads to one that is not.
        let last = b.border - 16;
        let inside = Descriptor { flags: DESC_F_WRITE | DESC_F_NEXT, next: 1, ..b.writable() };
        guest.memory().write(last, inside.as_bytes());
        vec![b.readable(), b.writable(), Descriptor { addr: last, ..b.indirect(32) }]
    });
}

#[test]
fn an_indirect_entry_that_leads_outside_its_table_is_einval() {
    mistake("malformed_chains", &refused(libc::EINVAL), |guest, b| {
        let leads_out = Descriptor { flags: DESC_F_WRITE | DESC_F_NEXT, next: 2, ..b.writable() };
        write_table(guest, b, vec![b.readable(), leads_out]);
        vec![b.indirect(32)]
    });
}

#[test]
fn descriptors_without_bytes_are_passed_over_wherever_they_point() {
    let mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    let empty = Descriptor { addr: NOWHERE, len: 0, flags: 0, next: 0 };
    let empty_room = Descriptor { flags: DESC_F_WRITE, ..empty };
    for queue in QUEUES {
        let chain = vec![empty, buffers.readable(), empty, empty_room, buffers.writable(), empty_room];
        assert_eq!(offer(&mounted.guest, queue, &buffers, chain), served());
    }
}

#[test]
fn a_chain_without_a_byte_comes_back_empty() {
    mistake("malformed_requests", &Answer::Nothing, |_, b| {
        vec![Descriptor { len: 0, ..b.readable() }, Descriptor { len: 0, ..b.writable() }]
    });
}

#[test]
fn a_request_shorter_than_a_header_is_einval() {
    for len in [1, 39] {
        mistake("malformed_requests", &refused_unread(libc::EINVAL), |_, b| vec![Descriptor { len, ..b.readable() }, b.writable()]);
    }
}

#[test]
fn a_header_that_says_another_length_than_its_chain_has_is_einval() {
    for len in [0, 39, 40, REQUEST_LEN - 1, REQUEST_LEN + 1, u32::MAX] {
        mistake("malformed_requests", &refused(libc::EINVAL), |guest, b| {
            b.write_request(guest, len);
            vec![b.readable(), b.writable()]
        });
    }
}

#[test]
fn a_request_cut_into_single_bytes_is_served() {
    let mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    let bytes = |first: u64, len: u32, flags: u16| (0..u64::from(len)).map(move |i| Descriptor { addr: first + i, len: 1, flags, next: 0 });
    for queue in QUEUES {
        let chain = bytes(buffers.request, REQUEST_LEN, 0).chain(bytes(buffers.reply, REPLY_LEN, DESC_F_WRITE)).collect();
        assert_eq!(offer(&mounted.guest, queue, &buffers, chain), served());
    }
}

#[test]
fn a_request_without_room_for_a_reply_is_carried_out_and_comes_back_empty() {
    let mut mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    for queue in QUEUES {
        assert_eq!(offer(&mounted.guest, queue, &buffers, vec![buffers.readable()]), Answer::Nothing);
    }
    assert_eq!(mounted.daemon.metrics().requests("GETATTR"), 2);
    mounted.assert_serves("requests without room");
}

#[test]
fn a_reply_that_does_not_fit_is_an_error_or_nothing() {
    let mut mounted = Mounted::new(&[]);
    let buffers = Buffers::new(&mounted.guest);
    let room = |len| vec![buffers.readable(), Descriptor { len, ..buffers.writable() }];
    for queue in QUEUES {
        for len in [1, HEADER_LEN - 1] {
            assert_eq!(offer(&mounted.guest, queue, &buffers, room(len)), Answer::Nothing, "{len} bytes of room");
        }
        for len in [HEADER_LEN, HEADER_LEN + 1, REPLY_LEN - 1] {
            assert_eq!(offer(&mounted.guest, queue, &buffers, room(len)), refused(libc::EIO), "{len} bytes of room");
        }
        // What lies behind the room is not the device's.
        let room_end = buffers.reply + u64::from(HEADER_LEN);
        assert_eq!(mounted.guest.memory().read_vec(room_end, size_of::<Attr>()), [0xaa; size_of::<Attr>()]);
    }
    mounted.assert_serves("replies that do not fit");
}

#[test]
fn an_avail_index_that_jumps_pops_nothing_until_it_is_possible_again() {
    let mut mounted = Mounted::new(&[]);
    for (round, queue) in QUEUES.into_iter().enumerate() {
        let before = mounted.count("avail_jumps");
        let (good, used) = {
            let mut ring = mounted.guest.lock(queue);
            let (good, used) = (ring.avail_idx(), ring.used_idx());
            ring.set_avail_idx(good.wrapping_add(1025));
            ring.kick();
            (good, used)
        };
        let counted = eventually(|| mounted.count("avail_jumps") > before);
        assert!(counted, "the jump on queue {queue}");
        assert_eq!(mounted.guest.lock(queue).used_idx(), used, "nothing was popped");
        // It is looked at once for a kick, not over and over: the other queue's requests take their time.
        let mut other = mounted.on(QUEUES[1 - round]);
        for _ in 0..200 {
            other.statfs(ROOT).expect("STATFS on the other queue");
        }
        let jumps = mounted.count("avail_jumps") - before;
        assert!(jumps <= 2, "one jump was looked at {jumps} times");
        mounted.guest.lock(queue).set_avail_idx(good);
        mounted.assert_serves("a jump");
    }
}
