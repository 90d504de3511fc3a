//! A queue's state between the frontend, which sets it up, and the threads that serve it.
//!
//! One lock holds the ring and the roles of the threads; it is held for a few loads and stores, and never
//! over a system call that can block.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::parked::Late;
use super::relief::Relief;
use super::service::Service;
use super::stop::Serving;
use super::worker;
use crate::guest::RingMemory;
use crate::sys::event::{self, KickWatch};
use crate::types::QueueIndex;
use crate::virtqueue::Ring;
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

/// A chain taken off the ring, with what is needed to walk it outside the lock.
#[derive(Debug, Clone)]
pub(super) struct Popped {
    pub head: u16,
    pub memory: Arc<RingMemory>,
    /// Chains that wait behind it.
    pub waiting: u16,
}

/// What the ring had to offer.
#[derive(Debug)]
pub(super) enum Next {
    Chain(Popped),
    /// The ring is empty or makes no sense: sleep until a kick.
    Empty,
    /// The ring does not run: sleep until the frontend says more.
    Stopped,
}

/// Ring and roles.
#[derive(Debug, Default)]
pub(super) struct State {
    pub setup: Setup,
    pub ring: Option<Ring>,
    memory_generation: u64,
    /// The setup changed in a way that the running ring has not seen.
    stale: bool,
    /// A thread watches the ring.
    pub led: bool,
    /// Changes with each new leader, so that one that was relieved notices.
    pub leadership: u64,
    /// Chains popped in all: tells whether a leader still sits on the same one.
    pub turns: u64,
    /// The leader sleeps until a kick.
    pub asleep: bool,
    /// Followers that wait for the lead.
    pub idle: u16,
    pub threads: u16,
    /// Chains popped and not answered yet.
    pub serving: u32,
    /// Those that threads serve now.
    pub in_service: Serving,
    /// When the guest was last told of answers, or found to be awake.
    pub told: Option<Instant>,
    /// The guest wanted a call while the frontend had none set: it gets it with the next one.
    call_owed: bool,
    /// Descriptors of the ring that parked requests take.
    parked_descriptors: u16,
    /// Answers to parked requests that came and are to be given.
    pub late: VecDeque<Late>,
    /// Changes when the guest begins anew: what was parked before is nobody's.
    pub life: u64,
    /// The session ends: threads leave.
    pub ending: bool,
}

/// One virtqueue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub state: Mutex<State>,
    /// Followers wait here for the lead.
    pub followers: Condvar,
    /// Whoever stops the queue waits here until nothing is in flight.
    pub drained: Condvar,
    watch: OnceLock<KickWatch>,
    pub bound: OnceLock<(QueueIndex, Arc<Service>)>,
    pub relief: OnceLock<Arc<Relief>>,
    pub handles: Mutex<Vec<JoinHandle<()>>>,
}

impl State {
    fn is_runnable(&self) -> bool {
        let s = &self.setup;
        s.ready && s.enabled && s.kick.is_some() && !self.ending
    }

    /// Makes the ring fit the setup and the present memory. False where it does not run.
    fn prepare(&mut self, service: &Service) -> bool {
        if !self.is_runnable() {
            return false;
        }
        let generation = service.memory_generation();
        if self.ring.is_some() && !self.stale && self.memory_generation == generation {
            return true;
        }
        let Some(memory) = self.setup.map_ring(service) else {
            warn_limited!("a queue of {} entries lies outside guest memory or is misaligned; it is not served", self.setup.size);
            return false;
        };
        let s = &self.setup;
        match &mut self.ring {
            Some(ring) => ring.remap(memory),
            None => {
                if s.next_avail == 0 && s.next_used == 0 {
                    self.life = self.life.wrapping_add(1);
                    self.parked_descriptors = 0;
                    self.late.clear();
                }
                self.ring = Some(Ring::new(memory, s.event_idx, s.next_avail, s.next_used));
            }
        }
        self.memory_generation = generation;
        self.stale = false;
        true
    }

    /// Moves the ring, whether it runs or not, to the present memory, so that what was removed is unmapped. A ring that does
    /// not lie there is detached once nothing of it is in service.
    pub fn follow_memory(&mut self, service: &Service) {
        let generation = service.memory_generation();
        let Some(ring) = self.ring.as_mut().filter(|_| self.memory_generation != generation) else { return };
        match self.setup.map_ring(service) {
            Some(memory) => {
                ring.remap(memory);
                self.memory_generation = generation;
                self.stale = false;
            }
            None if self.serving == 0 => {
                ring.detach();
                self.stale = true;
            }
            None => {}
        }
    }

    /// Takes the next chain off the ring.
    pub fn next(&mut self, service: &Service) -> Next {
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
                warn_limited!("the guest's avail index jumped from {} to {}; its queue waits until it is possible", jump.next, jump.index);
                return Next::Empty;
            }
        };
        let Some((head, memory)) = ring.pop() else { return Next::Stopped };
        self.serving += 1;
        self.turns = self.turns.wrapping_add(1);
        Next::Chain(Popped { head, memory, waiting: waiting - 1 })
    }

    /// Takes a popped chain out of service until its answer comes. False where parked ones would fill half the
    /// ring.
    pub fn park(&mut self, ring_descriptors: u16) -> bool {
        let size = self.ring.as_ref().map_or(0, Ring::size);
        let sum = self.parked_descriptors.saturating_add(ring_descriptors);
        let fits = sum <= size / 2;
        if fits {
            self.parked_descriptors = sum;
        }
        fits
    }

    /// The next answer to give to a parked request, which is in service again.
    pub fn next_late(&mut self, service: &Service) -> Option<(Late, Popped)> {
        if self.late.is_empty() || !self.prepare(service) {
            return None;
        }
        let memory = Arc::clone(self.ring.as_ref()?.memory()?);
        let late = self.late.pop_front()?;
        self.parked_descriptors = self.parked_descriptors.saturating_sub(late.ring_descriptors);
        self.serving += 1;
        Some((late, Popped { head: late.head, memory, waiting: 0 }))
    }

    /// A popped chain is parked: it is no longer being served.
    pub fn leave_parked(&mut self) {
        self.serving -= 1;
    }

    /// Shows the answer to a popped chain to the guest. A head that the table does not have cannot be named in the
    /// used ring: the chain is dropped.
    pub fn answer(&mut self, head: u16, used_len: u32) {
        self.serving -= 1;
        let Some(ring) = &mut self.ring else { return };
        if head < ring.size() {
            ring.stage(head, used_len);
            ring.show();
        }
    }

    /// Answers that the guest was not told of.
    pub fn unsignalled(&self) -> u16 {
        self.ring.as_ref().map_or(0, Ring::unsignalled)
    }

    /// The call to signal, where the guest wants one for what it was not told of.
    pub fn publish(&mut self) -> Option<Arc<OwnedFd>> {
        self.told = Some(Instant::now());
        let wanted = self.ring.as_mut().is_some_and(Ring::publish);
        self.call_owed |= wanted && self.setup.call.is_none();
        if wanted { self.setup.call.clone() } else { None }
    }

    /// Asks for a kick; true where chains came meanwhile.
    pub fn enable_kicks(&mut self) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        ring.enable_kicks() && ring.waiting().is_ok()
    }

    /// Tells the guest that kicks are not needed.
    pub fn disable_kicks(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.disable_kicks();
        }
    }
}

/// Publishes what is staged and signals the call outside the lock.
pub(super) fn publish_and_call(state: &mut MutexGuard<'_, State>, service: &Service) {
    if let Some(call) = state.publish() {
        service.metrics.calls.increment();
        MutexGuard::unlocked(state, || event::signal(call.as_fd()));
    }
}

impl Queue {
    /// The queue's number and service; set before the frontend can say anything.
    pub fn bound(&self) -> Option<&(QueueIndex, Arc<Service>)> {
        self.bound.get()
    }

    /// What the leader sleeps on. Made with the first kick, since most queues are never used.
    pub fn watch(&self) -> Option<&KickWatch> {
        self.watch.get()
    }

    /// Takes a new kick from the frontend, or takes it away.
    pub fn set_kick(&self, kick: Option<OwnedFd>) -> std::io::Result<()> {
        if self.watch.get().is_none() && kick.is_some() {
            let _ = self.watch.set(KickWatch::new()?);
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
        watch.wake();
        Ok(())
    }

    /// Takes a new call from the frontend, or takes it away. QEMU starts queues before it sets their calls:
    /// what was answered in between is signalled now.
    pub fn set_call(&self, call: Option<Arc<OwnedFd>>) {
        let mut state = self.state.lock();
        let owed = call.is_some() && std::mem::take(&mut state.call_owed);
        state.setup.call.clone_from(&call);
        drop(state);
        if let Some(call) = call.filter(|_| owed) {
            event::signal(call.as_fd());
        }
    }

    /// Changes the setup and lets the leader look at it.
    pub fn configure(&self, change: impl FnOnce(&mut Setup)) {
        let mut state = self.state.lock();
        change(&mut state.setup);
        if let Some(watch) = self.watch.get() {
            watch.wake();
        }
    }

    /// Guest memory was replaced: the ring follows at once, and the leader looks whether it runs now.
    pub fn follow_memory(&self) {
        if let Some((_, service)) = self.bound() {
            self.state.lock().follow_memory(service);
        }
        if let Some(watch) = self.watch.get() {
            watch.wake();
        }
    }

    /// Changes the rings' addresses. On a running ring this comes when logging is switched: what changed
    /// is seen at the next chain.
    pub fn set_addresses(&self, descriptors: u64, avail: u64, used: u64) {
        let mut state = self.state.lock();
        let s = &mut state.setup;
        let changed = (s.descriptors, s.avail, s.used) != (descriptors, avail, used);
        (s.descriptors, s.avail, s.used) = (descriptors, avail, used);
        state.stale |= changed;
    }

    /// Starts the queue's first thread once the frontend starts the queue.
    pub fn ensure_served(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if let Some(relief) = self.relief.get()
            && state.setup.ready
            && state.threads == 0
            && self.watch.get().is_some()
        {
            worker::add_thread(self, &mut state, relief);
        }
    }

    /// Whether the ring runs, so that its indexes are ours and not the frontend's to set.
    pub fn is_running(&self) -> bool {
        self.state.lock().ring.is_some()
    }

    /// Whether the frontend has set the queue up and started it.
    pub fn is_started(&self) -> bool {
        self.state.lock().is_runnable()
    }

    /// The next chain's index: what GET_VRING_BASE returns.
    pub fn next_avail(&self) -> u16 {
        let state = self.state.lock();
        state.ring.as_ref().map_or(state.setup.next_avail, Ring::next_avail)
    }

    /// To be called when a chain was answered: wakes whoever waits for the last one.
    pub fn answered(&self, state: &State) {
        if state.serving == 0 && !state.setup.ready {
            self.drained.notify_all();
        }
    }

    /// Ends the queue: drains it and waits for its threads, but those that the host does not let go.
    pub fn end(&self) {
        self.stop();
        self.state.lock().ending = true;
        self.followers.notify_all();
        if let Some(watch) = self.watch.get() {
            watch.wake();
        }
        let handles = std::mem::take(&mut *self.handles.lock());
        // A thread that the host does not let go ends by itself when it does, or with the process.
        let is_stuck = |handle: &JoinHandle<()>| self.state.lock().in_service.is_stuck(handle.thread().id());
        for handle in handles.into_iter().filter(|handle| !is_stuck(handle)) {
            // A thread that panicked has said so; the others still must be waited for.
            let _ = handle.join();
        }
    }
}
