//! Waiting for locks without a thread each: one thread tries all of them again. A lock of this guest's that goes
//! wakes it at once. Nothing tells when a lock of another process goes, so while one is in the way the thread
//! asks again every now and then.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustc_hash::{FxHashMap, FxHashSet};

use super::locks::{Attempt, Family, LockAnswer, LockOwner, Locked, Locks, NodeLocks, Wanted};
use crate::types::{Errno, NodeId};
use crate::warn_limited;

/// How soon a lock that another process holds is tried again, at first.
const ASK_AFTER_MIN: Duration = Duration::from_millis(1);
/// And how soon after many attempts in vain: the longest that a guest waits for a lock that is free.
const ASK_AFTER_MAX: Duration = Duration::from_millis(50);
/// Attempts in vain on one file before the others have their turn.
const ATTEMPTS_IN_VAIN_MAX: usize = 64;
/// The thread leaves when there was nothing to do for this long.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How many waits a deadlock is followed through, as many as Linux does (fs/locks.c).
const DEADLOCK_DEPTH_MAX: usize = 10;

/// One that waits.
pub(super) struct Waiter {
    pub wanted: Wanted,
    pub answer: LockAnswer,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

/// The waits of all files.
#[derive(Debug, Default)]
pub(super) struct Waits {
    due: Mutex<Due>,
    changed: Condvar,
    /// Which owner of this guest each waiting one waits for: a circle is a deadlock.
    blocked_by: Mutex<FxHashMap<LockOwner, LockOwner>>,
}

#[derive(Debug, Default)]
struct Due {
    /// Files whose waiters are to be tried again.
    nodes: FxHashSet<NodeId>,
    has_thread: bool,
}

impl Waits {
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

    /// Adds a waiter to those of a file. ENOLCK where there can be no thread to wait.
    pub fn begin(&self, locks: &Arc<Locks>, make: impl FnOnce() -> Result<Waiter, Errno>, node: &mut NodeLocks) -> Result<Locked, Errno> {
        if !self.has_thread(locks) {
            return Err(Errno::ENOLCK);
        }
        node.waiters.push_back(make()?);
        Ok(Locked::Waits)
    }

    /// The owner waits no more.
    fn is_free(&self, owner: LockOwner) {
        self.blocked_by.lock().remove(&owner);
    }

    fn has_thread(&self, locks: &Arc<Locks>) -> bool {
        let mut due = self.due.lock();
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
        if self.has_thread(locks) {
            self.due.lock().nodes.insert(node);
            self.changed.notify_one();
        }
    }

    /// Ends waits with an error.
    pub fn end(&self, waiters: impl Iterator<Item = Waiter>, errno: Errno) {
        for waiter in waiters {
            self.is_free(waiter.wanted.owner);
            (waiter.answer)(Err(errno));
        }
    }
}

/// What trying a file's waiters again brought.
struct Tried {
    /// Another process was in the way of some.
    foreign: bool,
    /// Some waits ended.
    ended: bool,
}

impl Locks {
    fn try_again_until_idle(self: Arc<Self>) {
        let mut foreign = FxHashSet::default();
        let mut ask_after = ASK_AFTER_MIN;
        while let Some(due) = self.next_due(&foreign, ask_after) {
            let asks_again = due.is_empty();
            let mut ended = false;
            for node in if asks_again { foreign.iter().copied().collect() } else { due } {
                let tried = self.try_again(node);
                ended |= tried.ended;
                if tried.foreign {
                    foreign.insert(node);
                } else {
                    foreign.remove(&node);
                }
            }
            ask_after = if asks_again && !ended { (ask_after * 2).min(ASK_AFTER_MAX) } else { ASK_AFTER_MIN };
        }
    }

    /// Waits for files to look at; an empty list where time is up for those in `foreign`. `None` where there was
    /// nothing to do for a while: the thread is then to leave.
    fn next_due(&self, foreign: &FxHashSet<NodeId>, ask_after: Duration) -> Option<Vec<NodeId>> {
        let mut due = self.waits.due.lock();
        if due.nodes.is_empty() {
            let limit = if foreign.is_empty() { IDLE_MAX } else { ask_after };
            self.waits.changed.wait_for(&mut due, limit);
            if due.nodes.is_empty() && foreign.is_empty() {
                due.has_thread = false;
                return None;
            }
        }
        Some(due.nodes.drain().collect())
    }

    /// Tries the waiters of `node` once, first come first.
    fn try_again(self: &Arc<Self>, node: NodeId) -> Tried {
        let mut tried = Tried { foreign: false, ended: false };
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
                        tried.foreign = true;
                        in_vain += 1;
                        if in_vain == ATTEMPTS_IN_VAIN_MAX {
                            break;
                        }
                        continue;
                    }
                };
                self.waits.is_free(owner);
                self.drop_owner_if_unused(locks, owner);
                answers.push((waiter.answer, result));
            }
            // What was granted may be weaker than what its owner held before.
            if !answers.is_empty() && !locks.waiters.is_empty() {
                self.waits.due.lock().nodes.insert(node);
            }
        });
        tried.ended = !answers.is_empty();
        for (answer, result) in answers {
            answer(result);
        }
        tried
    }
}
