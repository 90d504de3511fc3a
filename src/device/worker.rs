//! The threads that serve a queue: each is a [`Station`] of the leader protocol (`leadership.rs`).
//!
//! Quick requests are served one after the other; each answer is in the used ring at once, and the call is signalled for several
//! of them (`calling.rs`).

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::calling::{ANSWERS_MAX, WAKE_UP};
use super::collecting::{COLLECT_TIME, Collecting, enough};
use super::in_flight::{InFlight, SlotIndex, UsedEntry, Vacant};
use super::leadership::{self, Leadership, Next, Station, Term};
use super::overlap::Overlap;
use super::polling::Look;
use super::queue::{Bound, Queue, State, Work, signal_call};
use super::queue_cpus::OfQueue;
use super::queue_engine::QueueEngine;
use super::serve::{FIRST_LEN, serve, serve_again};
use super::served::Served;
use super::spares::Spares;
use super::transfer;
use crate::io::{Engine, Finished};
use crate::state::HeadTwice;
use crate::sys::{process, thread};
use crate::types::QueueIndex;
use crate::warn_limited;

/// FORGETs do not wait for anything: one thread serves them and one may relieve it.
const HIPRIO_THREADS_MAX: u16 = 2;
/// A follower without work leaves after this.
const FOLLOWER_IDLE_MAX: Duration = Duration::from_secs(10);
/// Threads that may be stuck in the host, with requests that were withdrawn. With more no thread is started: a host that does not
/// answer would otherwise take threads and memory at each reset of the VM.
const STUCK_MAX: u64 = 512;

/// Starts the queue's first thread once the frontend starts the queue.
pub(super) fn ensure_served(queue: &Arc<Queue>) {
    if add_missing(queue, &mut queue.state.lock())
        && let Some(Bound { index, service, .. }) = queue.bound()
        && service.cpus.of(*index) == OfQueue::Missing
    {
        let index = index.0;
        warn_limited!(
            service.limiter;
            "--queue-cpus has no list for queue {index}, whose threads are not bound; give as many lists as the VMM has request queues"
        );
    }
}

/// Starts the queue's first thread where the queue is to be served and has none, perhaps since there was no room for one. Whether it had
/// none. The state is the caller's locked one.
pub(super) fn add_missing(queue: &Arc<Queue>, state: &mut State) -> bool {
    let lacks_one = state.setup.ready && state.leadership.threads() == 0 && queue.watch().is_some();
    if lacks_one {
        add_thread(queue, state);
    }
    lacks_one
}

/// Starts one more thread for `queue` if it may have one. The state is the caller's locked one.
fn add_thread(queue: &Arc<Queue>, state: &mut State) {
    let Some(Bound { index, service, activity }) = queue.bound() else { return };
    if service.stuck_threads() >= STUCK_MAX {
        warn_limited!(service.limiter; "the host does not finish {STUCK_MAX} requests that were given up: no more threads are started until it does");
        return;
    }
    let threads_max = if *index == QueueIndex::HIPRIO { HIPRIO_THREADS_MAX } else { service.options.threads_per_queue };
    if !state.leadership.begin_thread(threads_max) {
        return;
    }
    let name = if *index == QueueIndex::HIPRIO { "hiprio".to_owned() } else { format!("request {}", index.0) };
    let thread = {
        let queue = Arc::clone(queue);
        thread::start(&name, move || serve_queue(&queue))
    };
    match thread {
        Ok(handle) => {
            let mut handles = queue.handles.lock();
            handles.retain(|h| !h.is_finished());
            handles.push(handle);
        }
        Err(e) => {
            state.leadership.end_thread();
            if state.leadership.threads() == 0 {
                warn_limited!(service.limiter; "cannot start a thread for queue {}: {e}; it is tried again, and the queue waits", index.0);
                activity.note();
            } else {
                // The threads that are there go on serving.
                tracing::debug!("cannot start another thread for queue {}: {e}", index.0);
            }
        }
    }
}

/// A thread's life.
fn serve_queue(queue: &Arc<Queue>) {
    // Threads start with the first kick, so there is an engine.
    let (Some(bound), Some(engine)) = (queue.bound(), queue.engine()) else { return };
    // Also a follower, which the watchdog may have started.
    if let OfQueue::Only(cpus) = bound.service.cpus.of(bound.index)
        && let Err(e) = cpus.bind_thread()
    {
        let index = bound.index.0;
        warn_limited!(bound.service.limiter; "--queue-cpus: a thread of queue {index} is not bound to CPUs {cpus}: {e}; see its cpuset");
    }
    let (share, generation) = bound.service.present_share();
    let entered = share.enter_thread();
    if let Err(e) = entered {
        // Without it the name of a descriptor would be a path in the share.
        tracing::error!("a worker cannot enter /proc/self/fd and leaves: {e}");
        queue.state.lock().leadership.end_thread();
        return;
    }
    let _seat = (bound.index != QueueIndex::HIPRIO).then(|| bound.service.lookers.enter());
    let (slot, claim) = queue.state.lock().in_flight.enter();
    let spares = Spares::new(queue, bound, (slot, claim), (share, generation));
    let mut worker = Worker {
        queue,
        bound,
        engine,
        thread: std::thread::current().id(),
        spares,
        finished: Vec::new(),
        scratch: Vec::new(),
        is_watched: false,
        has_learned: false,
        now: Instant::now(),
        is_now_old: false,
        had_company: false,
        overlap: Overlap::of_cpus(bound.service.options.cpus),
        collecting: Collecting::default(),
        is_collecting: false,
    };
    // Dropped before the worker, whose storage takes the lock when it is dropped.
    let mut state = queue.state.lock();
    leadership::run(&mut worker, &mut state);
    state.leadership.end_thread();
}

/// [`Served`], with an answered request taken apart.
enum Outcome {
    Answered((UsedEntry, Vacant)),
    Submitted(Option<Vacant>),
    Throttled(InFlight),
}

/// A serving thread.
struct Worker<'q> {
    queue: &'q Arc<Queue>,
    bound: &'q Bound,
    engine: &'q QueueEngine,
    thread: ThreadId,
    /// Storage for the requests to come.
    spares: Spares<'q>,
    /// Room for what the engine has finished.
    finished: Vec<Finished<InFlight>>,
    /// Room for replies that are put together here: directory entries, attribute values.
    scratch: Vec<u8>,
    /// Whether this thread looks for itself sleeping in the present request.
    is_watched: bool,
    /// Its last request has shown that the queue's requests wait for the host.
    has_learned: bool,
    /// When the last request was done, or the leader woke up.
    now: Instant,
    /// A call was signalled since.
    is_now_old: bool,
    /// Others arrived while the last request was served.
    had_company: bool,
    overlap: Overlap,
    collecting: Collecting,
    /// More FORGETs are to be waited for before the call is signalled.
    is_collecting: bool,
}

type Guard<'g> = MutexGuard<'g, State>;

impl Worker<'_> {
    /// The driver has offered `head` while it is in flight. The second chain is not served, as neither its buffers nor its place are its own.
    fn note_dropped(&self, state: &mut Guard<'_>, head: u16) {
        let (service, index) = (&self.bound.service, self.bound.index.0);
        MutexGuard::bump(state);
        service.metrics.heads_twice.increment();
        warn_limited!(service.limiter; "the guest offers head {head} of queue {index} again, which is in flight; the second chain is dropped");
    }

    /// Puts an answer into the used ring, unless the request was withdrawn and is answered already, and keeps its storage.
    fn finish(&mut self, state: &mut Guard<'_>, (used, vacant): (UsedEntry, Vacant)) {
        if state.in_flight.end(used.slot) {
            state.push_used(used.head, used.len);
        } else {
            self.note_late();
        }
        self.spares.keep(state, vacant);
    }

    /// The host has finished a request that was withdrawn.
    fn note_late(&self) {
        self.bound.service.metrics.withdrawn_finished.increment();
        let index = self.bound.index.0;
        tracing::warn!("the host has finished a request that was given up when queue {index} was stopped; its result is discarded");
    }

    /// This thread has come back from the host: true if the request at `slot` was withdrawn from it meanwhile.
    fn note_returned(&self, state: &mut State, slot: SlotIndex) -> bool {
        let was_stuck = state.in_flight.note_returned(slot, self.thread);
        if was_stuck {
            self.bound.service.metrics.stuck_returned.increment();
            state.leadership.readmit_thread();
        }
        was_stuck
    }

    /// Signals the call for what was answered, if the guest wants one.
    fn signal(&mut self, guard: &mut Guard<'_>) {
        signal_call(guard, &self.bound.service, self.now);
        self.collecting.note_called();
        self.is_now_old = true;
    }

    fn is_hiprio(&self) -> bool {
        self.bound.index == QueueIndex::HIPRIO
    }

    /// Whether one more thread may serve slow requests.
    fn has_room(&self, state: &State) -> bool {
        self.overlap.has_room(&state.pace, state.leadership.serving(), self.now)
    }

    /// Waits for more FORGETs, if that was found worth it, and then signals the call. True if there may be something to do.
    fn collect(&mut self, guard: &mut Guard<'_>) -> bool {
        if !std::mem::take(&mut self.is_collecting) {
            return false;
        }
        // Where the guest cannot be asked to kick before its ring is full, it is not made to wait.
        let wait = guard.ring.as_mut().and_then(|ring| ring.enable_kick_after(enough(ring.size()))).zip(self.queue.watch());
        if let Some((false, watch)) = wait {
            let woken = MutexGuard::unlocked(guard, || watch.wait_for(COLLECT_TIME));
            self.bound.service.metrics.kicks.add(woken.kicked.into());
        }
        let has_found = guard.has_waiting();
        self.collecting.note(has_found);
        if !has_found {
            signal_call(guard, &self.bound.service, Instant::now());
            self.collecting.note_called();
        }
        true
    }

    /// Starts the transfers that the engine has collected. True if there were any; the lock was open then.
    fn flush(&self, state: &mut Guard<'_>) -> bool {
        let has_collected = self.engine.has_collected();
        if has_collected {
            MutexGuard::unlocked(state, || self.engine.flush());
        }
        has_collected
    }

    /// Finishes what the engine has brought to an end.
    fn reap(&mut self, state: &mut Guard<'_>) {
        let bound = self.bound;
        if !self.engine.has_finished() {
            return;
        }
        let (engine, finished) = (self.engine, &mut self.finished);
        MutexGuard::unlocked(state, || engine.reap(finished));
        if self.finished.is_empty() {
            return;
        }
        if state.note_engine_room() {
            // The lock was open: another thread may lead, and sleep because the engine was full.
            self.queue.wake();
        }
        while let Some(finished) = self.finished.pop() {
            let slot = finished.transfer.owner.slot();
            if state.in_flight.resume(slot, self.thread) {
                let answered = MutexGuard::unlocked(state, || transfer::finish(&bound.service, finished).finish());
                self.finish(state, answered);
                self.note_returned(state, slot);
            } else {
                self.note_late();
                MutexGuard::unlocked(state, || drop(finished));
            }
            self.queue.note_answered(state);
        }
        state.follow_memory(&bound.service);
        signal_call(state, &bound.service, Instant::now());
    }
}

impl<'g> Station<Guard<'g>> for Worker<'_> {
    type Chain = Work;

    fn leadership<'a>(&self, guard: &'a mut Guard<'g>) -> &'a mut Leadership {
        &mut guard.leadership
    }

    fn wait_as_follower(&self, guard: &mut Guard<'g>) -> bool {
        self.queue.followers.wait_for(guard, FOLLOWER_IDLE_MAX).timed_out()
    }

    fn notify_follower(&self) {
        self.queue.followers.notify_one();
    }

    fn start_thread(&self, guard: &mut Guard<'g>) {
        add_thread(self.queue, guard);
    }

    fn answer_late(&mut self, guard: &mut Guard<'g>) {
        self.queue.answer_late(guard);
        self.reap(guard);
    }

    fn next(&mut self, guard: &mut Guard<'g>) -> Next<Work> {
        guard.next(&self.bound.service)
    }

    fn gives_up(&mut self, guard: &mut Guard<'g>, chain: &Work) -> bool {
        let waiting = matches!(chain, Work::New { waiting, .. } if *waiting > 0);
        self.is_watched = guard.pace.is_slow() && (waiting || guard.leadership.serving() > 1);
        let gives_up = waiting && (guard.pace.waits() || guard.pace.is_slow() && self.has_room(guard));
        if gives_up {
            self.bound.service.metrics.followers_woken.increment();
        }
        gives_up
    }

    fn goes_on(&self, guard: &mut Guard<'g>) -> bool {
        // Before it was known that requests wait for the host, a leader may have begun one with others behind it.
        guard.has_waiting() && if guard.pace.waits() { self.has_learned } else { guard.pace.is_slow() && self.has_room(guard) }
    }

    fn serve(&mut self, guard: &mut Guard<'g>, chain: Work, term: Term) {
        let service = &self.bound.service;
        // The lead was handed over: the next leader may sleep before these answers are signalled.
        let leads = guard.leadership.leads(term);
        let room_before = guard.engine_room();
        if std::mem::take(&mut self.is_now_old) {
            self.now = Instant::now();
        }
        let (slot, request) = match chain {
            Work::New { popped, waiting } => {
                let spare = self.spares.take(guard);
                guard.in_flight.begin(spare.slot(), popped.head, self.now, self.thread);
                (spare.slot(), Ok((spare, popped, waiting == 0 && !self.had_company)))
            }
            Work::Dropped(HeadTwice(head)) => return self.note_dropped(guard, head),
            Work::Again(request) => {
                let slot = request.slot();
                if !guard.in_flight.resume(slot, self.thread) {
                    self.note_late();
                    return MutexGuard::unlocked(guard, || drop(request));
                }
                (slot, Err(request))
            }
        };
        if !leads {
            signal_call(guard, service, self.now);
        }
        let is_watched = self.is_watched;
        let (served, has_waited) = MutexGuard::unlocked(guard, || {
            let sleeps = is_watched.then(process::sleeps);
            let served = match request {
                Ok((spare, popped, is_alone)) => serve(service, self.engine, spare.begin(popped, FIRST_LEN, is_alone), &mut self.scratch),
                Err(request) => serve_again(service, self.engine, request, &mut self.scratch),
            };
            // The chain's memory is released with the lock open: it may be the last that keeps old guest memory mapped.
            let outcome = match served {
                Served::Answered(answered) => Outcome::Answered(answered.finish()),
                Served::Submitted(vacant) => Outcome::Submitted(vacant),
                Served::Throttled(request) => Outcome::Throttled(request),
            };
            (outcome, sleeps.map(|before| process::sleeps() != before))
        });
        let done = Instant::now();
        // What an engine took over was quick, although it may have entered the kernel for a batch.
        let took = if matches!(served, Outcome::Submitted(_)) { Duration::ZERO } else { done - self.now };
        let was_waiting = guard.pace.waits();
        guard.pace.note(took, has_waited);
        self.has_learned = guard.pace.waits() && !was_waiting;
        self.now = done;
        // Before the answer, after which the guest may send the next one. Only an engine that takes transfers over asks.
        self.had_company = self.engine.completion_event().is_some() && guard.has_waiting();
        match served {
            Outcome::Answered(answered) => self.finish(guard, answered),
            Outcome::Submitted(Some(vacant)) => self.spares.keep(guard, vacant),
            Outcome::Submitted(None) => {}
            Outcome::Throttled(request) => {
                service.metrics.throttled.increment();
                guard.throttle(request, room_before);
                if !guard.leadership.leads(term) {
                    self.queue.wake();
                }
            }
        }
        if !guard.leadership.leads(term) {
            // The next leader may sleep already.
            self.flush(guard);
        }
        if self.note_returned(guard, slot) {
            return;
        }
        // Guest memory that was replaced while this request used it.
        guard.follow_memory(service);
        let leads = guard.leadership.leads(term);
        let unsignalled = guard.unsignalled();
        let is_due = match self.is_hiprio() {
            true => unsignalled >= ANSWERS_MAX,
            false => guard.calling.is_due(unsignalled, done, || guard.pace.count_in(WAKE_UP)),
        };
        if !leads || guard.pace.waits() || is_due {
            self.signal(guard);
        }
        self.queue.note_answered(guard);
    }

    fn call(&mut self, guard: &mut Guard<'g>) -> bool {
        let (has_any, has_started) = (guard.unsignalled() > 0, self.flush(guard));
        if has_any && self.is_hiprio() && guard.may_pop() && self.collecting.is_worth_it(self.now) {
            self.is_collecting = true;
            return false;
        }
        if has_any {
            self.signal(guard);
        }
        has_any || has_started
    }

    fn poll(&mut self, guard: &mut Guard<'g>) -> bool {
        if self.is_hiprio() {
            return self.collect(guard);
        }
        let service = &self.bound.service;
        if !service.lookers.has_room() {
            return false;
        }
        let Some(window) = guard.polling.window(service.options.poll, Instant::now) else { return false };
        let Some(arrivals) = guard.arrivals() else { return false };
        let (queue, engine, wakes) = (self.queue, self.engine, self.queue.wakes());
        // The ring's memory is released with the lock open.
        let looked = MutexGuard::unlocked(guard, move || {
            service.lookers.look(window, || arrivals.are_there() || engine.has_finished() || queue.wakes() != wakes)
        });
        let Some((look, now)) = looked else { return false };
        guard.polling.note(look, now);
        let counter = if look == Look::Found { &service.metrics.polls_found } else { &service.metrics.polls_in_vain };
        counter.increment();
        let has_arrived = look == Look::Found && guard.has_waiting();
        guard.calling.note_look(has_arrived);
        look == Look::Found
    }

    fn enable_kicks(&self, guard: &mut Guard<'g>) -> bool {
        guard.enable_kicks()
    }

    fn disable_kicks(&self, guard: &mut Guard<'g>) {
        guard.disable_kicks();
    }

    fn sleep(&mut self, guard: &mut Guard<'g>) -> bool {
        let Some(watch) = self.queue.watch() else {
            // Threads start with the first kick, so there is always something to watch.
            self.queue.followers.wait_for(guard, FOLLOWER_IDLE_MAX);
            return false;
        };
        self.spares.follow_share(guard);
        let woken = MutexGuard::unlocked(guard, || watch.wait());
        self.spares.follow_share(guard);
        if woken.kicked {
            self.bound.service.metrics.kicks.increment();
        }
        true
    }

    fn wake(&self) {
        self.queue.wake();
    }

    fn note_awake(&mut self) {
        self.now = Instant::now();
        self.is_now_old = false;
        self.bound.activity.note();
    }
}

/// Relieves the leader of `queue`, which has not begun another request for a while.
pub(super) fn relieve(queue: &Arc<Queue>, state: &mut Guard<'_>) {
    let Some(Bound { service, .. }) = queue.bound() else { return };
    match state.leadership.give_up() {
        leadership::Successor::Follower => _ = queue.followers.notify_one(),
        leadership::Successor::NewThread => add_thread(queue, state),
    }
    service.metrics.followers_woken.increment();
    signal_call(state, service, Instant::now());
}
