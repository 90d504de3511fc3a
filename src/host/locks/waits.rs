//! The requests that wait for a lock, without a thread each: who waits for whom (deadlocks), until when, and which files are
//! to be tried again. A wait ends when the lock is taken, when its request is interrupted (EINTR) or after its time limit
//! (ENOLCK). Does not know how locks are taken.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustc_hash::{FxHashMap, FxHashSet};

use super::early_interrupts::EarlyInterrupts;
use super::node::{Deadline, NodeLocks, Waiter};
use super::request::{LockFamily, LockOwner, LockRequest, LockWait};
use crate::trace::Limiter;
use crate::types::{Errno, NodeId, Unique};

/// Waits through which a deadlock is followed, as many as Linux does (fs/locks.c).
const DEADLOCK_DEPTH_MAX: usize = 10;

/// The waits of all files.
#[derive(Debug, Default)]
pub(super) struct Waits {
    due: Mutex<Due>,
    changed: Condvar,
    /// Number of requests that wait.
    waiting: AtomicUsize,
    /// The owner of this guest that each waiting owner waits for: a cycle is a deadlock.
    blocked_by: Mutex<FxHashMap<LockOwner, LockOwner>>,
    /// Time limit of a wait.
    wait_max: Option<Duration>,
    requests: Mutex<Requests>,
    /// Length of `requests.early`, so that a request that does not wait need not take the lock to see that there is none.
    early: AtomicUsize,
    /// Limits the warnings about waits.
    pub limiter: Limiter,
}

/// The requests that wait: each has an entry in both maps as long as its waiter is in the list of its file.
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
    /// No waits; each ends after `wait_max`.
    pub fn new(wait_max: Option<Duration>) -> Waits {
        Waits { wait_max, ..Waits::default() }
    }

    /// Whether `owner` may wait for `other`: not if that one, through others, waits for `owner`.
    pub fn may_wait(&self, owner: LockOwner, other: LockOwner) -> bool {
        // flock(2) does not look for deadlocks either.
        if owner.family == LockFamily::Flock {
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

    /// Adds a waiter to those of a file. EINTR where the request was interrupted before, and the errors of
    /// [`LockWait::suspend`].
    pub fn begin(&self, wanted: &LockRequest, wait: &mut LockWait<'_>, node: &mut NodeLocks) -> Result<(), Errno> {
        // From here on an INTERRUPT finds the request; it then waits for the lock on `node`.
        let deadline = self.enter(wait.unique, wanted.node)?;
        let answer = (wait.suspend)().inspect_err(|_| self.leave(wait.unique, deadline))?;
        node.waiters.push_back(Waiter { wanted: *wanted, unique: wait.unique, deadline, answer });
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Records that a request waits, and until when. EINTR for one that was interrupted before.
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

    /// The request `unique` was served and does not wait.
    pub fn forget_interrupt(&self, unique: Unique) {
        if self.early.load(Ordering::Relaxed) > 0 {
            let mut requests = self.requests.lock();
            requests.early.take(unique, Instant::now());
            self.early.store(requests.early.len(), Ordering::Relaxed);
        }
    }

    /// Files with waits that are to end by `now`.
    pub fn overdue(&self, now: Instant) -> Vec<NodeId> {
        if self.wait_max.is_none() {
            return Vec::new();
        }
        self.requests.lock().deadlines.range(..=(now, u64::MAX)).map(|(_, node)| *node).collect()
    }

    /// Drops the deadlock records and the remembered INTERRUPTs.
    pub fn clear(&self) {
        self.blocked_by.lock().clear();
        self.requests.lock().early.clear();
        self.early.store(0, Ordering::Relaxed);
    }

    /// To be called for each waiter that was removed from the list of its file.
    pub fn ended(&self, waiter: &Waiter) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.unblock(waiter.wanted.owner);
        self.leave(waiter.unique, waiter.deadline);
    }

    /// Ends waits with an error.
    pub fn end(&self, waiters: impl IntoIterator<Item = Waiter>, errno: Errno) {
        for waiter in waiters {
            self.ended(&waiter);
            (waiter.answer)(Err(errno));
        }
    }

    /// Records that the owner waits for no owner of this guest.
    pub fn unblock(&self, owner: LockOwner) {
        self.blocked_by.lock().remove(&owner);
    }

    /// `owner` holds less than before, so it may no longer conflict with any of `waiters`. Which of them still wait for it is
    /// recorded when they are tried again: until then they are part of no cycle.
    pub fn unblock_waiters_of(&self, owner: LockOwner, waiters: &VecDeque<Waiter>) {
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

    /// Whether the thread that tries again is there, or `start` starts it.
    pub fn has_thread(&self, start: impl FnOnce() -> bool) -> bool {
        self.due.lock().has_thread(start)
    }

    /// Has the waiters of `node` tried again now, by the thread that `start` starts where there is none.
    pub fn schedule(&self, node: NodeId, start: impl FnOnce() -> bool) {
        // The thread ends under the same lock, so it cannot end in between.
        let mut due = self.due.lock();
        due.nodes.insert(node);
        due.has_thread(start);
        self.changed.notify_one();
    }

    /// As [`Waits::schedule`], called by the thread itself.
    pub fn requeue(&self, node: NodeId) {
        self.due.lock().nodes.insert(node);
    }

    /// Waits for files to try again, until `poll_at` at the latest where it is given, else for `idle_max`, and no longer than
    /// the first deadline. `None` where no request waits any more: the thread is then to end.
    pub fn next_due(&self, poll_at: Option<Instant>, idle_max: Duration) -> Option<FxHashSet<NodeId>> {
        // A wait that begins after this look has its file in `due`.
        let deadline = self.requests.lock().deadlines.first_key_value().map(|((at, _), _)| *at);
        let mut due = self.due.lock();
        if due.nodes.is_empty() {
            let limit = poll_at.unwrap_or_else(|| Instant::now() + idle_max);
            self.changed.wait_until(&mut due, deadline.map_or(limit, |deadline| deadline.min(limit)));
            if due.nodes.is_empty() && poll_at.is_none() && self.waiting.load(Ordering::Relaxed) == 0 {
                due.has_thread = false;
                return None;
            }
        }
        Some(std::mem::take(&mut due.nodes))
    }
}

impl Due {
    fn has_thread(&mut self, start: impl FnOnce() -> bool) -> bool {
        self.has_thread = self.has_thread || start();
        self.has_thread
    }
}
