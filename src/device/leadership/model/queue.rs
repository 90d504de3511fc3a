//! The modelled queue: ring, eventfds, locks and threads as `queue.rs`, `worker.rs` and `stop.rs` use them, on the model checker's
//! primitives. Its methods name the ones that they stand for.
#![cfg(test)]

use std::collections::{BTreeSet, VecDeque};

use shuttle::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
use shuttle::thread::{self, JoinHandle};

use super::Plan;
use crate::device::leadership::{Leadership, Next, Station, Term, run};

/// The ring in guest memory, with event indexes or with flags.
#[derive(Default)]
pub(super) struct Ring {
    pub(super) avail: AtomicU16,
    pub(super) avail_event: AtomicU16,
    /// VIRTQ_USED_F_NO_NOTIFY, without event indexes.
    pub(super) no_notify: AtomicBool,
    pub(super) used: AtomicU16,
    pub(super) used_event: AtomicU16,
}

/// An eventfd, and whoever sleeps on it: each signal ends one sleep, the present or the next one.
#[derive(Default)]
pub(super) struct Event {
    pub(super) is_set: Mutex<bool>,
    pub(super) set: Condvar,
}

impl Event {
    pub(super) fn signal(&self) {
        *self.is_set.lock().unwrap() = true;
        self.set.notify_one();
    }

    /// A wait that may end without a signal.
    pub(super) fn wait_for_a_while(&self) {
        thread::yield_now();
        std::mem::take(&mut *self.is_set.lock().unwrap());
    }

    pub(super) fn wait(&self) {
        let mut is_set = self.is_set.lock().unwrap();
        while !std::mem::take(&mut *is_set) {
            is_set = self.set.wait(is_set).unwrap();
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) leadership: Leadership,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
    pub(super) signalled: u16,
    pub(super) in_service: u16,
    /// Suspended requests whose answer is ready, and those that wait.
    pub(super) late: Vec<u16>,
    pub(super) suspended: Vec<u16>,
    /// Requests whose answer was pushed.
    pub(super) answered: BTreeSet<u16>,
    /// What the engine had no room for, in order; whether it has got room since; and how often it has.
    pub(super) throttled: VecDeque<u16>,
    pub(super) is_engine_full: bool,
    pub(super) engine_room: u64,
    pub(super) is_ready: bool,
    /// The first request is with the host, and was given up.
    pub(super) is_held: bool,
    pub(super) is_withdrawn: bool,
    /// Threads that sleep on the kick.
    pub(super) sleepers: u16,
    pub(super) is_collecting: bool,
}

/// An engine with room for one request.
#[derive(Default)]
pub(super) struct Engine {
    pub(super) request: Mutex<Option<u16>>,
    pub(super) submitted: Event,
    pub(super) finished: Mutex<Vec<u16>>,
}

pub(super) struct Queue {
    pub(super) plan: Plan,
    pub(super) engine: Engine,
    pub(super) ring: Ring,
    pub(super) state: Mutex<State>,
    pub(super) followers: Condvar,
    pub(super) drained: Condvar,
    pub(super) kick: Event,
    pub(super) call: Event,
    /// Tells the thread that answers suspended requests of one.
    pub(super) suspended: Event,
    /// The host holds up a request, and finishes it.
    pub(super) held: Event,
    pub(super) unblocked: Event,
    pub(super) guest_is_done: AtomicBool,
    pub(super) has_ended: AtomicBool,
    pub(super) handles: Mutex<Vec<JoinHandle<()>>>,
}

/// The guard of the queue's lock, which can be opened for a while.
pub(super) struct Guard<'q> {
    pub(super) queue: &'q Queue,
    pub(super) state: Option<MutexGuard<'q, State>>,
}

impl<'q> Guard<'q> {
    pub(super) fn new(queue: &'q Queue) -> Guard<'q> {
        Guard { queue, state: Some(queue.state.lock().unwrap()) }
    }

    pub(super) fn state(&mut self) -> &mut State {
        self.state.as_mut().unwrap()
    }

    pub(super) fn unlocked<R>(&mut self, act: impl FnOnce() -> R) -> R {
        self.state = None;
        let result = act();
        self.state = Some(self.queue.state.lock().unwrap());
        result
    }

    pub(super) fn wait(&mut self, condition: &Condvar) {
        self.state = Some(condition.wait(self.state.take().unwrap()).unwrap());
    }
}

pub(super) fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl Queue {
    pub(super) fn push_used(&self, guard: &mut Guard<'_>, number: u16) {
        let state = guard.state();
        assert!(state.answered.insert(number), "answered twice");
        state.next_used += 1;
        self.ring.used.store(state.next_used, Ordering::SeqCst);
    }

    pub(super) fn signal_call(&self, guard: &mut Guard<'_>) {
        let state = guard.state();
        let old = std::mem::replace(&mut state.signalled, state.next_used);
        if old != state.next_used && needs_event(self.ring.used_event.load(Ordering::SeqCst), state.next_used, old) {
            guard.unlocked(|| self.call.signal());
        }
    }

    pub(super) fn note_answered(&self, guard: &mut Guard<'_>) {
        // A stop gives up by its deadline; here as soon as nothing else is in service.
        if (guard.state().in_service == 0 || guard.state().is_held) && !guard.state().is_ready {
            self.drained.notify_all();
        }
    }

    /// As `Queue::answer_late`.
    pub(super) fn answer_late(&self, guard: &mut Guard<'_>) {
        while guard.state().is_ready
            && let Some(number) = guard.state().late.pop()
        {
            guard.state().in_service += 1;
            guard.unlocked(thread::yield_now);
            guard.state().in_service -= 1;
            self.push_used(guard, number);
            self.signal_call(guard);
            self.note_answered(guard);
        }
    }

    /// As `Worker::reap`.
    pub(super) fn reap(&self, guard: &mut Guard<'_>) {
        if !self.plan.has_engine {
            return;
        }
        let finished = guard.unlocked(|| {
            let finished = std::mem::take(&mut *self.engine.finished.lock().unwrap());
            if !finished.is_empty() {
                *self.engine.request.lock().unwrap() = None;
            }
            finished
        });
        if finished.is_empty() {
            return;
        }
        guard.state().engine_room += 1;
        guard.state().is_engine_full = false;
        if !guard.state().throttled.is_empty() {
            self.kick.signal();
        }
        for number in finished {
            guard.unlocked(thread::yield_now);
            guard.state().in_service -= 1;
            self.push_used(guard, number);
            self.note_answered(guard);
        }
        self.signal_call(guard);
    }

    /// As `Queue::stop`.
    pub(super) fn stop(&self) {
        let mut guard = Guard::new(self);
        guard.state().is_ready = false;
        while guard.state().in_service > 0 {
            if guard.state().is_held && guard.state().in_service == 1 {
                self.give_up(&mut guard);
                continue;
            }
            guard.wait(&self.drained);
        }
        self.signal_call(&mut guard);
    }

    /// As `Queue::give_up`.
    pub(super) fn give_up(&self, guard: &mut Guard<'_>) {
        let state = guard.state();
        state.is_held = false;
        state.is_withdrawn = true;
        state.in_service -= 1;
        state.leadership.lose_threads(1);
        self.followers.notify_one();
        self.kick.signal();
        self.push_used(guard, 1);
    }

    /// As the frontend's start of the queue.
    pub(super) fn start(self: &Arc<Self>) {
        let mut guard = Guard::new(self);
        guard.state().is_ready = true;
        if guard.state().leadership.threads() == 0 {
            add_thread(self, &mut guard);
        }
        guard.unlocked(|| self.kick.signal());
    }

    /// As `Queue::end`.
    pub(super) fn end(&self) {
        self.stop();
        Guard::new(self).state().leadership.end();
        self.followers.notify_all();
        self.kick.signal();
        loop {
            let Some(handle) = self.handles.lock().unwrap().pop() else { break };
            handle.join().unwrap();
        }
    }
}

pub(super) fn add_thread(queue: &Arc<Queue>, guard: &mut Guard<'_>) {
    if guard.state().leadership.begin_thread(queue.plan.threads_max) {
        let handle = {
            let queue = Arc::clone(queue);
            thread::spawn(move || {
                let mut worker = Worker { queue: Arc::clone(&queue) };
                let mut guard = Guard::new(&queue);
                run(&mut worker, &mut guard);
                guard.state().leadership.end_thread();
            })
        };
        queue.handles.lock().unwrap().push(handle);
    }
}

pub(super) struct Worker {
    pub(super) queue: Arc<Queue>,
}

fn is_likely() -> bool {
    shuttle::rand::Rng::gen_bool(&mut shuttle::rand::thread_rng(), 0.7)
}

/// A request, and how many wait behind it.
pub(super) struct Chain {
    pub(super) number: u16,
    pub(super) waiting: u16,
}

impl<'q> Station<Guard<'q>> for Worker {
    type Chain = Chain;

    fn leadership<'g>(&self, guard: &'g mut Guard<'q>) -> &'g mut Leadership {
        &mut guard.state().leadership
    }

    fn wait_as_follower(&self, guard: &mut Guard<'q>) -> bool {
        if self.queue.plan.times_out && shuttle::rand::Rng::gen_bool(&mut shuttle::rand::thread_rng(), 0.3) {
            guard.unlocked(thread::yield_now);
            return true;
        }
        guard.wait(&self.queue.followers);
        false
    }

    fn notify_follower(&self) {
        self.queue.followers.notify_one();
    }

    fn start_thread(&self, guard: &mut Guard<'q>) {
        add_thread(&self.queue, guard);
    }

    fn answer_late(&mut self, guard: &mut Guard<'q>) {
        self.queue.answer_late(guard);
        self.queue.reap(guard);
    }

    fn next(&mut self, guard: &mut Guard<'q>) -> Next<Chain> {
        let state = guard.state();
        if !state.throttled.is_empty() {
            if state.is_engine_full {
                return Next::Stopped;
            }
            return state.throttled.pop_front().map_or(Next::Stopped, |number| Next::Chain(Chain { number, waiting: 0 }));
        }
        if !state.is_ready {
            return Next::Stopped;
        }
        let waiting = self.queue.ring.avail.load(Ordering::SeqCst) - state.next_avail;
        if waiting == 0 {
            return Next::Empty;
        }
        state.next_avail += 1;
        state.in_service += 1;
        Next::Chain(Chain { number: state.next_avail, waiting: waiting - 1 })
    }

    fn gives_up(&mut self, _guard: &mut Guard<'q>, chain: &Chain) -> bool {
        self.queue.plan.is_slow && chain.waiting > 0 && is_likely()
    }

    fn goes_on(&self, guard: &mut Guard<'q>) -> bool {
        let next = guard.state().next_avail;
        self.queue.plan.is_slow && self.queue.ring.avail.load(Ordering::SeqCst) != next
    }

    fn serve(&mut self, guard: &mut Guard<'q>, chain: Chain, term: Term) {
        if !guard.state().leadership.leads(term) {
            self.queue.signal_call(guard);
        }
        let plan = self.queue.plan;
        if plan.gives_up && chain.number == 1 {
            guard.state().is_held = true;
            self.queue.held.signal();
            self.queue.drained.notify_all();
            guard.unlocked(|| self.queue.unblocked.wait());
            guard.state().is_held = false;
            if std::mem::take(&mut guard.state().is_withdrawn) {
                return guard.state().leadership.readmit_thread();
            }
        }
        if plan.has_engine && !chain.number.is_multiple_of(2) {
            let room_before = guard.state().engine_room;
            let engine = &self.queue.engine;
            let is_taken = guard.unlocked(|| {
                let mut request = engine.request.lock().unwrap();
                let has_room = request.is_none();
                if has_room {
                    *request = Some(chain.number);
                }
                drop(request);
                if has_room {
                    engine.submitted.signal();
                }
                has_room
            });
            if !is_taken {
                let state = guard.state();
                state.throttled.push_back(chain.number);
                state.is_engine_full = state.engine_room == room_before;
                if !state.leadership.leads(term) {
                    self.queue.kick.signal();
                }
            }
            return;
        }
        if plan.blocks && !chain.number.is_multiple_of(2) {
            guard.unlocked(|| self.queue.unblocked.wait());
        }
        guard.unlocked(thread::yield_now);
        guard.state().in_service -= 1;
        let each = self.queue.plan.suspend_each;
        if each > 0 && chain.number.is_multiple_of(each) {
            guard.state().suspended.push(chain.number);
            self.queue.suspended.signal();
        } else {
            self.queue.push_used(guard, chain.number);
        }
        if plan.blocks && chain.number.is_multiple_of(2) {
            self.queue.unblocked.signal();
        }
        if !guard.state().leadership.leads(term) {
            self.queue.signal_call(guard);
        }
        self.queue.note_answered(guard);
    }

    fn call(&mut self, guard: &mut Guard<'q>) -> bool {
        let has_any = guard.state().signalled != guard.state().next_used;
        if has_any && guard.state().is_ready && self.queue.plan.collects && is_likely() {
            guard.state().is_collecting = true;
            return false;
        }
        if has_any {
            self.queue.signal_call(guard);
        }
        has_any
    }

    fn poll(&mut self, guard: &mut Guard<'q>) -> bool {
        let next = guard.state().next_avail;
        let ring = &self.queue.ring;
        if std::mem::take(&mut guard.state().is_collecting) {
            ring.avail_event.store(next + 1, Ordering::SeqCst);
            if ring.avail.load(Ordering::SeqCst) < next + 2 {
                guard.unlocked(|| self.queue.kick.wait_for_a_while());
            }
            if ring.avail.load(Ordering::SeqCst) == guard.state().next_avail {
                self.queue.signal_call(guard);
            }
            return true;
        }
        self.queue.plan.polls && guard.unlocked(|| (0..2).any(|_| ring.avail.load(Ordering::SeqCst) != next))
    }

    fn enable_kicks(&self, guard: &mut Guard<'q>) -> bool {
        let next = guard.state().next_avail;
        self.queue.ring.avail_event.store(next, Ordering::SeqCst);
        self.queue.ring.no_notify.store(false, Ordering::SeqCst);
        self.queue.ring.avail.load(Ordering::SeqCst) != next
    }

    fn disable_kicks(&self, _guard: &mut Guard<'q>) {
        self.queue.ring.no_notify.store(true, Ordering::SeqCst);
    }

    fn sleep(&mut self, guard: &mut Guard<'q>) -> bool {
        guard.state().sleepers += 1;
        // A leader that loses the lead by a stop that gives up may not have woken yet.
        let may_be_more = guard.state().leadership.is_ending() || self.queue.plan.gives_up;
        assert!(guard.state().sleepers == 1 || may_be_more, "two threads sleep on the kick");
        let kick = &self.queue.kick;
        guard.unlocked(|| kick.wait());
        guard.state().sleepers -= 1;
        true
    }

    fn wake(&self) {
        self.queue.kick.signal();
    }

    fn note_awake(&mut self) {}
}
