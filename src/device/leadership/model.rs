//! The leader protocol under a model checker (shuttle): the code of `leadership.rs` itself, with a queue, a guest, a watchdog, a
//! thread that answers suspended requests, and a stop around it that are modelled. Every lock, condition variable and word of
//! the ring is a point at which another thread may run; memory is sequentially consistent. Neither waits of the model ever time
//! out, so that no property rests on a timeout, unless a run tries that too.
//!
//! A lost wake-up is a deadlock here, which the checker reports with its schedule.
#![cfg(test)]

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};

use shuttle::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
use shuttle::thread::{self, JoinHandle};

use super::{Leadership, Look, Next, Station, Term, hand_over, run};

/// What a run tries.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Requests that the guest has under way at a time, and how many times it waits for all of them.
    burst: u16,
    bursts: u16,
    threads_max: u16,
    /// Every so many requests one is suspended, and answered by another thread; 0 for none.
    suspend_each: u16,
    /// Looks of the watchdog.
    looks: u16,
    /// The leader takes every request for a slow one, and hands over where more wait.
    is_slow: bool,
    /// The queue is stopped and started again while the guest waits.
    restarts: bool,
    /// Every other request is finished by the host only once the one behind it is answered.
    blocks: bool,
    /// The host finishes the first request only after the stop has given it up.
    gives_up: bool,
    /// Every other request goes to an engine, which takes one at a time and finishes it on a thread of its own.
    has_engine: bool,
    /// A follower may find that it waited long enough.
    times_out: bool,
}

/// The ring in guest memory, with event indexes.
#[derive(Default)]
struct Ring {
    avail: AtomicU16,
    avail_event: AtomicU16,
    used: AtomicU16,
    used_event: AtomicU16,
}

/// An eventfd, and whoever sleeps on it: each signal ends one sleep, the present or the next one.
#[derive(Default)]
struct Event {
    is_set: Mutex<bool>,
    set: Condvar,
}

impl Event {
    fn signal(&self) {
        *self.is_set.lock().unwrap() = true;
        self.set.notify_one();
    }

    fn wait(&self) {
        let mut is_set = self.is_set.lock().unwrap();
        while !std::mem::take(&mut *is_set) {
            is_set = self.set.wait(is_set).unwrap();
        }
    }
}

#[derive(Default)]
struct State {
    leadership: Leadership,
    next_avail: u16,
    next_used: u16,
    signalled: u16,
    in_service: u16,
    /// Suspended requests whose answer is ready, and those that wait.
    late: Vec<u16>,
    suspended: Vec<u16>,
    /// Requests whose answer was pushed.
    answered: BTreeSet<u16>,
    /// What the engine had no room for, in order; whether it has got room since; and how often it has.
    throttled: VecDeque<u16>,
    is_engine_full: bool,
    engine_room: u64,
    is_ready: bool,
    /// The first request is with the host, and was given up.
    is_held: bool,
    is_withdrawn: bool,
    /// Threads that sleep on the kick.
    sleepers: u16,
}

/// An engine with room for one request.
#[derive(Default)]
struct Engine {
    request: Mutex<Option<u16>>,
    submitted: Event,
    finished: Mutex<Vec<u16>>,
}

struct Queue {
    plan: Plan,
    engine: Engine,
    ring: Ring,
    state: Mutex<State>,
    followers: Condvar,
    drained: Condvar,
    kick: Event,
    call: Event,
    /// Tells the thread that answers suspended requests of one.
    suspended: Event,
    /// The host holds up a request, and finishes it.
    held: Event,
    unblocked: Event,
    guest_is_done: AtomicBool,
    has_ended: AtomicBool,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

/// The guard of the queue's lock, which can be opened for a while.
struct Guard<'q> {
    queue: &'q Queue,
    state: Option<MutexGuard<'q, State>>,
}

impl<'q> Guard<'q> {
    fn new(queue: &'q Queue) -> Guard<'q> {
        Guard { queue, state: Some(queue.state.lock().unwrap()) }
    }

    fn state(&mut self) -> &mut State {
        self.state.as_mut().unwrap()
    }

    fn unlocked<R>(&mut self, act: impl FnOnce() -> R) -> R {
        self.state = None;
        let result = act();
        self.state = Some(self.queue.state.lock().unwrap());
        result
    }

    fn wait(&mut self, condition: &Condvar) {
        self.state = Some(condition.wait(self.state.take().unwrap()).unwrap());
    }
}

fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl Queue {
    fn push_used(&self, guard: &mut Guard<'_>, number: u16) {
        let state = guard.state();
        assert!(state.answered.insert(number), "answered twice");
        state.next_used += 1;
        self.ring.used.store(state.next_used, Ordering::SeqCst);
    }

    fn signal_call(&self, guard: &mut Guard<'_>) {
        let state = guard.state();
        let old = std::mem::replace(&mut state.signalled, state.next_used);
        if old != state.next_used && needs_event(self.ring.used_event.load(Ordering::SeqCst), state.next_used, old) {
            guard.unlocked(|| self.call.signal());
        }
    }

    fn note_answered(&self, guard: &mut Guard<'_>) {
        // A stop gives up by its deadline; here as soon as nothing else is in service.
        if (guard.state().in_service == 0 || guard.state().is_held) && !guard.state().is_ready {
            self.drained.notify_all();
        }
    }

    /// As `Queue::answer_late`.
    fn answer_late(&self, guard: &mut Guard<'_>) {
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
    fn reap(&self, guard: &mut Guard<'_>) {
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
    fn stop(&self) {
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
    fn give_up(&self, guard: &mut Guard<'_>) {
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
    fn start(self: &Arc<Self>) {
        let mut guard = Guard::new(self);
        guard.state().is_ready = true;
        if guard.state().leadership.threads() == 0 {
            add_thread(self, &mut guard);
        }
        guard.unlocked(|| self.kick.signal());
    }

    /// As `Queue::end`.
    fn end(&self) {
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

fn add_thread(queue: &Arc<Queue>, guard: &mut Guard<'_>) {
    if guard.state().leadership.begin_thread(queue.plan.threads_max) {
        let handle = {
            let queue = Arc::clone(queue);
            thread::spawn(move || {
                let mut worker = Worker { queue: Arc::clone(&queue), term: Cell::new(None) };
                let mut guard = Guard::new(&queue);
                run(&mut worker, &mut guard);
                guard.state().leadership.end_thread();
            })
        };
        queue.handles.lock().unwrap().push(handle);
    }
}

struct Worker {
    queue: Arc<Queue>,
    term: Cell<Option<Term>>,
}

/// A request, and how many wait behind it.
struct Chain {
    number: u16,
    waiting: u16,
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

    fn is_slow(&self, chain: &Chain) -> bool {
        self.queue.plan.is_slow && chain.waiting > 0
    }

    fn serve(&mut self, guard: &mut Guard<'q>, chain: Chain, term: Term) {
        self.term.set(Some(term));
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
        if has_any {
            self.queue.signal_call(guard);
        }
        has_any
    }

    fn enable_kicks(&self, guard: &mut Guard<'q>) -> bool {
        let next = guard.state().next_avail;
        self.queue.ring.avail_event.store(next, Ordering::SeqCst);
        self.queue.ring.avail.load(Ordering::SeqCst) != next
    }

    fn disable_kicks(&self, _guard: &mut Guard<'q>) {}

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

/// The guest: keeps `burst` requests under way, and sleeps until all of them are answered.
fn guest(queue: &Queue) {
    let (ring, plan) = (&queue.ring, queue.plan);
    let mut submitted = 0;
    for _ in 0..plan.bursts {
        for _ in 0..plan.burst {
            let old = submitted;
            submitted += 1;
            ring.avail.store(submitted, Ordering::SeqCst);
            if needs_event(ring.avail_event.load(Ordering::SeqCst), submitted, old) {
                queue.kick.signal();
            }
        }
        let mut taken = ring.used.load(Ordering::SeqCst);
        while taken != submitted {
            ring.used_event.store(taken, Ordering::SeqCst);
            let used = ring.used.load(Ordering::SeqCst);
            assert!(used <= submitted, "answered more than once");
            if used == taken {
                queue.call.wait();
            }
            taken = ring.used.load(Ordering::SeqCst);
        }
    }
    queue.guest_is_done.store(true, Ordering::SeqCst);
}

/// As the thread that tries locks again: answers what is suspended.
fn answer_suspended(queue: &Queue) {
    while !queue.has_ended.load(Ordering::SeqCst) {
        queue.suspended.wait();
        let mut guard = Guard::new(queue);
        let mut suspended = std::mem::take(&mut guard.state().suspended);
        guard.state().late.append(&mut suspended);
        queue.answer_late(&mut guard);
    }
}

/// The engine's thread: each completion is an event on what the leader sleeps on.
fn finish_transfers(queue: &Queue) {
    let engine = &queue.engine;
    while !queue.has_ended.load(Ordering::SeqCst) {
        engine.submitted.wait();
        if let Some(number) = *engine.request.lock().unwrap() {
            engine.finished.lock().unwrap().push(number);
        }
        queue.kick.signal();
    }
}

/// As `watchdog.rs`.
fn watchdog(queue: &Arc<Queue>) {
    let mut turns_seen = 0;
    let station = Worker { queue: Arc::clone(queue), term: Cell::new(None) };
    for _ in 0..queue.plan.looks {
        if queue.guest_is_done.load(Ordering::SeqCst) {
            return;
        }
        let mut guard = Guard::new(queue);
        let has_requests = guard.state().in_service > 0;
        if guard.state().leadership.look(&mut turns_seen, has_requests) == Look::Stalled {
            hand_over(&station, &mut guard);
            queue.signal_call(&mut guard);
        }
        drop(guard);
        thread::yield_now();
    }
}

fn check(plan: Plan) {
    let queue = Arc::new(Queue {
        plan,
        engine: Engine::default(),
        ring: Ring::default(),
        state: Mutex::default(),
        followers: Condvar::new(),
        drained: Condvar::new(),
        kick: Event::default(),
        call: Event::default(),
        suspended: Event::default(),
        held: Event::default(),
        unblocked: Event::default(),
        guest_is_done: AtomicBool::new(false),
        has_ended: AtomicBool::new(false),
        handles: Mutex::default(),
    });
    queue.start();
    let on_queue = |act: fn(&Arc<Queue>)| {
        let queue = Arc::clone(&queue);
        thread::spawn(move || act(&queue))
    };
    let guest = on_queue(|queue| guest(queue));
    let locks = (plan.suspend_each > 0).then(|| on_queue(|queue| answer_suspended(queue)));
    let engine = plan.has_engine.then(|| on_queue(|queue| finish_transfers(queue)));
    let watchdog = (plan.looks > 0).then(|| on_queue(watchdog));
    if plan.restarts {
        if plan.gives_up {
            queue.held.wait();
        }
        queue.stop();
        queue.start();
    }
    guest.join().unwrap();
    // What the host held up comes back when nobody waits for it.
    queue.unblocked.signal();
    if let Some(watchdog) = watchdog {
        watchdog.join().unwrap();
    }
    queue.end();
    queue.has_ended.store(true, Ordering::SeqCst);
    if let Some(locks) = locks {
        queue.suspended.signal();
        locks.join().unwrap();
    }
    if let Some(engine) = engine {
        queue.engine.submitted.signal();
        engine.join().unwrap();
    }
    let state = queue.state.lock().unwrap();
    assert_eq!(state.answered.len(), usize::from(plan.burst * plan.bursts));
    assert_eq!((state.next_used, state.in_service, state.leadership.threads()), (plan.burst * plan.bursts, 0, 0));
}

const PLAN: Plan = Plan {
    burst: 2,
    bursts: 2,
    threads_max: 2,
    suspend_each: 0,
    looks: 0,
    is_slow: false,
    restarts: false,
    blocks: false,
    gives_up: false,
    has_engine: false,
    times_out: false,
};

/// Schedules of each plan; GATHERFS_SCHEDULES asks for others.
fn schedules() -> usize {
    std::env::var("GATHERFS_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
}

fn try_schedules(name: &str, plan: Plan) {
    let schedules = schedules();
    shuttle::check_random(move || check(plan), schedules);
    // Few changes of thread, at any place: what a random choice at each step rarely tries.
    if !plan.times_out {
        shuttle::check_pct(move || check(plan), schedules, 4);
    }
    println!("{name}: {schedules} schedules at random, as many with few preemptions: {plan:?}");
}

#[test]
fn a_leader_that_serves_alone_loses_no_wake_up() {
    try_schedules("alone", Plan { threads_max: 1, ..PLAN });
}

#[test]
fn leaders_that_hand_over_lose_no_wake_up() {
    try_schedules("hand-over", Plan { burst: 3, threads_max: 3, is_slow: true, ..PLAN });
}

#[test]
fn leaders_that_are_relieved_lose_no_wake_up() {
    try_schedules("relief", Plan { looks: 3, is_slow: true, ..PLAN });
    try_schedules("relief of the only thread", Plan { looks: 3, threads_max: 1, ..PLAN });
}

#[test]
fn late_answers_reach_the_guest() {
    try_schedules("late answers", Plan { suspend_each: 2, looks: 2, is_slow: true, ..PLAN });
}

#[test]
fn a_stop_ends_and_a_start_goes_on() {
    try_schedules("stop", Plan { restarts: true, suspend_each: 3, burst: 3, is_slow: true, looks: 2, ..PLAN });
}

#[test]
fn a_request_that_the_host_holds_up_holds_up_no_other() {
    // The watchdog looks as long as it takes.
    let plan = Plan { blocks: true, bursts: 3, looks: u16::MAX, ..PLAN };
    let schedules = schedules();
    shuttle::check_random(move || check(plan), schedules);
    println!("held up: {schedules} schedules at random: {plan:?}");
}

#[test]
fn a_stop_that_gives_up_leaves_a_queue_that_serves() {
    try_schedules(
        "giving up",
        Plan { gives_up: true, restarts: true, burst: 3, bursts: 3, looks: 8, is_slow: true, threads_max: 4, ..PLAN },
    );
    try_schedules("giving up the only thread", Plan { gives_up: true, restarts: true, threads_max: 1, ..PLAN });
}

#[test]
fn requests_that_an_engine_delays_are_all_answered() {
    try_schedules("engine", Plan { has_engine: true, burst: 3, threads_max: 1, ..PLAN });
    try_schedules("engine, many leaders", Plan { has_engine: true, burst: 4, threads_max: 3, is_slow: true, looks: 4, ..PLAN });
    try_schedules("engine, stop", Plan { has_engine: true, restarts: true, burst: 4, threads_max: 2, is_slow: true, looks: 4, ..PLAN });
}

#[test]
fn followers_that_leave_are_not_missed() {
    try_schedules("time-outs", Plan { burst: 3, threads_max: 3, is_slow: true, looks: 2, times_out: true, ..PLAN });
}

#[test]
fn schedules_in_order_of_the_smallest_queue() {
    let bound = schedules() * 10;
    let tried = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&tried);
    let plan = Plan { burst: 1, bursts: 1, threads_max: 1, ..PLAN };
    shuttle::check_dfs(
        move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            check(plan);
        },
        Some(bound),
    );
    println!("depth first: {} schedules, of at most {bound}: {plan:?}", tried.load(std::sync::atomic::Ordering::Relaxed));
}
