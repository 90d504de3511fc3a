//! A queue between the frontend, which sets it up, and the threads that serve it.
//!
//! One lock holds the ring, the requests in flight and the roles of the threads; it is held for a few loads and stores, and
//! never over a system call that can block.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::activity::Activity;
use super::claim::Claim;
use super::in_flight::{InFlight, Origin, SlotIndex, SuspendedKey};
use super::in_flight_table::{InFlightTable, Popped};
use super::leadership::{Leadership, Next};
use super::pace::Pace;
use super::polling::Polling;
use super::queue_engine::QueueEngine;
use super::reply;
use super::service::{Service, SessionQueue};
use crate::guest::RingMemory;
use crate::io::Engine;
use crate::sys::event::{self, KickWatch};
use crate::types::{Errno, QueueIndex, RequestId};
use crate::virtqueue::{Arrivals, Chain, Ring};
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
    /// A chain that was just popped, and how many wait behind it.
    New { popped: Popped, waiting: u16 },
    /// One that was throttled.
    Again(InFlight),
}

/// An answer to a suspended request.
#[derive(Debug, Clone, Copy)]
struct Late {
    key: SuspendedKey,
    result: Result<(), Errno>,
}

/// Ring, requests in flight, and roles.
#[derive(Debug, Default)]
pub(super) struct State {
    pub setup: Setup,
    pub ring: Option<Ring>,
    pub memory_generation: u64,
    /// The setup changed in a way that the running ring has not seen.
    is_stale: bool,
    pub leadership: Leadership,
    pub polling: Polling,
    pub pace: Pace,
    pub in_flight: InFlightTable,
    /// When the call eventfd was last signalled, or the guest found not to want it.
    pub last_call_at: Option<Instant>,
    /// The guest wanted a call while the frontend had none set: it gets it with the next one.
    is_call_owed: bool,
    /// Answers to suspended requests that are to be given.
    late: VecDeque<Late>,
    /// Requests that the engine had no room for, in order.
    throttled: VecDeque<InFlight>,
    /// Counts how often the engine may have got room for more transfers.
    engine_room: u64,
    /// It has got none since it refused a transfer.
    is_engine_full: bool,
    /// A thread waits on [`Queue::drained`] until requests have left memory that was removed.
    pub is_leaving_memory: bool,
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
    /// The thread that stops the queue waits here until nothing is in service, the one that removes memory until nothing uses it.
    pub drained: Condvar,
    watch: OnceLock<KickWatch>,
    /// Counts the wake-ups by [`Queue::wake`], for a leader that polls.
    wakes: AtomicU32,
    engine: OnceLock<QueueEngine>,
    pub bound: OnceLock<Bound>,
    pub handles: Mutex<Vec<JoinHandle<()>>>,
}

impl State {
    /// Whether the frontend lets the queue run.
    pub fn is_runnable(&self) -> bool {
        let s = &self.setup;
        s.ready && s.enabled && s.kick.is_some() && !self.leadership.is_ending()
    }

    /// Makes the ring fit the setup and the present memory. False where it does not run.
    fn prepare(&mut self, service: &Service) -> bool {
        if !self.is_runnable() {
            return false;
        }
        let generation = service.memory_generation();
        if self.ring.is_some() && !self.is_stale && self.memory_generation == generation {
            return true;
        }
        let Some(memory) = self.setup.map_ring(service) else {
            warn_limited!(service.limiter; "a queue of {} entries lies outside guest memory or is misaligned; it is not served", self.setup.size);
            return false;
        };
        let s = &self.setup;
        match &mut self.ring {
            Some(ring) => leave(&mut self.in_flight, ring).remap(memory),
            None => {
                if s.next_avail == 0 && s.next_used == 0 {
                    // The guest has reset the queue, and waits for nothing of before.
                    self.in_flight.clear_suspended();
                    self.late.clear();
                }
                let mut ring = Ring::new(memory, s.event_idx, s.next_avail, s.next_used);
                // The leader is awake: starting the queue has woken it.
                ring.disable_kicks();
                self.ring = Some(ring);
            }
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
        if !self.prepare(service) {
            return Next::Stopped;
        }
        let Some(ring) = &mut self.ring else { return Next::Stopped };
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
        let Some((head, memory)) = ring.pop() else { return Next::Stopped };
        Next::Chain(Work::New { popped: Popped { head, memory }, waiting: waiting - 1 })
    }

    /// Whether chains wait to be popped.
    pub fn has_waiting(&self) -> bool {
        self.ring.as_ref().is_some_and(|ring| ring.waiting().is_ok_and(|waiting| waiting > 0))
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

    /// The next answer to a suspended request, with the memory to give it in.
    fn next_late(&mut self, service: &Service) -> Option<(RequestId, Arc<RingMemory>, Result<(), Errno>)> {
        while !self.late.is_empty() && self.prepare(service) {
            let memory = Arc::clone(self.ring.as_ref()?.memory()?);
            let Late { key, result } = self.late.pop_front()?;
            if let Some(id) = self.in_flight.take_suspended(key) {
                return Some((id, memory, result));
            }
        }
        None
    }

    /// Puts the answer to a popped chain into the used ring, where the guest sees it. A head that the table does not have cannot
    /// be named there: the chain is dropped.
    pub fn push_used(&mut self, head: u16, used_len: u32) {
        if let Some(ring) = self.ring.as_mut().filter(|ring| head < ring.size()) {
            ring.push_used(head, used_len);
        }
    }

    /// Answers since the last call.
    pub fn unsignalled(&self) -> u16 {
        self.ring.as_ref().map_or(0, Ring::unsignalled)
    }

    /// The call to signal, where the guest wants one for the answers since the last one. `now` is about the present time.
    fn take_call(&mut self, now: Instant) -> Option<Arc<OwnedFd>> {
        self.last_call_at = Some(now);
        let wanted = self.ring.as_mut().is_some_and(Ring::needs_call);
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
        let mut state = self.state.lock();
        change(&mut state.setup);
        self.wake();
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
        state.ring.as_ref().map_or(state.setup.next_avail, Ring::next_avail)
    }

    /// To be called when a request leaves service: wakes the thread that waits for the last one, to stop the queue or remove memory.
    pub fn note_answered(&self, state: &State) {
        if state.is_leaving_memory || state.in_flight.in_service() == 0 && !state.setup.ready {
            self.drained.notify_all();
        }
    }

    /// Writes the answers to suspended requests that are ready, if the queue runs.
    pub fn answer_late(&self, state: &mut MutexGuard<'_, State>) {
        if state.late.is_empty() {
            return;
        }
        let Some(Bound { service, .. }) = self.bound() else { return };
        while let Some((id, memory, result)) = state.next_late(service) {
            // In service again, so that the queue is not stopped meanwhile, and not to be withdrawn: the lock is the guest's.
            let (slot, claim) = state.in_flight.enter();
            let popped = Popped { head: id.head, memory };
            state.in_flight.begin(slot, id.head, Instant::now(), std::thread::current().id());
            claim.take();
            let used_len = MutexGuard::unlocked(state, || {
                let mut chain = Chain::new();
                chain.walk(popped.head, popped.memory);
                match result {
                    Ok(()) => reply::write_parts(&mut chain, id.unique, &[], &[]),
                    Err(errno) => reply::write_error(&mut chain, id.unique, errno),
                }
            });
            if state.in_flight.end(slot) {
                state.push_used(id.head, used_len);
            }
            state.in_flight.leave(slot);
            signal_call(state, service, Instant::now());
            self.note_answered(state);
        }
    }
}

impl Origin for Queue {
    fn complete(&self, slot: SlotIndex, head: u16, used_len: u32) {
        let mut state = self.state.lock();
        if state.in_flight.end(slot) {
            state.push_used(head, used_len);
        }
        // An engine that loses a request has room for another one.
        state.note_engine_room();
        if let Some(bound) = self.bound() {
            state.follow_memory(&bound.service);
            signal_call(&mut state, &bound.service, Instant::now());
        }
        self.note_answered(&state);
        drop(state);
        Queue::wake(self);
    }

    fn suspend(&self, slot: SlotIndex, claim: &Claim, id: RequestId, ring_descriptors: u16) -> Result<SuspendedKey, Errno> {
        let mut state = self.state.lock();
        // It cannot be withdrawn while the state is locked. Taken last: after an error the caller may still wait for the host.
        if claim.is_withdrawn() {
            return Err(Errno::EIO);
        }
        let ring_len = state.ring.as_ref().map_or(0, Ring::size);
        let key = state.in_flight.suspend(slot, id, ring_descriptors, ring_len)?;
        claim.take();
        if let Some(bound) = self.bound() {
            bound.service.metrics.parked.increment();
        }
        self.note_answered(&state);
        Ok(key)
    }

    fn answer_suspended(&self, key: SuspendedKey, result: Result<(), Errno>) {
        let mut state = self.state.lock();
        state.late.push_back(Late { key, result });
        self.answer_late(&mut state);
    }

    fn leave(&self, slot: SlotIndex) {
        self.state.lock().in_flight.leave(slot);
    }
}

impl SessionQueue for Queue {
    fn is_started(&self) -> bool {
        self.state.lock().is_runnable()
    }

    fn requests_in_flight(&self) -> u32 {
        self.state.lock().in_flight.in_service()
    }

    fn wake(&self) {
        Queue::wake(self);
    }
}
