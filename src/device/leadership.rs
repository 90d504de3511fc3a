//! Leader and followers: which of a queue's threads watches the ring, and how the lead changes hands. Knows nothing of rings,
//! requests or how threads sleep, but the trait [`Station`]. The same code runs under a model checker (`leadership/model.rs`).
//!
//! The leader watches the ring. A lone request it serves itself, without a hand-over. Where more wait and requests take
//! longer than a wake-up does, it hands the lead to a follower first, or a thread that is back from its own request takes it. A leader
//! that is blocked in a slow request loses the lead (`watchdog.rs`).
//!
//! The invariant, which holds whenever the queue's lock is free: at most one thread holds the lead of the present term; if the
//! lead is free and the queue has work or is to end, a follower was notified, a thread is starting, or a thread that holds the
//! lock next takes the lead; and a thread that is woken by a kick and does not lead passes the wake-up on to the leader.

#[cfg(test)]
mod model;

/// Number of a leader. A leader that lost the lead finds another number and becomes a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term(u64);

/// The roles of a queue's threads. Kept under the queue's lock.
#[derive(Debug, Default)]
pub(super) struct Leadership {
    is_led: bool,
    term: u64,
    /// Requests that leaders began to serve. If it does not change, the leader is still in the same request.
    turns: u64,
    /// Threads that are serving a request.
    serving: u16,
    /// The leader is serving a request.
    is_leader_serving: bool,
    /// The leader sleeps until a kick, or polls.
    is_asleep: bool,
    /// Followers that wait for the lead.
    idle: u16,
    threads: u16,
    is_ending: bool,
}

/// Which thread takes the lead next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Successor {
    /// A follower that is waiting, once it is notified.
    Follower,
    /// No follower waits: a thread must be started.
    NewThread,
}

/// What a look at the leader finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// No leader, or the leader sleeps or polls.
    Quiet,
    /// The leader is awake.
    Awake,
    /// It has not begun another request since the last look.
    Stalled,
}

impl Leadership {
    /// Whether the queue's threads are to leave.
    pub fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Makes the queue's threads leave. The caller then wakes those that sleep.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// Threads that serve the queue, but those that are stuck in the host.
    pub fn threads(&self) -> u16 {
        self.threads
    }

    /// Counts a thread that is about to start. False where there are `threads_max`, or the queue ends.
    pub fn begin_thread(&mut self, threads_max: u16) -> bool {
        let may_start = self.threads < threads_max && !self.is_ending;
        self.threads += u16::from(may_start);
        may_start
    }

    /// A thread leaves, or did not start.
    pub fn end_thread(&mut self) {
        self.threads = self.threads.saturating_sub(1);
    }

    /// A thread whose request was withdrawn came back from the host.
    pub fn readmit_thread(&mut self) {
        self.threads += 1;
    }

    /// `count` threads do not come back from the host, and one of them may lead: the lead is free.
    pub fn lose_threads(&mut self, count: u16) {
        self.threads = self.threads.saturating_sub(count);
        self.is_led = false;
    }

    /// Takes the lead, if it is free.
    fn take(&mut self) -> Option<Term> {
        if self.is_led || self.is_ending {
            return None;
        }
        Some(self.begin_term())
    }

    /// Takes the lead from a leader that is serving a request.
    fn take_over(&mut self) -> Option<Term> {
        (self.is_led && self.is_leader_serving && !self.is_ending).then(|| self.begin_term())
    }

    fn begin_term(&mut self) -> Term {
        self.is_led = true;
        self.is_leader_serving = false;
        self.is_asleep = false;
        self.term = self.term.wrapping_add(1);
        Term(self.term)
    }

    /// Whether the leader of `term` still leads.
    pub fn leads(&self, term: Term) -> bool {
        self.is_led && self.term == term.0
    }

    /// Threads that are serving a request.
    pub fn serving(&self) -> u16 {
        self.serving
    }

    /// A leader begins to serve a request.
    pub fn begin_turn(&mut self) {
        self.turns = self.turns.wrapping_add(1);
        self.serving += 1;
        self.is_leader_serving = true;
    }

    /// The request is served, or has another holder.
    pub fn end_turn(&mut self, term: Term) {
        self.serving = self.serving.saturating_sub(1);
        if self.leads(term) {
            self.is_leader_serving = false;
        }
    }

    /// Gives up the lead; which thread the caller must wake or start.
    pub fn give_up(&mut self) -> Successor {
        self.is_led = false;
        if self.idle > 0 { Successor::Follower } else { Successor::NewThread }
    }

    /// Checks the leader. `turns_seen` keeps the count of the last check; `has_requests` is whether a thread or an engine has requests.
    pub fn look(&self, turns_seen: &mut u64, has_requests: bool) -> Look {
        if !self.is_led || self.is_asleep {
            return Look::Quiet;
        }
        let before = std::mem::replace(turns_seen, self.turns);
        if before == self.turns && (has_requests || self.serving > 0) { Look::Stalled } else { Look::Awake }
    }
}

/// What comes next for a leader.
#[derive(Debug)]
pub(super) enum Next<C> {
    /// A request to serve.
    Chain(C),
    /// Nothing; the next chain is to come with a kick.
    Empty,
    /// Nothing that a kick brings: the frontend, or an engine, wakes the watch.
    Stopped,
}

/// A thread of the queue, and the queue as that thread sees it. `G` is the guard of the queue's lock, which a method has when
/// it is called and when it returns; those that open it meanwhile say so.
pub(super) trait Station<G> {
    /// A request to serve.
    type Chain;

    /// The queue's roles.
    fn leadership<'g>(&self, guard: &'g mut G) -> &'g mut Leadership;

    /// Waits for a notification of the followers, with the lock open. True where none came for a while.
    fn wait_as_follower(&self, guard: &mut G) -> bool;

    /// Notifies one follower that waits.
    fn notify_follower(&self);

    /// Starts another thread, if there may be one.
    fn start_thread(&self, guard: &mut G);

    /// Gives answers that other threads brought. Opens the lock if there are any.
    fn answer_late(&mut self, guard: &mut G);

    /// Takes the next request.
    fn next(&mut self, guard: &mut G) -> Next<Self::Chain>;

    /// Whether the lead is better given up before `chain` is served.
    fn gives_up(&mut self, guard: &mut G, chain: &Self::Chain) -> bool;

    /// Whether this thread, which is back from a request, is to take the next one rather than wait for the lead.
    fn goes_on(&self, guard: &mut G) -> bool;

    /// Serves a request, with the lock open, and puts its answer into the used ring.
    fn serve(&mut self, guard: &mut G, chain: Self::Chain, term: Term);

    /// Signals the call for answers that the guest may not know of, with the lock open. False where there are none.
    fn call(&mut self, guard: &mut G) -> bool;

    /// Looks at the ring for a short time, with the lock open, if that is worth it. True if there may be something to do; it may
    /// then have taken a wake-up.
    fn poll(&mut self, guard: &mut G) -> bool;

    /// Requests a kick for the next chain. True if chains arrived meanwhile.
    fn enable_kicks(&self, guard: &mut G) -> bool;

    /// Suppresses kicks.
    fn disable_kicks(&self, guard: &mut G);

    /// Sleeps until a kick or a wake, with the lock open. False where there is nothing to sleep on.
    fn sleep(&mut self, guard: &mut G) -> bool;

    /// Ends the present or the next sleep on the ring.
    fn wake(&self);

    /// The thread takes the lead or woke up.
    fn note_awake(&mut self);
}

/// Gives up the lead to a follower that waits, or to a new thread.
pub(super) fn hand_over<G, S: Station<G>>(station: &S, guard: &mut G) {
    match station.leadership(guard).give_up() {
        Successor::Follower => station.notify_follower(),
        Successor::NewThread => station.start_thread(guard),
    }
}

/// A thread's life, from when it holds the lock first: follows and leads until the queue ends, or it was idle for a while.
pub(super) fn run<G, S: Station<G>>(station: &mut S, guard: &mut G) {
    while let Some(term) = take_lead(station, guard) {
        station.note_awake();
        while station.leadership(guard).leads(term) {
            if station.leadership(guard).is_ending() {
                station.leadership(guard).is_led = false;
                break;
            }
            station.answer_late(guard);
            // The lock was open meanwhile: a thread that lost the lead must not take the next leader's kick.
            if !station.leadership(guard).leads(term) {
                break;
            }
            match station.next(guard) {
                Next::Chain(chain) => turn(station, guard, chain, term),
                Next::Empty => sleep(station, guard, term, true),
                Next::Stopped => sleep(station, guard, term, false),
            }
        }
    }
}

/// Waits for the lead. `None` where the thread is to leave.
fn take_lead<G, S: Station<G>>(station: &S, guard: &mut G) -> Option<Term> {
    loop {
        let roles = station.leadership(guard);
        if roles.is_ending {
            return None;
        }
        if let Some(term) = roles.take() {
            return Some(term);
        }
        if station.goes_on(guard)
            && let Some(term) = station.leadership(guard).take_over()
        {
            return Some(term);
        }
        let roles = station.leadership(guard);
        roles.idle += 1;
        let timed_out = station.wait_as_follower(guard);
        let roles = station.leadership(guard);
        roles.idle -= 1;
        if timed_out && roles.is_led {
            return None;
        }
    }
}

fn turn<G, S: Station<G>>(station: &mut S, guard: &mut G, chain: S::Chain, term: Term) {
    station.leadership(guard).begin_turn();
    if station.gives_up(guard, &chain) {
        hand_over(station, guard);
    }
    station.serve(guard, chain, term);
    station.leadership(guard).end_turn(term);
}

/// Signals the call for what is answered, and sleeps until there is more to do.
fn sleep<G, S: Station<G>>(station: &mut S, guard: &mut G, term: Term, runs: bool) {
    // The lock was open while the call was signalled: check for work again before sleeping.
    if station.call(guard) {
        return;
    }
    station.leadership(guard).is_asleep = true;
    let is_polled = runs && station.poll(guard);
    // A poll opens the lock: what sleeps below must still lead.
    let is_due = is_polled || (runs && (!station.leadership(guard).leads(term) || station.enable_kicks(guard)));
    let is_woken = is_polled || (!is_due && station.sleep(guard));
    let roles = station.leadership(guard);
    let leads = roles.leads(term);
    if leads {
        roles.is_asleep = false;
    }
    if is_woken && (!leads || roles.is_ending) {
        // Pass the wake-up on to the current leader or, at the end, to another thread that sleeps here.
        station.wake();
    }
    if runs && leads {
        // Another leader may sleep, and need them.
        station.disable_kicks(guard);
    }
    station.note_awake();
}
