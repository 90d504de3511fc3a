//! The threads that serve a queue, as leader and followers.
//!
//! The leader watches the ring. A lone request it serves itself, without a hand-over. Where more wait and
//! requests take longer than a wake-up does, it hands the lead to a follower first; where they are quick it
//! serves them one after the other, shows each answer at once and tells the guest now and then. A leader
//! that sits on a slow request is relieved (`relief.rs`), so that nothing waits behind it for long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::parked::{Place, answer_late};
use super::queue::{Next, Popped, Queue, State, publish_and_call};
use super::relief::Relief;
use super::serve::{Served, serve};
use super::service::Service;
use super::stop::{STUCK_MAX, SeatIndex, note_late};
use crate::host::Share;
use crate::types::QueueIndex;
use crate::virtqueue::{Claim, Request};
use crate::warn_limited;

/// FORGETs do not wait for anything: one thread serves them and one may relieve it.
const HIPRIO_THREADS_MAX: u16 = 2;
/// A follower without work leaves after this.
const FOLLOWER_IDLE_MAX: Duration = Duration::from_secs(10);
/// A request is slow when it takes longer than waking a follower does: 25 to 100 us on a busy host.
const SLOW_REQUEST: Duration = Duration::from_micros(100);
/// Answers that one notification covers at most.
const BATCH_LEN_MAX: u16 = 32;
/// How often the guest is told at most, while quick requests follow each other.
const BATCH_TIME_MAX: Duration = Duration::from_micros(50);

/// Starts one more thread for `queue` if it may have one. The state is the caller's locked one.
pub(super) fn add_thread(queue: &Arc<Queue>, state: &mut State, relief: &Arc<Relief>) {
    let Some((index, service)) = queue.bound() else { return };
    let threads_max = if *index == QueueIndex::HIPRIO { HIPRIO_THREADS_MAX } else { service.options.threads_per_queue };
    if state.threads >= threads_max || state.ending {
        return;
    }
    if service.stuck_threads() >= STUCK_MAX {
        warn_limited!("the host does not finish {STUCK_MAX} requests that were given up: no more threads are started until it does");
        return;
    }
    let name = if *index == QueueIndex::HIPRIO { "hiprio".to_owned() } else { format!("request {}", index.0) };
    let thread = {
        let (queue, service, relief) = (Arc::clone(queue), Arc::clone(service), Arc::clone(relief));
        std::thread::Builder::new().name(name).spawn(move || Worker::new(&queue, &service, &relief).run())
    };
    match thread {
        Ok(handle) => {
            state.threads += 1;
            let mut handles = queue.handles.lock();
            handles.retain(|h| !h.is_finished());
            handles.push(handle);
        }
        Err(e) if state.threads == 0 => tracing::error!("cannot start a thread for queue {}: {e}; it is not served", index.0),
        // The threads that are there go on serving.
        Err(e) => tracing::debug!("cannot start another thread for queue {}: {e}", index.0),
    }
}

/// Gives up the lead: an idle follower takes it, or a new one.
pub(super) fn hand_over(queue: &Arc<Queue>, state: &mut State, relief: &Arc<Relief>) {
    state.led = false;
    if state.idle > 0 {
        queue.followers.notify_one();
    } else {
        add_thread(queue, state, relief);
    }
}

struct Worker<'q> {
    queue: &'q Arc<Queue>,
    service: &'q Arc<Service>,
    relief: &'q Arc<Relief>,
    request: Request,
    /// The right to answer it.
    claim: Arc<Claim>,
    /// The share of the present FUSE session, and its generation.
    share: Arc<Share>,
    share_generation: u64,
    /// Room for replies that are made here: directory entries, attribute values.
    reply: Vec<u8>,
    /// How long the last request took.
    last_took: Duration,
    /// When the last request was done, or the leader woke up.
    now: Instant,
}

impl<'q> Worker<'q> {
    fn new(queue: &'q Arc<Queue>, service: &'q Arc<Service>, relief: &'q Arc<Relief>) -> Worker<'q> {
        let request = Request::new();
        let claim = Arc::clone(request.claim());
        let share_generation = service.export.generation();
        let share = service.export.share();
        Worker {
            queue,
            service,
            relief,
            request,
            claim,
            share,
            share_generation,
            reply: Vec::new(),
            last_took: Duration::ZERO,
            now: Instant::now(),
        }
    }

    fn run(mut self) {
        let entered = self.share.enter_thread();
        let mut state = self.queue.state.lock();
        if let Err(e) = entered {
            // A descriptor's name would then mean some file of the share: better no thread than this one.
            tracing::error!("a worker cannot enter /proc/self/fd and leaves: {e}");
            state.threads -= 1;
            return;
        }
        let seat = state.in_service.enter(self.request.claim());
        while self.take_lead(&mut state) {
            // The wait for the lead is no request's time.
            self.now = Instant::now();
            self.lead(&mut state, seat);
        }
        state.in_service.leave(seat);
        state.threads -= 1;
    }

    /// Waits for the lead. False where this thread should leave.
    fn take_lead(&self, state: &mut MutexGuard<'_, State>) -> bool {
        while state.led && !state.ending {
            state.idle += 1;
            let timed_out = self.queue.followers.wait_for(state, FOLLOWER_IDLE_MAX).timed_out();
            state.idle -= 1;
            if timed_out && state.led {
                return false;
            }
        }
        if state.ending {
            return false;
        }
        state.led = true;
        state.leadership = state.leadership.wrapping_add(1);
        self.relief.note_activity();
        true
    }

    /// Leads until the lead is gone.
    fn lead(&mut self, state: &mut MutexGuard<'_, State>, seat: SeatIndex) {
        let mine = state.leadership;
        while state.led && state.leadership == mine {
            if state.ending {
                state.led = false;
                return;
            }
            if !state.late.is_empty() {
                answer_late(self.queue, state, self.service);
                // The lock was open meanwhile: who was relieved must not take the next leader's kick.
                if !state.led || state.leadership != mine {
                    return;
                }
            }
            let next = state.next(self.service);
            // Behind the request, which may be the first that this thread has of a new session.
            self.follow_share();
            match next {
                Next::Chain(popped) => self.turn(state, seat, popped),
                Next::Empty => self.sleep(state, true),
                Next::Stopped => self.sleep(state, false),
            }
        }
    }

    /// Lets go of the share of a FUSE session that ended.
    fn follow_share(&mut self) {
        let generation = self.service.export.generation();
        if generation != self.share_generation {
            self.share = self.service.export.share();
            self.share_generation = generation;
        }
    }

    /// Serves one chain.
    fn turn(&mut self, state: &mut MutexGuard<'_, State>, seat: SeatIndex, popped: Popped) {
        let mine = state.leadership;
        let head = popped.head;
        state.in_service.begin(seat, &popped, self.now);
        if popped.waiting > 0 && self.last_took > SLOW_REQUEST {
            self.service.metrics.followers_woken.increment();
            hand_over(self.queue, state, self.relief);
            publish_and_call(state, self.service);
        }
        let place = Place { queue: self.queue, head, claim: &self.claim };
        let served = MutexGuard::unlocked(state, || {
            let queue_size = popped.memory.size();
            self.request.walk(head, popped.memory);
            let served = serve(self.service, &self.share, queue_size, &mut self.request, &mut self.reply, place);
            // Idle threads keep no guest memory mapped.
            self.request.release();
            served
        });
        let done = Instant::now();
        self.last_took = done - self.now;
        self.now = done;
        if !state.in_service.end(seat) {
            state.threads += 1;
            return note_late(self.queue);
        }
        match served {
            Served::Answered => state.answer(head, self.request.used_len()),
            Served::Parked => state.leave_parked(),
        }
        // Memory that was replaced meanwhile, and could not be let go for this request.
        state.follow_memory(self.service);
        let leads = state.led && state.leadership == mine;
        // The first answer of a burst wakes the guest, which then finds the others while it is awake.
        let is_due = state.told.is_none_or(|told| done.saturating_duration_since(told) > BATCH_TIME_MAX);
        if !leads || state.unsignalled() >= BATCH_LEN_MAX || is_due {
            publish_and_call(state, self.service);
        }
        self.queue.answered(state);
    }

    /// Tells the guest what is done and sleeps until there is more.
    fn sleep(&mut self, state: &mut MutexGuard<'_, State>, runs: bool) {
        if state.unsignalled() > 0 {
            // The lock is open while the call is signalled: look again before sleeping.
            return publish_and_call(state, self.service);
        }
        if runs && state.enable_kicks() {
            return;
        }
        let mine = state.leadership;
        let Some(watch) = self.queue.watch() else {
            // Threads start with the first kick, so there is always something to watch.
            self.queue.followers.wait_for(state, FOLLOWER_IDLE_MAX);
            return;
        };
        state.asleep = true;
        let woken = MutexGuard::unlocked(state, || watch.wait());
        let leads = state.led && state.leadership == mine;
        if leads {
            state.asleep = false;
        }
        if woken.kicked {
            self.service.metrics.kicks.increment();
        }
        if !leads || state.ending {
            // Pass the wake-up on to the current leader; at the end, to whoever else sleeps here.
            watch.wake();
        }
        if runs {
            state.disable_kicks();
        }
        self.now = Instant::now();
        self.relief.note_activity();
    }
}
