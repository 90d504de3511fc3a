//! A worker that is abandoned in the middle of its requests, and another that goes on with its records: both are in the test's own
//! process, and share the exported directory. The first one's engine never finishes anything.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gatherfs::device::{ConfigSpace, Finishing, InFlight, Resumed, Server, ServerOptions, Service};
use gatherfs::host::{Descriptors, Options, Share};
use gatherfs::io::{Engine, Finished, Submission, SyncEngine, Transfer, TransferOwner};
use gatherfs::metrics::Metrics;
use gatherfs::state::{Phase, RequestName, RequestRecords, UsedElement};
use gatherfs::sys::working_dir::DescriptorDir;
use gatherfs::types::QueueIndex;
use gatherfs_support::daemon::{Scratch, eventually};
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{FileLock, InHeader, LkIn, OutHeader, ROOT, ReadIn, opcode};
use gatherfs_support::guest::ring::Segment;
use gatherfs_support::in_process::share_options;
use parking_lot::Mutex;
use zerocopy::IntoBytes;

const PAGE: u32 = 4096;
/// READs that each queue has in flight when its worker is abandoned.
const IN_FLIGHT: u64 = 12;

/// Keeps what it is given.
#[derive(Debug, Default)]
struct NeverEngine {
    taken: Mutex<Vec<Transfer<InFlight>>>,
}

impl Engine<InFlight> for NeverEngine {
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        transfer.owner.note_submitted();
        self.taken.lock().push(transfer);
        Submission::Submitted
    }

    fn flush(&self) {}

    fn has_collected(&self) -> bool {
        false
    }

    fn has_finished(&self) -> bool {
        false
    }

    fn in_flight(&self) -> usize {
        self.taken.lock().len()
    }

    fn reap(&self, _finished: &mut Vec<Finished<InFlight>>) {}

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn end(&self) {}
}

/// A server that several workers serve one after the other, and their guest.
struct Lives {
    server: Arc<Server>,
    records: Arc<RequestRecords>,
    guest: Arc<Guest>,
    clients: Vec<Client>,
    /// The file of one page for each number below 256, with its handle.
    file: (u64, u64),
    lives: AtomicUsize,
    scratch: Scratch,
}

fn never(service: Service) -> Service {
    service.with_engine(|| Box::<NeverEngine>::default())
}

impl Lives {
    /// Starts the first worker, whose transfers never finish.
    fn start(options: &GuestOptions) -> Lives {
        let scratch = Scratch::on_tmpfs();
        let shared_dir = scratch.path().join("shared");
        std::fs::create_dir_all(&shared_dir).unwrap();
        let content: Vec<u8> = (0..=255).flat_map(|page| [page; PAGE as usize]).collect();
        std::fs::write(shared_dir.join("file"), content).unwrap();
        let root = std::fs::File::open(&shared_dir).unwrap().into();
        let share_options = Options { shared_dir, host_locks: true, ..share_options() };
        let share = Share::export(share_options, Descriptors::of(4096, None), root, DescriptorDir::open().unwrap()).unwrap();
        let config_space = Some(ConfigSpace::new("tag", options.request_queues as u16).unwrap());
        let records = RequestRecords::new().unwrap();
        let (device, queue_cpus) = Default::default();
        let (rings, resumed) = (None, None);
        let server_options =
            ServerOptions { device, config_space, keep_listening: false, rings, queue_cpus, records: Arc::clone(&records), resumed };
        let server = Arc::new(Server::new(share, server_options).unwrap());
        let socket = scratch.path().join("0");
        serve(&server, &socket, never);
        let guest = Guest::connect(&socket, options).unwrap();
        let mut first = Client::new(&guest, FIRST_REQUEST);
        first.init().unwrap();
        let node = first.lookup(ROOT, "file").unwrap().nodeid;
        let fh = first.open(node, libc::O_RDWR).unwrap().fh;
        let clients = std::iter::once(FIRST_REQUEST).chain(FIRST_REQUEST + 1..FIRST_REQUEST + options.request_queues);
        let clients = clients.map(|queue| first.on_queue(queue)).collect();
        Lives { server, records, guest, clients, file: (node, fh), lives: AtomicUsize::new(1), scratch }
    }

    fn metrics(&self) -> &Metrics {
        self.server.metrics()
    }

    /// Abandons the present worker, which must not have anything to do but what it has begun, and starts another.
    fn go_on(&self, change: fn(Service) -> Service) {
        self.go_on_by(change, Finishing::AtOnce, None);
    }

    /// As `go_on`; `finishing` is what becomes of what the present one leaves, of which `quarantined` has ended two workers.
    fn go_on_by(&self, change: impl Fn(Service) -> Service + Send + 'static, finishing: Finishing, quarantined: Option<RequestName>) {
        let queues = FIRST_REQUEST + self.guest.request_queues();
        (0..queues).for_each(|queue| self.guest.enable_queue(queue, false).unwrap());
        let socket = self.scratch.path().join(self.lives.fetch_add(1, Ordering::Relaxed).to_string());
        let resumed = Resumed { rings: (0..queues as u16).collect(), finishing, quarantined };
        serve(&self.server, &socket, move |service| change(service).resuming(resumed.clone()));
        let before = self.guest.move_to(&socket, 0).unwrap();
        // Were it closed, the worker before would drain its queues.
        std::mem::forget(before);
    }

    /// A READ of one page, which the first worker does not finish.
    fn begin_read(&mut self, queue: usize, page: u64) -> Pending {
        let (node, fh) = self.file;
        let read = ReadIn { fh, offset: page * u64::from(PAGE), size: PAGE, ..ReadIn::default() };
        self.clients[queue].begin(&Call { room: PAGE, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })
    }

    fn lock_of(&self, owner: u64, kind: i32) -> LkIn {
        let lk = FileLock { start: 0, end: i64::MAX as u64, kind: kind as u32, pid: 1 };
        LkIn { fh: self.file.1, owner, lk, lk_flags: 0, padding: 0 }
    }
}

/// Nothing that was written into the guest's memory lasts longer than the process: no worker of the test ends before that.
fn serve(server: &Arc<Server>, socket: &std::path::Path, change: impl Fn(Service) -> Service + Send + 'static) {
    let (server, listener) = (Arc::clone(server), UnixListener::bind(socket).unwrap());
    std::thread::spawn(move || server.serve_with(&listener, change));
}

/// Each queue is abandoned with READs in flight, others answered in between, and goes on: each head comes back once (the guest's ring
/// panics at one that it does not hold), with the right data.
fn no_head_twice_no_head_never(queues: usize, event_idx: bool, indirect: bool, base: u16) {
    let options = GuestOptions { request_queues: queues, event_idx, indirect, ..GuestOptions::default() };
    let mut lives = Lives::start(&options);
    let (node, fh) = lives.file;
    let guest = Arc::clone(&lives.guest);
    for queue in FIRST_REQUEST..FIRST_REQUEST + queues {
        guest.stop_queue(queue).unwrap();
        guest.lock(queue).begin_at(base);
        guest.restart_queue(queue, base).unwrap();
    }
    let [held, wanted] = [1, 2].map(|owner| lives.lock_of(owner, libc::F_WRLCK));
    lives.clients[0].setlk(node, &held, false).unwrap();
    let wait = lives.clients[0].begin(&Call::new(opcode::SETLKW, node, &[wanted.as_bytes()]));
    assert!(eventually(|| lives.metrics().parked.get() == 1));

    let mut pending = Vec::new();
    for page in 0..IN_FLIGHT {
        for queue in 0..queues {
            pending.push((queue, page, lives.begin_read(queue, page)));
            assert_eq!(lives.clients[queue].getattr(node, Some(fh)).unwrap().attr.size, 256 * u64::from(PAGE));
        }
    }
    assert!(eventually(|| lives.metrics().submitted.get() == IN_FLIGHT * queues as u64));
    // One more worker that finishes nothing, and then one that does.
    lives.go_on(never);
    assert!(eventually(|| lives.metrics().submitted.get() == 2 * IN_FLIGHT * queues as u64));
    for (queue, client) in lives.clients.iter_mut().enumerate() {
        assert!(client.getattr(node, Some(fh)).is_ok(), "queue {queue} serves others meanwhile");
    }
    // The driver owns that word no more than the records do.
    for queue in FIRST_REQUEST..FIRST_REQUEST + queues {
        let mut ring = guest.lock(queue);
        let nonsense = ring.used_idx().wrapping_add(1000);
        ring.set_used_idx(nonsense);
    }
    let answered: Vec<u16> = (FIRST_REQUEST..FIRST_REQUEST + queues).map(|queue| guest.lock(queue).used_idx().wrapping_sub(1000)).collect();
    lives.go_on(|service| service);
    for (queue, answered) in (FIRST_REQUEST..).zip(answered) {
        assert!(eventually(|| guest.lock(queue).used_idx() == answered.wrapping_add(IN_FLIGHT as u16)), "{}", guest.lock(queue).describe());
    }
    for (queue, page, pending) in pending {
        let reply = lives.clients[queue].finish(pending).unwrap();
        assert!(reply.header.error == 0 && reply.payload == [page as u8; PAGE as usize], "queue {queue}, page {page}");
    }
    assert_eq!(lives.metrics().recovered.get(), 2 * (IN_FLIGHT * queues as u64 + 1), "and the wait for the lock");
    assert!(!lives.clients[0].is_answered(&wait), "somebody else has the lock");
    let unlock = lives.lock_of(1, libc::F_UNLCK);
    lives.clients[0].setlk(node, &unlock, false).unwrap();
    assert_eq!(lives.clients[0].finish(wait).unwrap().header.error, 0);

    for queue in FIRST_REQUEST..FIRST_REQUEST + queues {
        let client = queue - FIRST_REQUEST;
        assert_eq!(lives.clients[client].read(node, fh, 0, PAGE).unwrap(), [0; PAGE as usize]);
        let next = guest.stop_queue(queue).unwrap();
        let ring = guest.lock(queue);
        assert_eq!((next, ring.used_idx()), (ring.avail_idx(), ring.avail_idx()), "all that was offered is answered");
        drop(ring);
        guest.restart_queue(queue, next).unwrap();
        assert_eq!(lives.clients[client].read(node, fh, u64::from(PAGE), PAGE).unwrap(), [1; PAGE as usize]);
    }
    guest.reboot(false).unwrap();
    lives.clients[0].init().unwrap();
    assert_eq!(lives.clients[0].lookup(ROOT, "file").unwrap().attr.size, 256 * u64::from(PAGE));
    assert_eq!(lives.metrics().heads_twice.get(), 0);
}

#[test]
fn no_head_twice_no_head_never_in_one_queue() {
    no_head_twice_no_head_never(1, true, true, 0);
    no_head_twice_no_head_never(1, false, false, 0);
}

#[test]
fn no_head_twice_no_head_never_in_four_queues_whose_indexes_wrap_around() {
    no_head_twice_no_head_never(4, true, false, u16::MAX - 20);
    no_head_twice_no_head_never(4, false, true, u16::MAX - 8);
}

#[test]
fn a_head_that_is_offered_twice_is_served_once_and_counted() {
    let mut lives = Lives::start(&GuestOptions::default());
    let (node, fh) = lives.file;
    let pending = lives.begin_read(0, 5);
    assert!(eventually(|| lives.metrics().submitted.get() == 1));
    let head = (0..1024).find(|head| lives.guest.lock(FIRST_REQUEST).holds(*head)).unwrap();
    let mut ring = lives.guest.lock(FIRST_REQUEST);
    ring.push_head(head);
    ring.publish();
    drop(ring);
    assert!(eventually(|| lives.metrics().heads_twice.get() == 1));
    lives.go_on(|service| service);
    assert_eq!(lives.clients[0].finish(pending).unwrap().payload, [5; PAGE as usize]);
    assert_eq!(lives.clients[0].read(node, fh, 0, PAGE).unwrap(), [0; PAGE as usize]);
    let ring = lives.guest.lock(FIRST_REQUEST);
    assert_eq!(ring.used_idx(), ring.avail_idx().wrapping_sub(1), "the chain that was dropped has no answer");
}

/// A READ of page 7 whose buffers the test knows: the guest-physical address of its request; its reply is a page behind it, and its
/// data another one.
fn offer_read(lives: &Lives, fh: u64) -> u64 {
    let (memory, read) = (lives.guest.memory(), ReadIn { fh, offset: 7 * u64::from(PAGE), size: PAGE, ..ReadIn::default() });
    let at = memory.alloc(3 * u64::from(PAGE), u64::from(PAGE));
    let len = (size_of::<InHeader>() + size_of::<ReadIn>()) as u32;
    let header = InHeader { len, opcode: opcode::READ, unique: 1 << 40, nodeid: lives.file.0, ..InHeader::default() };
    memory.write(at, &[header.as_bytes(), read.as_bytes()].concat());
    let page = u64::from(PAGE);
    let reply = Segment::writable(at + page, size_of::<OutHeader>() as u32);
    lives.guest.lock(FIRST_REQUEST).submit(&[Segment::readable(at, len), reply, Segment::writable(at + 2 * page, PAGE)]);
    at
}

/// The header of the reply to what [`offer_read`] has offered, once that is back, with the length of its used element.
fn reply_at(lives: &Lives, at: u64) -> (OutHeader, u32) {
    let mut used = None;
    assert!(eventually(|| {
        used = lives.guest.lock(FIRST_REQUEST).poll_used();
        used.is_some()
    }));
    let mut header = OutHeader::default();
    lives.guest.memory().read(at + u64::from(PAGE), header.as_mut_bytes());
    (header, used.unwrap().1)
}

#[test]
fn what_the_worker_before_withdrew_or_published_is_not_executed() {
    for is_withdrawn in [true, false] {
        let lives = Lives::start(&GuestOptions::default());
        let at = offer_read(&lives, lives.file.1);
        assert!(eventually(|| lives.metrics().submitted.get() == 1));
        let (head, place) = {
            let ring = lives.guest.lock(FIRST_REQUEST);
            ((0..1024).find(|head| ring.holds(*head)).unwrap(), ring.used_idx())
        };
        let queue = lives.records.queue(QueueIndex(FIRST_REQUEST as u16)).unwrap();
        if is_withdrawn {
            queue.set_phase(head, Phase::Withdrawn);
        } else {
            // It dies with the element on its way to the ring.
            let element = UsedElement { at: place, head, len: 1234 };
            let died = std::panic::catch_unwind(AssertUnwindSafe(|| queue.publish(element, || std::panic::resume_unwind(Box::new(())))));
            assert!(died.is_err());
        }
        lives.go_on(|service| service);
        let (header, used_len) = reply_at(&lives, at);
        let expected = if is_withdrawn { (-libc::EIO, size_of::<OutHeader>() as u32) } else { (0, 1234) };
        assert_eq!((header.error, used_len), expected);
        assert_eq!(lives.metrics().recovered.get(), u64::from(is_withdrawn));
    }
}

#[test]
fn what_is_given_up_is_answered_with_an_error_and_what_comes_next_is_served() {
    let mut lives = Lives::start(&GuestOptions::default());
    let read = lives.begin_read(0, 1);
    assert!(eventually(|| lives.metrics().submitted.get() == 1));
    lives.go_on_by(|service| service, Finishing::GivenUp, None);
    assert_eq!(lives.clients[0].finish(read).unwrap().header.error, -libc::EIO);
    let read = lives.begin_read(0, 2);
    assert_eq!(lives.clients[0].finish(read).unwrap().header.error, 0);
}

#[test]
fn a_request_that_the_driver_has_changed_in_flight_is_not_executed() {
    for (changes, errno) in [(false, 0), (true, -libc::EIO)] {
        let lives = Lives::start(&GuestOptions::default());
        let at = offer_read(&lives, lives.file.1);
        assert!(eventually(|| lives.metrics().submitted.get() == 1));
        if changes {
            let opcode_at = std::mem::offset_of!(InHeader, opcode) as u64;
            lives.guest.memory().write(at + opcode_at, &opcode::GETATTR.to_ne_bytes());
        }
        lives.go_on(|service| service);
        assert_eq!(reply_at(&lives, at).0.error, errno);
    }
}

#[test]
fn what_may_have_been_written_before_is_in_the_dirty_log() {
    let lives = Lives::start(&GuestOptions::default());
    lives.guest.set_log(true).unwrap();
    let at = offer_read(&lives, lives.file.1);
    assert!(eventually(|| lives.metrics().submitted.get() == 1));
    lives.guest.take_dirty_pages();
    lives.go_on(never);
    assert!(eventually(|| lives.metrics().submitted.get() == 2));
    let dirty = lives.guest.take_dirty_pages();
    let used = lives.guest.lock(FIRST_REQUEST).addresses().2 / u64::from(PAGE) * u64::from(PAGE);
    for page in [at + u64::from(PAGE), at + 2 * u64::from(PAGE), used] {
        assert!(dirty.contains(&page), "{page:#x} is not marked: {dirty:x?}");
    }
    assert!(!dirty.contains(&at), "what the device only reads is not marked");
}

#[test]
fn a_queue_that_stops_finishes_what_the_worker_before_has_left() {
    for finishing in [Finishing::AtOnce, Finishing::OneByOne] {
        let mut lives = Lives::start(&GuestOptions::default());
        let pending: Vec<_> = (0..IN_FLIGHT).map(|page| lives.begin_read(0, page)).collect();
        assert!(eventually(|| lives.metrics().submitted.get() == IN_FLIGHT));
        lives.go_on_by(|service| service, finishing, None);
        let base = lives.guest.stop_queue(FIRST_REQUEST).unwrap();
        assert_eq!(base, lives.guest.lock(FIRST_REQUEST).avail_idx());
        for (page, pending) in (0..).zip(pending) {
            assert!(lives.clients[0].is_answered(&pending), "the stop does not wait for page {page}");
            assert_eq!(lives.clients[0].finish(pending).unwrap().payload, [page; PAGE as usize]);
        }
    }
}

/// Which request is named when a transfer is made, for each.
type Witness = Arc<Mutex<Vec<Option<RequestName>>>>;

/// Makes transfers at once, before a [`Witness`].
#[derive(Debug)]
struct WitnessedEngine {
    engine: SyncEngine,
    records: Arc<RequestRecords>,
    witness: Witness,
}

impl Engine<InFlight> for WitnessedEngine {
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        // Two at a time would find one name.
        self.witness.lock().push(self.records.take_alone());
        self.engine.submit(transfer)
    }

    fn flush(&self) {}

    fn has_collected(&self) -> bool {
        false
    }

    fn has_finished(&self) -> bool {
        false
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn reap(&self, _finished: &mut Vec<Finished<InFlight>>) {}

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn end(&self) {}
}

impl Lives {
    /// What the records have unfinished, in the order in which it is executed alone.
    fn left(&self) -> Vec<RequestName> {
        let queues = FIRST_REQUEST + self.guest.request_queues();
        let queues = (0..queues as u16).map(QueueIndex).map(|queue| (queue, self.records.queue(queue).unwrap()));
        queues
            .flat_map(|(queue, records)| {
                records.recover().unfinished.into_iter().map(move |(_, left)| RequestName { queue, sequence: left.sequence })
            })
            .collect()
    }

    /// As `go_on_by`, with a witness of the transfers that are made.
    fn go_on_witnessed(&self, finishing: Finishing, quarantined: Option<RequestName>) -> Witness {
        let witness = Witness::default();
        let (records, metrics, of_engine) = (Arc::clone(&self.records), Arc::clone(self.server.metrics()), Arc::clone(&witness));
        let with_witness = move |service: Service| {
            let (records, metrics, witness) = (Arc::clone(&records), Arc::clone(&metrics), Arc::clone(&of_engine));
            service.with_engine(move || {
                let (records, witness) = (Arc::clone(&records), Arc::clone(&witness));
                Box::new(WitnessedEngine { engine: SyncEngine::new(Arc::clone(&metrics)), records, witness })
            })
        };
        self.go_on_by(with_witness, finishing, quarantined);
        witness
    }
}

#[test]
fn after_a_fault_one_request_is_executed_at_a_time_over_all_queues_and_new_ones_behind_them() {
    const QUEUES: usize = 3;
    let mut lives = Lives::start(&GuestOptions { request_queues: QUEUES, ..GuestOptions::default() });
    let mut pending = Vec::new();
    for page in 0..IN_FLIGHT {
        pending.extend((0..QUEUES).map(|queue| (queue, page, lives.begin_read(queue, page))));
    }
    assert!(eventually(|| lives.metrics().submitted.get() == IN_FLIGHT * QUEUES as u64));
    // These are not popped by the worker that is abandoned.
    (FIRST_REQUEST..FIRST_REQUEST + QUEUES).for_each(|queue| lives.guest.enable_queue(queue, false).unwrap());
    for page in IN_FLIGHT..2 * IN_FLIGHT {
        pending.extend((0..QUEUES).map(|queue| (queue, page, lives.begin_read(queue, page))));
    }
    let left = lives.left();
    assert_eq!(left.len(), IN_FLIGHT as usize * QUEUES);
    let witness = lives.go_on_witnessed(Finishing::OneByOne, None);
    for (queue, page, pending) in pending {
        let reply = lives.clients[queue].finish(pending).unwrap();
        assert!(reply.header.error == 0 && reply.payload == [page as u8; PAGE as usize], "queue {queue}, page {page}");
    }
    let named = witness.lock();
    let (alone, others) = named.split_at(left.len());
    assert_eq!(alone, left.iter().copied().map(Some).collect::<Vec<_>>());
    assert_eq!(others, [None; IN_FLIGHT as usize * QUEUES]);
}

#[test]
fn a_request_that_has_ended_two_workers_is_answered_with_an_error_and_no_other_one_is() {
    for finishing in [Finishing::OneByOne, Finishing::AtOnce] {
        let mut lives = Lives::start(&GuestOptions { request_queues: 2, ..GuestOptions::default() });
        let pending: Vec<_> = (0..IN_FLIGHT).map(|page| (page, lives.begin_read(page as usize % 2, page))).collect();
        assert!(eventually(|| lives.metrics().submitted.get() == IN_FLIGHT));
        let left = lives.left();
        let name = left[2];
        assert_eq!(name.queue.0, FIRST_REQUEST as u16);
        let witness = lives.go_on_witnessed(finishing, Some(name));
        for (page, pending) in pending {
            let reply = lives.clients[page as usize % 2].finish(pending).unwrap();
            // The third of the first queue.
            let expected = if page == 4 { (-libc::EIO, vec![]) } else { (0, vec![page as u8; PAGE as usize]) };
            assert_eq!((reply.header.error, reply.payload), expected, "page {page}, {finishing:?}");
        }
        assert_eq!(lives.metrics().quarantined.get(), 1);
        let mut others = left;
        others.retain(|other| *other != name && finishing == Finishing::OneByOne);
        assert_eq!(witness.lock().iter().flatten().copied().collect::<Vec<_>>(), others, "{finishing:?}");
    }
}

#[test]
fn requests_that_the_host_does_not_finish_hold_the_others_up_for_a_bounded_time() {
    let mut lives = Lives::start(&GuestOptions::default());
    let (node, fh) = lives.file;
    let [held, wanted] = [1, 2].map(|owner| lives.lock_of(owner, libc::F_WRLCK));
    lives.clients[0].setlk(node, &held, false).unwrap();
    let wait = lives.clients[0].begin(&Call::new(opcode::SETLKW, node, &[wanted.as_bytes()]));
    assert!(eventually(|| lives.metrics().parked.get() == 1));
    let _reads = [0, 1].map(|page| lives.begin_read(0, page));
    assert!(eventually(|| lives.metrics().submitted.get() == 2));
    lives.go_on_by(never, Finishing::OneByOne, None);
    assert!(lives.clients[0].getattr(node, Some(fh)).is_ok(), "a new one is served in the end");
    assert_eq!((lives.metrics().submitted.get(), lives.metrics().parked.get()), (4, 2), "behind all that was left");
    assert!(lives.records.take_alone().is_none(), "nobody is named any more");
    let unlock = lives.lock_of(1, libc::F_UNLCK);
    lives.clients[0].setlk(node, &unlock, false).unwrap();
    assert_eq!(lives.clients[0].finish(wait).unwrap().header.error, 0);
}

#[test]
fn the_calls_of_a_ring_that_goes_on_are_signalled_once() {
    for event_idx in [false, true] {
        let lives = Lives::start(&GuestOptions { event_idx, ..GuestOptions::default() });
        let _ = lives.guest.lock(FIRST_REQUEST).call_fd().read();
        lives.go_on(|service| service);
        assert!(eventually(|| lives.guest.lock(FIRST_REQUEST).call_fd().read().is_ok_and(|count| count == 1)), "EVENT_IDX: {event_idx}");
    }
}
