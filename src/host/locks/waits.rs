//! Waiting for locks without a thread each: one thread tries all of them again. A lock of this guest's that goes
//! wakes it at once. Nothing tells when a lock of another process goes, so while one is in the way the thread
//! asks again every now and then. A wait ends too when its request is interrupted (EINTR), or by its time limit
//! (ENOLCK).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::host::locks::early_interrupts::EarlyInterrupts;
use crate::host::locks::table::{Attempt, Family, LockAnswer, LockOwner, LockRequest, LockWait, Locked, Locks, NodeLocks};
use crate::types::{Errno, NodeId, Unique};
use crate::warn_limited;

/// How soon a lock that another process holds is tried again, at first.
const ASK_AFTER_MIN: Duration = Duration::from_millis(1);
/// And how soon after many attempts in vain: the longest that a guest waits for a lock that is free.
const ASK_AFTER_MAX: Duration = Duration::from_millis(50);
/// Attempts in vain on one file before the others have their turn.
const ATTEMPTS_IN_VAIN_MAX: usize = 64;
/// The thread leaves when nobody has waited for this long.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How many waits a deadlock is followed through, as many as Linux does (fs/locks.c).
const DEADLOCK_DEPTH_MAX: usize = 10;

/// One that waits.
pub(in crate::host) struct Waiter {
    pub wanted: LockRequest,
    /// Its request.
    pub unique: Unique,
    /// When it ends at the latest.
    deadline: Option<Deadline>,
    pub answer: LockAnswer,
}

/// A time, with a number that tells it from others at the same time.
type Deadline = (Instant, u64);

impl Waiter {
    fn is_over(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|(at, _)| at <= now)
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

/// The waits of all files.
#[derive(Debug, Default)]
pub(in crate::host) struct Waits {
    due: Mutex<Due>,
    changed: Condvar,
    /// How many wait.
    waiting: AtomicUsize,
    /// Which owner of this guest each waiting one waits for: a circle is a deadlock.
    blocked_by: Mutex<FxHashMap<LockOwner, LockOwner>>,
    /// How long a wait may take.
    wait_max: Option<Duration>,
    requests: Mutex<Requests>,
    /// Length of `requests.early`, so that a request that does not wait need not take the lock to know that there is none.
    early: AtomicUsize,
}

/// The requests that wait: an entry in each map is there as long as the waiter in the list of its file.
#[derive(Debug, Default)]
struct Requests {
    nodes: FxHashMap<Unique, NodeId>,
    deadlines: BTreeMap<Deadline, NodeId>,
    last_number: u64,
    early: EarlyInterrupts,
}

#[derive(Debug, Default)]
struct Due {
    /// Files whose waiters are to be tried again.
    nodes: FxHashSet<NodeId>,
    has_thread: bool,
}

impl Waits {
    /// No waits; each may take `wait_max`.
    pub fn new(wait_max: Option<Duration>) -> Waits {
        Waits { wait_max, ..Waits::default() }
    }

    /// Whether `owner` may wait for `other`: not if that one, through others, waits for `owner`.
    pub fn may_wait(&self, owner: LockOwner, other: LockOwner) -> bool {
        // flock(2) does not look for deadlocks either.
        if owner.family == Family::Flock {
            return true;
        }
        let mut blocked_by = self.blocked_by.lock();
        let mut next = other;
        for _ in 0..DEADLOCK_DEPTH_MAX {
            if next == owner {
                return false;
            }
            match blocked_by.get(&next) {
                Some(&after) => next = after,
                None => break,
            }
        }
        blocked_by.insert(owner, other);
        true
    }

    /// Adds a waiter to those of a file. ENOLCK where there can be no thread to wait, EINTR where the request was interrupted.
    pub fn begin(&self, locks: &Arc<Locks>, wanted: &LockRequest, wait: &mut LockWait<'_>, node: &mut NodeLocks) -> Result<Locked, Errno> {
        if !self.has_thread(locks) {
            return Err(Errno::ENOLCK);
        }
        // From here on an INTERRUPT finds the request; it waits for the lock on `node`.
        let deadline = self.enter(wait.unique, wanted.node)?;
        let answer = (wait.suspend)().inspect_err(|_| self.leave(wait.unique, deadline))?;
        node.waiters.push_back(Waiter { wanted: *wanted, unique: wait.unique, deadline, answer });
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Locked::Waits)
    }

    /// Notes that a request waits, and until when. EINTR for one that was interrupted before.
    fn enter(&self, unique: Unique, node: NodeId) -> Result<Option<Deadline>, Errno> {
        let now = Instant::now();
        let mut requests = self.requests.lock();
        let was_interrupted = requests.early.take(unique, now);
        self.early.store(requests.early.len(), Ordering::Relaxed);
        if was_interrupted {
            return Err(Errno::EINTR);
        }
        requests.nodes.insert(unique, node);
        let deadline = self.wait_max.and_then(|max| now.checked_add(max)).map(|at| {
            requests.last_number += 1;
            (at, requests.last_number)
        });
        if let Some(deadline) = deadline {
            requests.deadlines.insert(deadline, node);
        }
        Ok(deadline)
    }

    fn leave(&self, unique: Unique, deadline: Option<Deadline>) {
        let mut requests = self.requests.lock();
        requests.nodes.remove(&unique);
        if let Some(deadline) = deadline {
            requests.deadlines.remove(&deadline);
        }
    }

    /// The file whose lock the request `unique` waits for. An INTERRUPT of one that does not wait is remembered.
    pub fn node_of(&self, unique: Unique) -> Option<NodeId> {
        let mut requests = self.requests.lock();
        let node = requests.nodes.get(&unique).copied();
        if node.is_none() {
            requests.early.remember(unique, Instant::now());
            self.early.store(requests.early.len(), Ordering::Relaxed);
        }
        node
    }

    /// The request `unique` was seen and does not wait.
    pub fn forget_interrupt(&self, unique: Unique) {
        if self.early.load(Ordering::Relaxed) > 0 {
            let mut requests = self.requests.lock();
            requests.early.take(unique, Instant::now());
            self.early.store(requests.early.len(), Ordering::Relaxed);
        }
    }

    /// When the first wait is to end.
    fn first_deadline(&self) -> Option<Instant> {
        self.requests.lock().deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    /// Files with waits that are to end by `now`.
    fn overdue(&self, now: Instant) -> Vec<NodeId> {
        if self.wait_max.is_none() {
            return Vec::new();
        }
        self.requests.lock().deadlines.range(..=(now, u64::MAX)).map(|(_, node)| *node).collect()
    }

    /// No owner waits any more, and no INTERRUPT is remembered.
    pub fn clear(&self) {
        self.blocked_by.lock().clear();
        self.requests.lock().early.clear();
        self.early.store(0, Ordering::Relaxed);
    }

    /// To be called for each waiter that was taken off the list of its file.
    fn ended(&self, waiter: &Waiter) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.is_free(waiter.wanted.owner);
        self.leave(waiter.unique, waiter.deadline);
    }

    /// The owner waits no more.
    pub fn is_free(&self, owner: LockOwner) {
        self.blocked_by.lock().remove(&owner);
    }

    /// `owner` holds less than before, so it may be in the way of none of `waiters`. Which of them still wait for it is noted
    /// when they are tried again: until then they are no part of a circle.
    pub fn gave_up(&self, owner: LockOwner, waiters: &VecDeque<Waiter>) {
        if waiters.is_empty() {
            return;
        }
        let mut blocked_by = self.blocked_by.lock();
        for waiter in waiters {
            if blocked_by.get(&waiter.wanted.owner) == Some(&owner) {
                blocked_by.remove(&waiter.wanted.owner);
            }
        }
    }

    fn has_thread(&self, locks: &Arc<Locks>) -> bool {
        self.ensure_thread(locks, &mut self.due.lock())
    }

    fn ensure_thread(&self, locks: &Arc<Locks>, due: &mut Due) -> bool {
        if !due.has_thread {
            let locks = Arc::clone(locks);
            match std::thread::Builder::new().name("locks".to_owned()).spawn(move || locks.try_again_until_idle()) {
                Ok(_) => due.has_thread = true,
                Err(e) => warn_limited!("cannot start the thread that waits for locks: {e}; the guest gets ENOLCK"),
            }
        }
        due.has_thread
    }

    /// The waiters of `node` are to be tried again now.
    pub fn look_at(&self, locks: &Arc<Locks>, node: NodeId) {
        // In one go with the look whether the thread is there: it leaves under the same lock.
        let mut due = self.due.lock();
        due.nodes.insert(node);
        self.ensure_thread(locks, &mut due);
        self.changed.notify_one();
    }

    /// Ends waits with an error.
    pub fn end(&self, waiters: impl Iterator<Item = Waiter>, errno: Errno) {
        for waiter in waiters {
            self.ended(&waiter);
            (waiter.answer)(Err(errno));
        }
    }
}

impl Locks {
    fn try_again_until_idle(self: Arc<Self>) {
        let mut foreign = FxHashSet::default();
        let mut ask_after = ASK_AFTER_MIN;
        let mut ask_at = Instant::now();
        while let Some(mut due) = self.next_due(&foreign, ask_at) {
            let asks_again = Instant::now() >= ask_at;
            if asks_again {
                due.extend(&foreign);
            }
            let before = foreign.len();
            due.extend(self.waits.overdue(Instant::now()));
            for node in due {
                if self.try_again(node) {
                    foreign.insert(node);
                } else {
                    foreign.remove(&node);
                }
            }
            let waits_anew = foreign.len() > before;
            if asks_again || waits_anew {
                ask_after = if waits_anew { ASK_AFTER_MIN } else { (ask_after * 2).min(ASK_AFTER_MAX) };
                ask_at = Instant::now() + ask_after;
            }
        }
    }

    /// Waits for files to look at, and no longer than `ask_at` where there are some in `foreign`, nor than the first wait may
    /// take. `None` where nobody waits any more: the thread is then to leave.
    fn next_due(&self, foreign: &FxHashSet<NodeId>, ask_at: Instant) -> Option<FxHashSet<NodeId>> {
        // A wait that begins after this look has its file in `due`.
        let deadline = self.waits.first_deadline();
        let mut due = self.waits.due.lock();
        if due.nodes.is_empty() {
            let limit = if foreign.is_empty() { Instant::now() + IDLE_MAX } else { ask_at };
            self.waits.changed.wait_until(&mut due, deadline.map_or(limit, |deadline| deadline.min(limit)));
            if due.nodes.is_empty() && foreign.is_empty() && self.waits.waiting.load(Ordering::Relaxed) == 0 {
                due.has_thread = false;
                return None;
            }
        }
        Some(std::mem::take(&mut due.nodes))
    }

    /// Tries the waiters of `node` once, first come first. True where another process is in the way of some.
    fn try_again(self: &Arc<Self>, node: NodeId) -> bool {
        let mut foreign = false;
        let mut answers = Vec::new();
        self.on_existing(node, |locks| {
            let mut in_vain = 0;
            for _ in 0..locks.waiters.len() {
                let Some(waiter) = locks.waiters.pop_front() else { break };
                let owner = waiter.wanted.owner;
                let result = match locks.attempt(&waiter.wanted) {
                    Attempt::Granted => Ok(()),
                    Attempt::Failed(errno) => Err(errno),
                    Attempt::Local(other) if !self.waits.may_wait(owner, other) => Err(Errno::EDEADLK),
                    // To the end: whoever was not tried for the limit's sake is first next time.
                    Attempt::Local(_) => {
                        locks.waiters.push_back(waiter);
                        continue;
                    }
                    Attempt::Foreign => {
                        self.waits.is_free(owner);
                        locks.waiters.push_back(waiter);
                        foreign = true;
                        in_vain += 1;
                        if in_vain == ATTEMPTS_IN_VAIN_MAX {
                            break;
                        }
                        continue;
                    }
                };
                self.waits.ended(&waiter);
                self.drop_owner_if_unused(locks, owner);
                answers.push((waiter.answer, result));
            }
            let now = Instant::now();
            if locks.waiters.iter().any(|waiter| waiter.is_over(now)) {
                let (over, left): (VecDeque<_>, VecDeque<_>) = locks.waiters.drain(..).partition(|waiter| waiter.is_over(now));
                locks.waiters = left;
                for waiter in over {
                    self.waits.ended(&waiter);
                    self.drop_owner_if_unused(locks, waiter.wanted.owner);
                    answers.push((waiter.answer, Err(Errno::ENOLCK)));
                }
            }
            // What was granted may be weaker than what its owner held before.
            if !answers.is_empty() && !locks.waiters.is_empty() {
                self.waits.due.lock().nodes.insert(node);
            }
        });
        for (answer, result) in answers {
            answer(result);
        }
        foreign
    }
}
