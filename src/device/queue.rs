//! A queue between the frontend, which sets it up, and the threads that serve it.
//!
//! One lock holds the ring, the requests in flight and the roles of the threads; it is held for a few loads and stores, and
//! never over a system call that can block.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::activity::Activity;
use super::calling::Calling;
use super::in_flight::{InFlight, SuspendedKey};
use super::in_flight_table::InFlightTable;
use super::leadership::{Leadership, Next};
use super::pace::Pace;
use super::polling::Polling;
use super::queue_engine::QueueEngine;
use super::recorded::{self, Popped};
use super::service::{Finishing, Service, SessionQueue};
use crate::guest::RingMemory;
use crate::io::Engine;
use crate::state::{HeadTwice, QueueRecords, Unfinished};
use crate::sys::event::{self, KickWatch};
use crate::types::{Errno, QueueIndex};
use crate::virtqueue::{Arrivals, Ring};
use crate::warn_limited;

/// What the frontend said of the queue.
#[derive(Debug, Default)]
pub(super) struct Setup {
    pub size: u16,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
    pub next_avail: u16,
    pub next_used: u16,
    pub event_idx: bool,
    pub ready: bool,
    pub enabled: bool,
    pub kick: Option<OwnedFd>,
    pub call: Option<Arc<OwnedFd>>,
}

impl Setup {
    /// The ring's parts in the present memory. `None` where one lies outside or is misaligned.
    fn map_ring(&self, service: &Service) -> Option<Arc<RingMemory>> {
        RingMemory::new(service.memory(), self.size, self.descriptors, self.avail, self.used).map(Arc::new)
    }
}

/// A request for a thread to serve.
#[derive(Debug)]
pub(super) enum Work {
    /// A chain that was just popped, or that an earlier process had popped, and how many wait behind it.
    New { popped: Popped, waiting: u16 },
    /// Nothing: the driver has offered a head again that is in flight, and the second chain was dropped.
    Dropped(HeadTwice),
    /// One that was throttled.
    Again(InFlight),
}

/// An answer to a suspended request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Late {
    pub key: SuspendedKey,
    pub result: Result<(), Errno>,
}

/// What the threads of a queue may take of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Turn {
    /// Everything.
    #[default]
    Free,
    /// Nothing: requests are executed one after the other, over all queues.
    Held,
    /// The first of those that an earlier process has left.
    One,
}

/// Ring, requests in flight, and roles.
#[derive(Debug, Default)]
pub(super) struct State {
    pub setup: Setup,
    pub ring: Option<Ring>,
    /// What another process needs to go on with the queue; set with [`Queue::bind`].
    pub records: Option<QueueRecords>,
    /// Requests that an earlier process has left unfinished, in the order in which they were popped.
    pub recovered: VecDeque<(u16, Unfinished)>,
    /// What the queue's threads may take of it.
    pub turn: Turn,
    /// The ring has run in this process.
    pub has_started: bool,
    /// The next position that the frontend sets is one that it has set before, in the life of an earlier process.
    is_base_replayed: bool,
    /// The guest gets a call whether it wants one or not.
    pub is_call_due: bool,
    pub memory_generation: u64,
    /// The setup changed in a way that the running ring has not seen.
    is_stale: bool,
    pub leadership: Leadership,
    pub polling: Polling,
    pub pace: Pace,
    pub in_flight: InFlightTable,
    pub calling: Calling,
    /// The guest wanted a call while the frontend had none set: it gets it with the next one.
    is_call_owed: bool,
    /// Answers to suspended requests that are to be given.
    pub late: VecDeque<Late>,
    /// Requests that the engine had no room for, in order.
    throttled: VecDeque<InFlight>,
    /// Counts how often the engine may have got room for more transfers.
    engine_room: u64,
    /// It has got none since it refused a transfer.
    is_engine_full: bool,
    /// A thread waits on [`Queue::drained`] until requests have left memory that was removed.
    pub is_leaving_memory: bool,
    /// Nothing more is popped: another process is to go on with the queue.
    is_paused: bool,
}

/// What a queue is given before the frontend sends messages about it.
#[derive(Debug)]
pub(super) struct Bound {
    pub index: QueueIndex,
    pub service: Arc<Service>,
    pub activity: Arc<Activity>,
}

/// One virtqueue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub state: Mutex<State>,
    /// Followers wait here for the lead.
    pub followers: Condvar,
    /// The thread that stops the queue waits here until nothing is in service, the one that removes memory until nothing uses it, and
    /// the one that has requests executed one after the other until one is done.
    pub drained: Condvar,
    watch: OnceLock<KickWatch>,
    /// Counts the wake-ups by [`Queue::wake`], for a leader that polls.
    wakes: AtomicU32,
    engine: OnceLock<QueueEngine>,
    bound: OnceLock<Bound>,
    pub handles: Mutex<Vec<JoinHandle<()>>>,
}

impl State {
    /// Whether the frontend lets the queue run.
    pub fn is_runnable(&self) -> bool {
        let s = &self.setup;
        s.ready && s.enabled && s.kick.is_some() && !self.leadership.is_ending()
    }

    /// Makes the ring fit the setup and the present memory. False where it does not run.
    pub fn prepare(&mut self, service: &Service) -> bool {
        self.may_pop() && self.fit_ring(service)
    }

    /// Whether frontend and service let chains be popped.
    pub fn may_pop(&self) -> bool {
        self.is_runnable() && !self.is_paused
    }

    /// The same, whether the frontend lets the queue run or not.
    pub fn fit_ring(&mut self, service: &Service) -> bool {
        let generation = service.memory_generation();
        if self.ring.is_some() && !self.is_stale && self.memory_generation == generation {
            return true;
        }
        let Some(memory) = self.setup.map_ring(service) else {
            warn_limited!(service.limiter; "a queue of {} entries lies outside guest memory or is misaligned; it is not served", self.setup.size);
            return false;
        };
        if let Some(ring) = &mut self.ring {
            leave(&mut self.in_flight, ring).remap(memory);
        } else {
            self.start_ring(&memory, service);
        }
        self.memory_generation = generation;
        self.is_stale = false;
        true
    }

    /// Moves the ring, whether it runs or not, to the present memory, so that what was removed is unmapped. A ring that does
    /// not lie there is detached once nothing of it is in service.
    pub fn follow_memory(&mut self, service: &Service) {
        let generation = service.memory_generation();
        let Some(ring) = self.ring.as_mut().filter(|_| self.memory_generation != generation) else { return };
        match self.setup.map_ring(service) {
            Some(memory) => {
                leave(&mut self.in_flight, ring).remap(memory);
                self.memory_generation = generation;
                self.is_stale = false;
            }
            None if self.in_flight.in_service() == 0 => {
                ring.detach();
                self.is_stale = true;
            }
            None => {}
        }
    }

    /// Takes the next request: one that was throttled, or the next chain off the ring.
    pub fn next(&mut self, service: &Service) -> Next<Work> {
        if !self.throttled.is_empty() {
            if self.is_engine_full {
                return Next::Stopped;
            }
            return self.throttled.pop_front().map_or(Next::Stopped, |request| Next::Chain(Work::Again(request)));
        }
        let is_running = self.prepare(service);
        if self.turn == Turn::Held {
            return Next::Stopped;
        }
        if let Some(recovered) = self.next_recovered() {
            return Next::Chain(recovered);
        }
        let (true, Turn::Free, Some(ring), Some(records)) = (is_running, self.turn, &mut self.ring, &self.records) else {
            return Next::Stopped;
        };
        let waiting = match ring.waiting() {
            Ok(0) => return Next::Empty,
            Ok(waiting) => waiting,
            Err(jump) => {
                // Nothing can be popped until the driver's index makes sense again.
                service.metrics.avail_jumps.increment();
                warn_limited!(service.limiter; "the guest's avail index jumped from {} to {}; its queue waits until it is possible", jump.next, jump.index);
                return Next::Empty;
            }
        };
        self.calling.note_taken(waiting - 1);
        match recorded::pop(ring, records) {
            Some(Ok(popped)) => Next::Chain(Work::New { popped, waiting: waiting - 1 }),
            Some(Err(twice)) => Next::Chain(Work::Dropped(twice)),
            None => Next::Stopped,
        }
    }

    /// Whether chains wait to be popped.
    pub fn has_waiting(&self) -> bool {
        self.turn != Turn::Held && !self.recovered.is_empty()
            || self.ring.as_ref().is_some_and(|ring| ring.waiting().is_ok_and(|waiting| waiting > 0))
    }

    /// A number that changes when the engine may have got room for more transfers.
    pub fn engine_room(&self) -> u64 {
        self.engine_room
    }

    /// The engine had no room for `request`, which is served again when it has some. `room_before` is
    /// [`State::engine_room`] before the request was submitted.
    pub fn throttle(&mut self, request: InFlight, room_before: u64) {
        self.throttled.push_back(request);
        self.is_engine_full = self.engine_room == room_before;
    }

    /// Takes out the requests that were throttled.
    pub fn take_throttled(&mut self) -> VecDeque<InFlight> {
        std::mem::take(&mut self.throttled)
    }

    /// The engine has finished something, and may have room for more. True if requests wait for that.
    pub fn note_engine_room(&mut self) -> bool {
        self.engine_room = self.engine_room.wrapping_add(1);
        self.is_engine_full = false;
        !self.throttled.is_empty()
    }

    /// Puts the answer to a popped chain into the used ring, where the guest sees it.
    pub fn push_used(&mut self, head: u16, used_len: u32) {
        if let (Some(ring), Some(records)) = (&mut self.ring, &self.records) {
            recorded::push(ring, records, head, used_len);
        }
    }

    /// Answers since the last call, and 1 at least where a call is due.
    pub fn unsignalled(&self) -> u16 {
        self.ring.as_ref().map_or(0, Ring::unsignalled).max(self.is_call_due.into())
    }

    /// The call to signal, where the guest wants one for the answers since the last one. `now` is about the present time.
    fn take_call(&mut self, now: Instant) -> Option<Arc<OwnedFd>> {
        if self.unsignalled() == 0 {
            return None;
        }
        let wanted = self.ring.as_mut().is_some_and(Ring::needs_call) | std::mem::take(&mut self.is_call_due);
        self.calling.note_call(wanted, now);
        self.is_call_owed |= wanted && self.setup.call.is_none();
        if wanted { self.setup.call.clone() } else { None }
    }

    /// What a thread without the lock looks at to see whether chains wait.
    pub fn arrivals(&self) -> Option<Arrivals> {
        self.ring.as_ref().and_then(Ring::arrivals)
    }

    /// Requests a kick for the next chain; true if chains arrived meanwhile.
    pub fn enable_kicks(&mut self) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        ring.enable_kicks() && ring.waiting().is_ok()
    }

    /// Suppresses kicks.
    pub fn disable_kicks(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.disable_kicks();
        }
    }
}

/// `ring`, about to leave its memory, in which requests in flight still are.
fn leave<'r>(in_flight: &mut InFlightTable, ring: &'r mut Ring) -> &'r mut Ring {
    if let Some(memory) = ring.memory() {
        in_flight.note_left(memory);
    }
    ring
}

/// Signals the call, if the guest wants one, with the lock open. `now` is about the present time.
pub(super) fn signal_call(state: &mut MutexGuard<'_, State>, service: &Service, now: Instant) {
    if let Some(call) = state.take_call(now) {
        service.metrics.calls.increment();
        MutexGuard::unlocked(state, || event::signal(call.as_fd()));
    }
}

impl Queue {
    /// Gives the queue what it needs before the frontend sends messages about it. `is_resumed`: an earlier process has served it, and
    /// the frontend's messages of before come again.
    pub fn bind(&self, bound: Bound, is_resumed: bool) {
        let mut state = self.state.lock();
        state.records = bound.service.records.queue(bound.index);
        state.is_base_replayed = is_resumed;
        if bound.service.finishing() == Finishing::OneByOne {
            state.turn = Turn::Held;
        }
        drop(state);
        let _ = self.bound.set(bound);
    }

    /// What the queue was given; set before the frontend sends messages about it.
    pub fn bound(&self) -> Option<&Bound> {
        self.bound.get()
    }

    /// Its I/O engine. Made with the first kick, as the watch is.
    pub fn engine(&self) -> Option<&QueueEngine> {
        self.engine.get()
    }

    /// Wakes the thread that sleeps on the ring, or polls it.
    pub fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::Release);
        if let Some(watch) = self.watch.get() {
            watch.wake();
        }
    }

    /// A number that changes with each wake-up by [`Queue::wake`].
    pub fn wakes(&self) -> u32 {
        self.wakes.load(Ordering::Acquire)
    }

    /// What the leader sleeps on. Made with the first kick, since most queues are never used.
    pub fn watch(&self) -> Option<&KickWatch> {
        self.watch.get()
    }

    /// Takes a new kick from the frontend, or takes it away.
    pub fn set_kick(&self, kick: Option<OwnedFd>) -> std::io::Result<()> {
        if self.watch.get().is_none() && kick.is_some() {
            let watch = KickWatch::new()?;
            if let Some(bound) = self.bound() {
                let engine = self.engine.get_or_init(|| bound.service.make_engine(bound.index));
                if let Some(completions) = engine.completion_event() {
                    watch.watch_completions(completions)?;
                }
            }
            let _ = self.watch.set(watch);
        }
        let mut state = self.state.lock();
        let Some(watch) = self.watch.get() else { return Ok(()) };
        if let Some(old) = state.setup.kick.take() {
            watch.unwatch(&old);
        }
        if let Some(new) = &kick {
            watch.watch(new)?;
        }
        state.setup.kick = kick;
        self.wake();
        Ok(())
    }

    /// Takes a new call from the frontend, or takes it away. QEMU starts queues before it sets their calls:
    /// what was answered in between is signalled now.
    pub fn set_call(&self, call: Option<Arc<OwnedFd>>) {
        let mut state = self.state.lock();
        let owed = call.is_some() && std::mem::take(&mut state.is_call_owed);
        state.setup.call.clone_from(&call);
        drop(state);
        if let Some(call) = call.filter(|_| owed) {
            event::signal(call.as_fd());
        }
    }

    /// Changes the setup and wakes the leader, which checks it.
    pub fn configure(&self, change: impl FnOnce(&mut Setup)) {
        self.configure_state(|state| change(&mut state.setup));
    }

    fn configure_state(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.wake();
    }

    /// The frontend sets the position of the ring. Where one sets it again for a process that goes on, the records count.
    pub fn set_base(&self, next_avail: u16) {
        self.configure_state(|state| {
            state.setup.next_avail = next_avail;
            let is_replayed = std::mem::take(&mut state.is_base_replayed);
            if let Some(records) = state.records.as_ref().filter(|_| !is_replayed && state.ring.is_none()) {
                records.forget_positions();
            }
        });
    }

    /// Guest memory was replaced: maps the ring again at once, and wakes the leader, which checks whether the ring runs now.
    pub fn follow_memory(&self) {
        if let Some(bound) = self.bound() {
            self.state.lock().follow_memory(&bound.service);
        }
        self.wake();
    }

    /// Changes the rings' addresses. On a running ring this comes when logging is switched: what changed
    /// is seen at the next chain.
    pub fn set_addresses(&self, descriptors: u64, avail: u64, used: u64) {
        let mut state = self.state.lock();
        let s = &mut state.setup;
        let changed = (s.descriptors, s.avail, s.used) != (descriptors, avail, used);
        (s.descriptors, s.avail, s.used) = (descriptors, avail, used);
        state.is_stale |= changed;
    }

    /// Whether the ring runs, so that its indexes are ours and not the frontend's to set.
    pub fn is_running(&self) -> bool {
        self.state.lock().ring.is_some()
    }

    /// The next chain's index: what GET_VRING_BASE returns.
    pub fn next_avail(&self) -> u16 {
        let state = self.state.lock();
        let recorded = || state.records.as_ref().and_then(QueueRecords::positions).map(|positions| positions.avail);
        state.ring.as_ref().map(Ring::next_avail).or_else(recorded).unwrap_or(state.setup.next_avail)
    }

    /// To be called when a request leaves service: wakes the thread that waits for it, or for the last one, to stop the queue or remove
    /// memory.
    pub fn note_answered(&self, state: &State) {
        if state.is_leaving_memory || state.turn != Turn::Free || state.in_flight.in_service() == 0 && !state.setup.ready {
            self.drained.notify_all();
        }
    }
}

impl SessionQueue for Queue {
    fn is_started(&self) -> bool {
        self.state.lock().is_runnable()
    }

    fn requests_in_flight(&self) -> u32 {
        self.state.lock().in_flight.in_service()
    }

    fn set_paused(&self, is_paused: bool) {
        self.configure_state(|state| state.is_paused = is_paused);
    }

    fn responds(&self, time: Duration) -> bool {
        self.state.try_lock_for(time).is_some()
    }

    fn wake(&self) {
        Queue::wake(self);
    }
}
