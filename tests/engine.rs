//! The device with an I/O engine that takes every transfer over and finishes it on a thread of its own: answers come from
//! whoever reaps them, a full engine delays requests and loses none, and a stop does not wait for an engine that does not finish.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use gatherfs::device::{InFlight, Options, Service};
use gatherfs::io::{Engine, Finished, Submission, Thread, Transfer, TransferOwner, run};
use gatherfs::metrics::Metrics;
use gatherfs_support::daemon::eventually;
use gatherfs_support::guest::client::Call;
use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::{ROOT, ReadIn, opcode};
use gatherfs_support::in_process::{self, Device};
use parking_lot::{Condvar, Mutex};
use zerocopy::IntoBytes;

/// Transfers that the engine takes at a time.
const DEPTH: usize = 2;
const PAGE: usize = 4096;

/// What the test and the engine's thread know of each other.
#[derive(Debug, Default)]
struct Gate {
    is_shut: Mutex<bool>,
    opened: Condvar,
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
    finished: Vec<Finished<InFlight>>,
}

/// An engine with one thread. The last transfer of a burst is finished first.
#[derive(Debug)]
struct LaterEngine {
    transfers: Mutex<Option<Sender<Transfer<InFlight>>>>,
    state: Arc<Mutex<State>>,
    event: Arc<OwnedFd>,
    metrics: Arc<Metrics>,
    thread: Option<JoinHandle<()>>,
}

impl LaterEngine {
    fn new(gate: Arc<Gate>, metrics: Arc<Metrics>) -> LaterEngine {
        let (transfers, incoming) = channel();
        let state: Arc<Mutex<State>> = Arc::default();
        let event = Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap());
        let thread = {
            let (state, event, metrics) = (Arc::clone(&state), Arc::clone(&event), Arc::clone(&metrics));
            std::thread::spawn(move || finish_all(&incoming, &gate, &state, &event, &metrics))
        };
        LaterEngine { transfers: Mutex::new(Some(transfers)), state, event, metrics, thread: Some(thread) }
    }
}

fn finish_all(incoming: &Receiver<Transfer<InFlight>>, gate: &Gate, state: &Mutex<State>, event: &OwnedFd, metrics: &Metrics) {
    while let Ok(first) = incoming.recv() {
        std::thread::sleep(Duration::from_micros(200));
        gate.pass();
        let mut burst: Vec<_> = std::iter::once(first).chain(incoming.try_iter()).collect();
        while let Some(transfer) = burst.pop() {
            let owner = &transfer.owner;
            let result = run(owner.file(), owner.pages(), transfer.offset, transfer.direction, metrics);
            let mut state = state.lock();
            state.finished.push(Finished { transfer, result });
            rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
        }
    }
}

impl Engine<InFlight> for LaterEngine {
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        if transfer.thread == Thread::Submitting {
            let owner = &transfer.owner;
            let result = run(owner.file(), owner.pages(), transfer.offset, transfer.direction, &self.metrics);
            return Submission::Finished(Finished { transfer, result });
        }
        let mut state = self.state.lock();
        if state.taken == DEPTH {
            return Submission::Full(transfer);
        }
        state.taken += 1;
        transfer.owner.note_submitted();
        self.transfers.lock().as_ref().unwrap().send(transfer).unwrap();
        Submission::Submitted
    }

    fn reap(&self, finished: &mut Vec<Finished<InFlight>>) {
        let mut state = self.state.lock();
        state.taken -= state.finished.len();
        finished.append(&mut state.finished);
    }

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }
}

impl Drop for LaterEngine {
    fn drop(&mut self) {
        *self.transfers.lock() = None;
        if let Some(thread) = self.thread.take() {
            // The thread itself may let go of the last request, and with it of the queue and this.
            if thread.thread().id() != std::thread::current().id() {
                thread.join().unwrap();
            }
        }
    }
}

fn start(options: Options) -> (Device, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let for_engines = Arc::clone(&gate);
    let device = Device::start(in_process::share_options(), move |service: Service| {
        let metrics = Arc::clone(&service.metrics);
        service.with(options).with_engine(move || Box::new(LaterEngine::new(Arc::clone(&for_engines), Arc::clone(&metrics))))
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

#[test]
fn a_stop_does_not_wait_for_an_engine_that_does_not_finish() {
    let (mut device, gate) = start(Options { stop_timeout: Duration::from_millis(300), ..Options::default() });
    std::fs::write(device.path("file"), [7; PAGE]).unwrap();
    let metrics = Arc::clone(&device.metrics);
    let c = device.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    let fh = c.open(node, libc::O_RDONLY).unwrap().fh;
    gate.set_shut(true);
    let read = ReadIn { fh, size: PAGE as u32, ..ReadIn::default() };
    let pending: Vec<_> =
        (0..2 * DEPTH).map(|_| c.begin(&Call { room: PAGE as u32, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })).collect();
    assert!(eventually(|| metrics.throttled.get() > 0));
    let guest = Arc::clone(c.guest());
    let base = guest.stop_queue(FIRST_REQUEST).unwrap();
    let withdrawn = metrics.withdrawn.get();
    assert!((DEPTH as u64 + 1..=2 * DEPTH as u64).contains(&withdrawn), "{withdrawn} requests were withdrawn");
    assert_eq!(metrics.stuck.get(), 0, "no thread sits in the host");
    gate.set_shut(false);
    // Those that nobody popped are served once the queue runs again, by the threads that it had.
    guest.restart_queue(FIRST_REQUEST, base).unwrap();
    let errors: Vec<i32> = pending.into_iter().map(|pending| c.finish(pending).unwrap().header.error).collect();
    assert_eq!(errors.iter().filter(|error| **error == -libc::EIO).count() as u64, withdrawn, "{errors:?}");
    assert!(eventually(|| metrics.withdrawn_finished.get() == withdrawn), "what came late was taken back");
    assert_eq!(c.read(node, fh, 0, PAGE as u32).unwrap(), [7; PAGE]);
}
