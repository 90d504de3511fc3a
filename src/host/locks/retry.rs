//! The thread that tries again to take the locks that requests wait for; it is there only while requests wait. A lock of this
//! guest that is released schedules its waiters at once. The host does not report when a lock of another process is released,
//! so while one conflicts the thread polls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::node::Attempt;
use super::table::LockTable;
use crate::sys::thread;
use crate::types::{Errno, NodeId};
use crate::warn_limited;

/// First interval at which a lock that another process holds is tried again.
const POLL_MIN: Duration = Duration::from_millis(1);
/// Longest interval: how long a guest may wait for a lock that is free.
const POLL_MAX: Duration = Duration::from_millis(50);
/// Failed attempts on one file before the other files are tried.
const ATTEMPTS_IN_VAIN_MAX: usize = 64;
/// The thread ends after this time without a wait.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Has the waiters of `node` tried again now.
pub(super) fn schedule(table: &Arc<LockTable>, node: NodeId) {
    table.waits.schedule(node, || start(table));
}

/// Whether there is a thread to try again; starts it if need be.
pub(super) fn has_thread(table: &Arc<LockTable>) -> bool {
    table.waits.has_thread(|| start(table))
}

fn start(table: &Arc<LockTable>) -> bool {
    let limits = &table.waits.limiter;
    let table = Arc::clone(table);
    let started = thread::start("locks", move || run(&table));
    started.inspect_err(|e| warn_limited!(limits; "cannot start the thread that waits for locks: {e}; the guest gets ENOLCK")).is_ok()
}

fn run(table: &LockTable) {
    // Files on which another process holds a conflicting lock.
    let mut foreign = FxHashSet::default();
    let mut interval = POLL_MIN;
    let mut poll_at = Instant::now();
    while let Some(mut due) = table.waits.next_due((!foreign.is_empty()).then_some(poll_at), IDLE_MAX) {
        let polls = Instant::now() >= poll_at;
        if polls {
            due.extend(&foreign);
        }
        let before = foreign.len();
        due.extend(table.waits.overdue(Instant::now()));
        for node in due {
            if try_again(table, node) {
                foreign.insert(node);
            } else {
                foreign.remove(&node);
            }
        }
        let has_more = foreign.len() > before;
        if polls || has_more {
            interval = if has_more { POLL_MIN } else { (interval * 2).min(POLL_MAX) };
            poll_at = Instant::now() + interval;
        }
    }
}

/// Tries the waiters of `node` once, in the order of their arrival. True where another process conflicts with some.
fn try_again(table: &LockTable, node: NodeId) -> bool {
    let mut foreign = false;
    let mut answers = Vec::new();
    table.on_existing(node, |locks| {
        let mut in_vain = 0;
        for _ in 0..locks.waiters.len() {
            let Some(waiter) = locks.waiters.pop_front() else { break };
            let owner = waiter.wanted.owner;
            let result = match locks.attempt(&waiter.wanted) {
                Attempt::Granted => Ok(()),
                Attempt::Failed(errno) => Err(errno),
                Attempt::Local(other) if !table.waits.may_wait(owner, other) => Err(Errno::EDEADLK),
                // Requeued last; waiters that were skipped go first in the next round.
                Attempt::Local(_) => {
                    locks.waiters.push_back(waiter);
                    continue;
                }
                Attempt::Foreign => {
                    table.waits.unblock(owner);
                    locks.waiters.push_back(waiter);
                    foreign = true;
                    in_vain += 1;
                    if in_vain == ATTEMPTS_IN_VAIN_MAX {
                        break;
                    }
                    continue;
                }
            };
            table.waits.ended(&waiter);
            table.drop_owner_if_unused(locks, owner);
            answers.push((waiter.answer, result));
        }
        for waiter in locks.take_overdue(Instant::now()) {
            table.waits.ended(&waiter);
            table.drop_owner_if_unused(locks, waiter.wanted.owner);
            answers.push((waiter.answer, Err(Errno::ENOLCK)));
        }
        // A granted lock may be weaker than what its owner held before.
        if !answers.is_empty() && !locks.waiters.is_empty() {
            table.waits.requeue(node);
        }
    });
    for (answer, result) in answers {
        answer(result);
    }
    foreign
}
