//! The leader protocol under a model checker (shuttle): the code of `leadership.rs` itself, with a queue, a guest, a watchdog, a
//! thread that answers suspended requests, and a stop around it that are modelled. Every lock, condition variable and word of
//! the ring is a point at which another thread may run; memory is sequentially consistent. No wait of the model times out, so that
//! no property rests on a timeout, unless a run tries that too.
//!
//! A lost wake-up is a deadlock here, which the checker reports with its schedule.
#![cfg(test)]

mod queue;

use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;

use super::{Look, hand_over};
use queue::{Engine, Event, Guard, Queue, Ring, Worker, needs_event};

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
    /// Leaders look at the ring before they sleep.
    polls: bool,
    /// Leaders wait for a second request, for a while, before they signal the call.
    collects: bool,
    /// Kicks are suppressed by the used ring's flags instead of event indexes.
    has_flags: bool,
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
            let is_wanted = if plan.has_flags {
                !ring.no_notify.load(Ordering::SeqCst)
            } else {
                needs_event(ring.avail_event.load(Ordering::SeqCst), submitted, old)
            };
            if is_wanted {
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
    let station = Worker { queue: Arc::clone(queue) };
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
    polls: false,
    collects: false,
    has_flags: false,
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
fn leaders_that_poll_lose_no_wake_up() {
    try_schedules("polling", Plan { polls: true, threads_max: 1, ..PLAN });
    try_schedules("polling, stop", Plan { polls: true, restarts: true, burst: 3, is_slow: true, looks: 2, ..PLAN });
    try_schedules("polling, late answers", Plan { polls: true, suspend_each: 2, looks: 2, is_slow: true, ..PLAN });
    try_schedules("polling, giving up", Plan { polls: true, gives_up: true, restarts: true, burst: 3, looks: 8, threads_max: 4, ..PLAN });
    try_schedules("polling, engine", Plan { polls: true, has_engine: true, restarts: true, burst: 4, looks: 4, ..PLAN });
}

#[test]
fn leaders_that_collect_requests_lose_no_wake_up_and_call() {
    try_schedules("collecting", Plan { collects: true, threads_max: 1, ..PLAN });
    try_schedules("collecting, stop", Plan { collects: true, restarts: true, burst: 3, threads_max: 2, looks: 2, ..PLAN });
    let plan =
        Plan { collects: true, gives_up: true, restarts: true, burst: 3, bursts: 3, looks: 8, is_slow: true, threads_max: 4, ..PLAN };
    try_schedules("collecting, giving up", plan);
}

#[test]
fn kicks_that_are_suppressed_by_flags_are_not_missed() {
    let flags = Plan { has_flags: true, polls: true, restarts: true, burst: 3, is_slow: true, ..PLAN };
    try_schedules("flags, polling, stop", Plan { looks: 2, ..flags });
    try_schedules("flags, polling, giving up", Plan { gives_up: true, looks: 8, threads_max: 4, ..flags });
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
