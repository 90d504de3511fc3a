//! The device with an I/O engine that takes every transfer over and finishes it on a thread of its own: answers come from
//! whoever reaps them, a full engine delays requests and loses none, and a stop does not wait for an engine that does not finish.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use gatherfs::device::{InFlight, Options, Service};
use gatherfs::io::{Engine, Finished, Submission, Thread, Transfer, TransferOwner, run};
use gatherfs::metrics::Metrics;
use gatherfs_support::daemon::eventually;
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::{ROOT, ReadIn, opcode};
use gatherfs_support::in_process::{self, Device};
use parking_lot::{Condvar, Mutex};
use zerocopy::IntoBytes;

/// Transfers that the engine takes at a time, where a test does not say.
const DEPTH: usize = 2;
const PAGE: usize = 4096;

/// What the test and the engine's thread know of each other.
#[derive(Debug, Default)]
struct Gate {
    is_shut: Mutex<bool>,
    opened: Condvar,
    /// Engines that were made, less those that were dropped.
    alive: AtomicUsize,
}

impl Gate {
    fn set_shut(&self, shut: bool) {
        *self.is_shut.lock() = shut;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut is_shut = self.is_shut.lock();
        while *is_shut {
            self.opened.wait(&mut is_shut);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    has_ended: bool,
    finished: Vec<Finished<InFlight>>,
}

/// An engine with one thread. The last transfer of a burst is finished first.
#[derive(Debug)]
struct LaterEngine {
    depth: usize,
    gate: Arc<Gate>,
    transfers: Mutex<Option<Sender<Transfer<InFlight>>>>,
    state: Arc<Mutex<State>>,
    event: Arc<OwnedFd>,
    metrics: Arc<Metrics>,
    thread: Option<JoinHandle<()>>,
}

impl LaterEngine {
    fn new(depth: usize, gate: Arc<Gate>, metrics: Arc<Metrics>) -> LaterEngine {
        gate.alive.fetch_add(1, Ordering::SeqCst);
        let (transfers, incoming) = channel();
        let state: Arc<Mutex<State>> = Arc::default();
        let event = Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap());
        let thread = {
            let (gate, state, event, metrics) = (Arc::clone(&gate), Arc::clone(&state), Arc::clone(&event), Arc::clone(&metrics));
            std::thread::spawn(move || finish_all(&incoming, &gate, &state, &event, &metrics))
        };
        LaterEngine { depth, gate, transfers: Mutex::new(Some(transfers)), state, event, metrics, thread: Some(thread) }
    }
}

fn finish_all(incoming: &Receiver<Transfer<InFlight>>, gate: &Gate, state: &Mutex<State>, event: &OwnedFd, metrics: &Metrics) {
    while let Ok(first) = incoming.recv() {
        std::thread::sleep(Duration::from_micros(200));
        gate.pass();
        let mut burst: Vec<_> = std::iter::once(first).chain(incoming.try_iter()).collect();
        while let Some(transfer) = burst.pop() {
            let owner = &transfer.owner;
            let result = run(owner.file(), owner.pages(), transfer.offset, transfer.action, metrics);
            let mut state = state.lock();
            if state.has_ended {
                drop(state);
                drop(transfer);
                continue;
            }
            state.finished.push(Finished { transfer, result });
            rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
        }
    }
}

impl Engine<InFlight> for LaterEngine {
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        if transfer.thread == Thread::Submitting {
            let owner = &transfer.owner;
            let result = run(owner.file(), owner.pages(), transfer.offset, transfer.action, &self.metrics);
            return Submission::Finished(Finished { transfer, result });
        }
        let mut state = self.state.lock();
        if state.taken == self.depth {
            return Submission::Full(transfer);
        }
        state.taken += 1;
        transfer.owner.note_submitted();
        self.transfers.lock().as_ref().unwrap().send(transfer).unwrap();
        Submission::Submitted
    }

    fn flush(&self) {}

    fn has_collected(&self) -> bool {
        false
    }

    fn has_finished(&self) -> bool {
        !self.state.lock().finished.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.state.lock().taken
    }

    fn reap(&self, finished: &mut Vec<Finished<InFlight>>) {
        let mut state = self.state.lock();
        state.taken -= state.finished.len();
        finished.append(&mut state.finished);
    }

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn end(&self) {
        let finished = {
            let mut state = self.state.lock();
            state.has_ended = true;
            std::mem::take(&mut state.finished)
        };
        drop(finished);
    }
}

impl Drop for LaterEngine {
    fn drop(&mut self) {
        *self.transfers.lock() = None;
        self.gate.alive.fetch_sub(1, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // The thread itself may let go of the last request, and with it of the queue and this.
            if thread.thread().id() != std::thread::current().id() {
                thread.join().unwrap();
            }
        }
    }
}

fn start(options: Options) -> (Device, Arc<Gate>) {
    start_with_depth(DEPTH, options)
}

fn start_with_depth(depth: usize, options: Options) -> (Device, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let for_engines = Arc::clone(&gate);
    let device = Device::start(in_process::share_options(), move |service: Service| {
        let metrics = Arc::clone(&service.metrics);
        let gate = Arc::clone(&for_engines);
        service.with(options).with_engine(move || Box::new(LaterEngine::new(depth, Arc::clone(&gate), Arc::clone(&metrics))))
    });
    (device, gate)
}

/// Byte `at` of the test's file.
fn byte(at: usize) -> u8 {
    (at / PAGE * 7 + at % 251) as u8
}

#[test]
fn what_an_engine_finishes_later_is_answered_and_what_it_has_no_room_for_waits() {
    const REQUESTS: usize = 40;
    let (mut device, _gate) = start(Options::default());
    let content: Vec<u8> = (0..REQUESTS * PAGE).map(byte).collect();
    let path = device.path("file");
    let metrics = Arc::clone(&device.metrics);
    let c = device.client();
    let file = c.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
    let (node, fh) = (file.entry.nodeid, file.open.fh);
    for (i, page) in content.chunks(PAGE).enumerate() {
        assert_eq!(c.write(node, fh, (i * PAGE) as u64, page).unwrap(), PAGE as u32);
    }
    assert!(std::fs::read(path).unwrap() == content);
    for round in 0..5 {
        let reads: Vec<ReadIn> =
            (0..REQUESTS).map(|i| ReadIn { fh, offset: (i * PAGE) as u64, size: PAGE as u32, ..ReadIn::default() }).collect();
        let pending: Vec<_> =
            reads.iter().map(|read| c.begin(&Call { room: PAGE as u32, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })).collect();
        for (i, pending) in pending.into_iter().enumerate() {
            let reply = c.finish(pending).unwrap();
            assert!(reply.header.error == 0 && reply.payload == content[i * PAGE..(i + 1) * PAGE], "round {round}, request {i}");
        }
    }
    assert!(c.read(node, fh, content.len() as u64, 100).unwrap().is_empty(), "the end of the file");
    assert_eq!(c.read(node, fh + 1, 0, 100).unwrap_err().errno(), Some(libc::EBADF));
    c.release(node, fh).unwrap();
    assert!(metrics.submitted.get() >= (6 * REQUESTS) as u64, "{}", metrics.submitted.get());
    assert!(metrics.throttled.get() > 0, "the engine was never full");
    assert_eq!(c.read(node, fh, 0, 100).unwrap_err().errno(), Some(libc::EBADF), "a released file is closed behind its last transfer");
}

/// Has the guest send `count` READs of the first page.
fn begin_reads(c: &mut Client, (node, fh): (u64, u64), count: usize) -> Vec<Pending> {
    let read = ReadIn { fh, size: PAGE as u32, ..ReadIn::default() };
    let mut begin = |_| c.begin(&Call { room: PAGE as u32, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
    (0..count).map(&mut begin).collect()
}

/// A file of one page, open.
fn open_file(device: &mut Device) -> (u64, u64) {
    std::fs::write(device.path("file"), [7; PAGE]).unwrap();
    let c = device.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    (node, c.open(node, libc::O_RDONLY).unwrap().fh)
}

#[test]
fn all_of_many_transfers_that_finish_together_are_answered() {
    const MANY: usize = 200;
    let (mut device, gate) = start_with_depth(MANY, Options::default());
    let file = open_file(&mut device);
    let metrics = Arc::clone(&device.metrics);
    gate.set_shut(true);
    let pending = begin_reads(device.client(), file, MANY);
    assert!(eventually(|| metrics.submitted.get() == MANY as u64));
    gate.set_shut(false);
    for pending in pending {
        assert_eq!(device.client().finish(pending).unwrap().payload, [7; PAGE]);
    }
    assert_eq!(metrics.withdrawn_finished.get(), 0);
}

#[test]
fn a_stop_does_not_wait_for_an_engine_that_does_not_finish() {
    let (mut device, gate) = start(Options { stop_timeout: Duration::from_millis(300), ..Options::default() });
    let (node, fh) = open_file(&mut device);
    let metrics = Arc::clone(&device.metrics);
    let c = device.client();
    gate.set_shut(true);
    let pending = begin_reads(c, (node, fh), 2 * DEPTH);
    assert!(eventually(|| metrics.throttled.get() > 0));
    let guest = Arc::clone(c.guest());
    let base = guest.stop_queue(FIRST_REQUEST).unwrap();
    let withdrawn = metrics.withdrawn.get();
    assert!((DEPTH as u64 + 1..=2 * DEPTH as u64).contains(&withdrawn), "{withdrawn} requests were withdrawn");
    assert_eq!(metrics.stuck.get(), 0, "no thread is in the host");
    gate.set_shut(false);
    // Those that were not popped are served once the queue runs again, by the threads that it had.
    guest.restart_queue(FIRST_REQUEST, base).unwrap();
    let errors: Vec<i32> = pending.into_iter().map(|pending| c.finish(pending).unwrap().header.error).collect();
    assert_eq!(errors.iter().filter(|error| **error == -libc::EIO).count() as u64, withdrawn, "{errors:?}");
    assert!(eventually(|| metrics.withdrawn_finished.get() == DEPTH as u64), "{}", metrics.withdrawn_finished.get());
    assert_eq!(c.read(node, fh, 0, PAGE as u32).unwrap(), [7; PAGE]);
}

#[test]
fn a_queue_serves_the_next_guest_and_ends_while_its_engine_hangs() {
    let (mut device, gate) = start(Options { stop_timeout: Duration::from_millis(300), ..Options::default() });
    let file = open_file(&mut device);
    let metrics = Arc::clone(&device.metrics);
    gate.set_shut(true);
    let c = device.client();
    let _never_finished = begin_reads(c, file, 2 * DEPTH);
    assert!(eventually(|| metrics.throttled.get() > 0));
    Arc::clone(c.guest()).reboot(true).unwrap();
    c.init().unwrap();
    assert_eq!(c.lookup(ROOT, "file").unwrap().attr.size, PAGE as u64);
    device.end();
    assert_eq!(gate.alive.load(Ordering::SeqCst), 1, "one engine still has what it was given");
    gate.set_shut(false);
    assert!(eventually(|| gate.alive.load(Ordering::SeqCst) == 0), "what a hanging engine kept is freed when it finishes");
}

/// An engine that loses what it is given, one request at a time.
#[derive(Debug)]
struct LossyEngine {
    is_taken: Arc<AtomicBool>,
    event: OwnedFd,
}

impl LossyEngine {
    fn new() -> LossyEngine {
        LossyEngine { is_taken: Arc::default(), event: rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap() }
    }
}

impl Engine<InFlight> for LossyEngine {
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        if self.is_taken.swap(true, Ordering::SeqCst) {
            return Submission::Full(transfer);
        }
        transfer.owner.note_submitted();
        let is_taken = Arc::clone(&self.is_taken);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(300));
            is_taken.store(false, Ordering::SeqCst);
            drop(transfer);
        });
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
        usize::from(self.is_taken.load(Ordering::SeqCst))
    }

    fn reap(&self, _finished: &mut Vec<Finished<InFlight>>) {}

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn end(&self) {}
}

#[test]
fn a_request_that_is_lost_is_answered_with_eio() {
    let mut device = Device::start(in_process::share_options(), move |service| service.with_engine(|| Box::new(LossyEngine::new())));
    let (node, fh) = open_file(&mut device);
    let c = device.client();
    for _ in 0..20 {
        for pending in begin_reads(c, (node, fh), 8) {
            assert_eq!(c.finish(pending).unwrap().header.error, -libc::EIO);
        }
    }
    c.release(node, fh).unwrap();
    // Its file was let go of each time, so that the release has closed it.
    let path = device.path("file");
    let targets = || std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let is_open_for_reading = targets().filter(|target| *target == path).count();
    assert!(is_open_for_reading <= 1, "{is_open_for_reading} descriptors; one may be the node's own");
}

/// An engine whose transfers wait: a lone one until the gate is open, a pair until both have arrived.
#[derive(Debug)]
struct PairEngine {
    gate: Arc<Gate>,
    arrived: Mutex<usize>,
    changed: Condvar,
    metrics: Arc<Metrics>,
}

impl Engine<InFlight> for PairEngine {
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        if transfer.offset == 0 {
            self.gate.pass();
        } else {
            let mut arrived = self.arrived.lock();
            *arrived += 1;
            let wanted = arrived.next_multiple_of(2);
            self.changed.notify_all();
            while *arrived < wanted {
                self.changed.wait(&mut arrived);
            }
        }
        // Longer than a request may take that is not slow.
        std::thread::sleep(Duration::from_millis(1));
        let owner = &transfer.owner;
        let result = run(owner.file(), owner.pages(), transfer.offset, transfer.action, &self.metrics);
        Submission::Finished(Finished { transfer, result })
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

#[test]
fn slow_requests_that_wait_overlap_without_the_watchdog() {
    let gate = Arc::new(Gate::default());
    let for_engines = Arc::clone(&gate);
    // The watchdog never relieves a leader: the first of a pair would wait for the second for ever.
    let options = Options { relieve_after: Duration::from_secs(3600), ..Options::default() };
    let mut device = Device::start(in_process::share_options(), move |service: Service| {
        let (gate, metrics) = (Arc::clone(&for_engines), Arc::clone(&service.metrics));
        service.with(options).with_engine(move || {
            let (gate, metrics) = (Arc::clone(&gate), Arc::clone(&metrics));
            Box::new(PairEngine { gate, arrived: Mutex::new(0), changed: Condvar::new(), metrics })
        })
    });
    std::fs::write(device.path("file"), [7; 2 * PAGE]).unwrap();
    let c = device.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    let fh = c.open(node, libc::O_RDONLY).unwrap().fh;
    let begin = |c: &mut Client, page: usize| {
        let read = ReadIn { fh, offset: (page * PAGE) as u64, size: PAGE as u32, ..ReadIn::default() };
        c.begin(&Call { room: PAGE as u32, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })
    };
    // Requests were slow.
    for _ in 0..8 {
        assert_eq!(c.read(node, fh, 0, PAGE as u32).unwrap(), [7; PAGE]);
    }
    for _ in 0..10 {
        // All three are in the ring when the leader takes the next one.
        gate.set_shut(true);
        let pending = [begin(c, 0), begin(c, 1), begin(c, 1)];
        gate.set_shut(false);
        for pending in pending {
            assert_eq!(c.finish(pending).unwrap().payload, [7; PAGE]);
        }
    }
}
