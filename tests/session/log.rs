//! The log of written pages that a live migration reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use gatherfs_support::daemon::{Daemon, eventually};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions, HIPRIO};
use gatherfs_support::guest::memory::PAGE_SIZE;
use gatherfs_support::guest::ring::Segment;

use super::{FILE, mapping_of, mounted, open};

const MIB: u64 = 1 << 20;

/// Waits until the device sleeps on both queues of eight entries: it then asks for the next kick.
fn settle(guest: &Guest) {
    let asleep = |queue| {
        let ring = guest.lock(queue);
        let event = guest.memory().read_vec(ring.addresses().2 + 4 + 8 * 8, 2);
        event == ring.avail_idx().to_le_bytes()
    };
    assert!(eventually(|| asleep(HIPRIO) && asleep(FIRST_REQUEST)), "a queue does not come to rest");
}

/// A guest whose pages of interest are known.
struct Migrating {
    _daemon: Daemon,
    guest: Arc<Guest>,
    client: Client,
    file: (u64, u64),
    /// Eight pages for payload.
    payload: u64,
}

impl Migrating {
    /// Logging is on, nothing is logged yet.
    fn new() -> Self {
        // A used ring of eight entries lies in one page, its event index too.
        let options = GuestOptions { queue_size: 8, ..GuestOptions::default() };
        let (daemon, guest, mut client) = mounted(&[], &options);
        let file = open(&mut client, FILE, libc::O_RDWR);
        let payload = guest.memory().alloc(8 * PAGE_SIZE, PAGE_SIZE);
        guest.set_log(true).expect("SET_LOG_BASE and LOG_ALL");
        settle(&guest);
        guest.take_dirty_pages();
        Self { _daemon: daemon, guest, client, file, payload }
    }

    /// Reads the file's three and a half pages into the payload pages.
    fn read(&mut self) {
        let into = [Segment::writable(self.payload, 8 * PAGE_SIZE as u32)];
        assert_eq!(self.client.read_segments(self.file.0, self.file.1, 0, &into), Ok(14_336));
    }

    /// Writes one payload page to the file.
    fn write(&mut self) {
        let from = [Segment::readable(self.payload, PAGE_SIZE as u32)];
        assert_eq!(self.client.write_segments(self.file.0, self.file.1, 0, &from), Ok(PAGE_SIZE as u32));
    }

    /// Logged pages: those of the payload by their number, whether the used ring's page is among them,
    /// and how many others.
    fn dirty(&self) -> (Vec<u64>, bool, usize) {
        settle(&self.guest);
        let mut pages: BTreeSet<u64> = self.guest.take_dirty_pages().into_iter().collect();
        let payload = (0..8).filter(|i| pages.remove(&(self.payload + i * PAGE_SIZE))).collect();
        let used_ring = |queue| self.guest.lock(queue).addresses().2 & !(PAGE_SIZE - 1);
        // Its thread stores the event index anew when logging begins, whenever it comes to that.
        pages.remove(&used_ring(HIPRIO));
        let used_ring = pages.remove(&used_ring(FIRST_REQUEST));
        (payload, used_ring, pages.len())
    }
}

#[test]
fn a_read_logs_its_payload_its_reply_header_and_the_used_ring_and_nothing_else() {
    let mut m = Migrating::new();
    m.read();
    // The one other page is the reply header's; the request's, which was read, is not there.
    assert_eq!(m.dirty(), (vec![0, 1, 2, 3], true, 1), "pages behind the end of the file were not written");
}

#[test]
fn a_write_logs_its_reply_and_the_used_ring_only() {
    let mut m = Migrating::new();
    m.write();
    assert_eq!(m.dirty(), (vec![], true, 1));
}

#[test]
fn a_payload_that_is_no_whole_page_logs_the_pages_it_touches() {
    let mut m = Migrating::new();
    let into = [Segment::writable(m.payload + PAGE_SIZE - 1, 2), Segment::writable(m.payload + 5 * PAGE_SIZE + 7, 1)];
    assert_eq!(m.client.read_segments(m.file.0, m.file.1, 0, &into), Ok(3));
    assert_eq!(m.dirty(), (vec![0, 1, 5], true, 1));
}

#[test]
fn nothing_is_logged_when_nothing_is_asked_or_logging_is_off() {
    let mut m = Migrating::new();
    // The device logs its event index a moment after it has written it.
    assert!(eventually(|| m.dirty() == (vec![], false, 0)), "a device that sleeps goes on logging");
    m.guest.set_log(false).expect("LOG_ALL off");
    m.read();
    assert_eq!(m.dirty(), (vec![], false, 0));
}

#[test]
fn logging_can_begin_again_after_it_ended() {
    let mut m = Migrating::new();
    for _ in 0..3 {
        m.guest.set_log(false).expect("LOG_ALL off");
        m.read();
        m.guest.set_log(true).expect("SET_LOG_BASE and LOG_ALL");
        m.guest.take_dirty_pages();
        m.read();
        assert_eq!(m.dirty(), (vec![0, 1, 2, 3], true, 1));
    }
}

#[test]
fn logging_outlives_a_new_memory_table() {
    let mut m = Migrating::new();
    for _ in 0..3 {
        m.guest.send_memory().expect("SET_MEM_TABLE");
        m.read();
        assert_eq!(m.dirty(), (vec![0, 1, 2, 3], true, 1));
    }
}

#[test]
fn memory_added_while_logging_is_logged_too() {
    let mut m = Migrating::new();
    m.guest.add_region(256 * MIB, MIB).expect("ADD_MEM_REG");
    m.payload = 256 * MIB;
    m.read();
    assert_eq!(m.dirty(), (vec![0, 1, 2, 3], true, 1));
}

#[test]
fn logging_outlives_a_stopped_queue() {
    let mut m = Migrating::new();
    let base = m.guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
    m.guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    m.read();
    assert_eq!(m.dirty(), (vec![0, 1, 2, 3], true, 1));
}

#[test]
fn the_event_index_of_the_used_ring_is_logged_with_it() {
    // Of 1024 entries: elements from byte 4, the event index at 8196, two pages behind them.
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let (node, fh) = open(&mut client, FILE, libc::O_RDWR);
    guest.set_log(true).expect("SET_LOG_BASE and LOG_ALL");
    guest.take_dirty_pages();
    let (_, _, used) = guest.lock(FIRST_REQUEST).addresses();
    let event_page = used + 2 * PAGE_SIZE;
    assert_eq!(client.read(node, fh, 0, 4096).map(|bytes| bytes.len()), Ok(4096));
    // The device moves its event index when it goes to sleep, after the answer.
    let mut pages = Vec::new();
    let logged = eventually(|| {
        pages.extend(guest.take_dirty_pages());
        pages.contains(&event_page)
    });
    assert!(logged, "{pages:x?} lack {event_page:x}");
}

#[test]
fn pages_of_two_regions_whose_mappings_touch_are_both_logged() {
    // The host puts most of these next to each other, in the order of its choice.
    let regions = (0..8).map(|i| ((256 + 16 * i) * MIB, MIB));
    let options = GuestOptions { layout: [(0, 16 * MIB)].into_iter().chain(regions).collect(), ..GuestOptions::default() };
    let (daemon, guest, mut client) = mounted(&[], &options);
    let (node, fh) = open(&mut client, FILE, libc::O_RDONLY);
    let regions = guest.memory().regions();
    let mappings: Vec<_> = regions[1..].iter().map(|region| (mapping_of(&daemon, region).expect("it is mapped"), region)).collect();
    let pairs = mappings.iter().flat_map(|first| mappings.iter().map(move |second| (first, second)));
    let touching = pairs.filter(|((first, _), (second, _))| first.end == second.start);
    let borders: Vec<_> = touching.map(|((_, first), (_, second))| (first.end() - PAGE_SIZE, second.gpa())).collect();
    assert!(!borders.is_empty(), "no two mappings touch: {mappings:x?}");
    guest.set_log(true).expect("SET_LOG_BASE and LOG_ALL");
    for (last_page, first_page) in borders {
        guest.take_dirty_pages();
        let into = [Segment::writable(last_page, PAGE_SIZE as u32), Segment::writable(first_page, PAGE_SIZE as u32)];
        assert_eq!(client.read_segments(node, fh, 0, &into), Ok(2 * PAGE_SIZE as u32));
        let logged: Vec<u64> = guest.take_dirty_pages().into_iter().filter(|page| *page >= 256 * MIB).collect();
        let wanted = BTreeSet::from([last_page, first_page]);
        assert_eq!(BTreeSet::from_iter(logged), wanted, "pages {wanted:x?} were written");
    }
}
