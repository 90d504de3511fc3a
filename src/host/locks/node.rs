//! The locks on one file. Each owner has an open file description of its own on the host, so that the host's kernel keeps
//! owners apart: those of this guest, of other guests, and host processes. The held ranges are known here too, for the
//! process that GETLK reports and for the waits that an unlock can end. Does not know the other files.

use std::collections::VecDeque;
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};

use super::owner::{OwnerLocks, foreign_conflict};
use super::request::{LockAnswer, LockFamily, LockOwner, LockRequest};
use crate::state::HeldLock;
use crate::sys::lock::{LockKind, Span};
use crate::types::{Errno, FileHandle, Unique};

/// A time, with a number that tells it from others at the same time.
pub(super) type Deadline = (Instant, u64);

/// A request that waits for a lock.
pub(super) struct Waiter {
    pub wanted: LockRequest,
    pub unique: Unique,
    /// When the wait ends at the latest.
    pub deadline: Option<Deadline>,
    pub answer: LockAnswer,
}

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

/// Result of one attempt to take a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Granted,
    /// Another owner of this guest holds a conflicting lock.
    Local(LockOwner),
    /// Another process of the host, or another guest, does.
    Foreign,
    Failed(Errno),
}

/// The locks on one file, and the requests that wait for one.
#[derive(Debug, Default)]
pub(super) struct NodeLocks {
    pub owners: FxHashMap<LockOwner, OwnerLocks>,
    /// Those of `owners` that hold a range: few, even where many wait.
    holders: FxHashSet<LockOwner>,
    pub waiters: VecDeque<Waiter>,
    /// Removed from the table: to be looked up there again.
    pub gone: bool,
}

impl NodeLocks {
    /// Tries to take the lock; the owner has a description.
    pub fn attempt(&mut self, wanted: &LockRequest) -> Attempt {
        let conflict = self.conflicting(wanted.owner, wanted.span, wanted.kind).map(|(owner, _)| owner);
        let Some(owner) = self.owners.get_mut(&wanted.owner) else { return Attempt::Failed(Errno::ENOLCK) };
        if let Some(other) = conflict {
            // flock(2) releases the old lock first; two owners that convert shared into exclusive would wait for ever otherwise.
            if wanted.owner.family == LockFamily::Flock && !owner.ranges().is_empty() {
                owner.lose_flock();
                self.holders.remove(&wanted.owner);
            }
            return Attempt::Local(other);
        }
        let locked = owner.lock(wanted);
        if owner.ranges().is_empty() {
            self.holders.remove(&wanted.owner);
        } else {
            self.holders.insert(wanted.owner);
        }
        match locked {
            Ok(()) => Attempt::Granted,
            Err(Errno::EAGAIN) => Attempt::Foreign,
            Err(errno) => Attempt::Failed(errno),
        }
    }

    /// Adds an owner of a process that died.
    pub fn recover(&mut self, owner: LockOwner, locks: OwnerLocks) {
        if !locks.ranges().is_empty() {
            self.holders.insert(owner);
        }
        self.owners.insert(owner, locks);
    }

    /// Releases what `owner` holds of `span`. False where it has no description. Errors as of fcntl(2) and flock(2).
    pub fn release(&mut self, owner: LockOwner, span: Span) -> Result<bool, Errno> {
        let Some(held) = self.owners.get_mut(&owner) else { return Ok(false) };
        held.unlock(span)?;
        if held.ranges().is_empty() {
            self.holders.remove(&owner);
        }
        Ok(true)
    }

    /// A lock of another owner of this guest that conflicts with one of `kind` on `span`.
    fn conflicting(&self, of: LockOwner, span: Span, kind: LockKind) -> Option<(LockOwner, HeldLock)> {
        let mut others = self.holders.iter().filter(|owner| **owner != of && owner.family == of.family);
        others.find_map(|owner| Some((*owner, *self.owners.get(owner)?.ranges().conflicting(span, kind)?)))
    }

    /// The lock that conflicts with one of `kind` on `span` for `owner`; the outer `None` where no owner of this guest holds
    /// one and `owner` has no description to ask the host with.
    pub fn find_conflict(&self, owner: LockOwner, span: Span, kind: LockKind) -> Option<Result<Option<HeldLock>, Errno>> {
        if let Some((_, held)) = self.conflicting(owner, span, kind) {
            return Some(Ok(Some(held)));
        }
        let owner = self.owners.get(&owner)?;
        Some(foreign_conflict(owner.file(), span, kind))
    }

    /// The record locks that were taken through `handle`.
    pub fn taken_through(&self, handle: FileHandle) -> Vec<(LockOwner, Span)> {
        let posix = self.holders.iter().filter(|owner| owner.family == LockFamily::Posix);
        let taken = |owner: &LockOwner| self.owners.get(owner).map_or(Vec::new(), |o| o.ranges().taken_through(handle));
        posix.flat_map(|owner| taken(owner).into_iter().map(|span| (*owner, span))).collect()
    }

    /// Whether `owner` has a description, holds nothing and waits for nothing.
    pub fn is_unused(&self, owner: LockOwner) -> bool {
        let holds_nothing = self.owners.get(&owner).is_some_and(|o| o.ranges().is_empty());
        holds_nothing && !self.waiters.iter().any(|w| w.wanted.owner == owner)
    }

    /// Removes the waiters that are to end by `now`.
    pub fn take_overdue(&mut self, now: Instant) -> VecDeque<Waiter> {
        self.take_waiters(|waiter| waiter.is_over(now))
    }

    /// Removes the waiters for which `ends` is true.
    pub fn take_waiters(&mut self, ends: impl Fn(&Waiter) -> bool) -> VecDeque<Waiter> {
        if !self.waiters.iter().any(&ends) {
            return VecDeque::new();
        }
        let (ended, left): (VecDeque<_>, VecDeque<_>) = self.waiters.drain(..).partition(ends);
        self.waiters = left;
        ended
    }

    /// Removes everything, as the entry is no longer in the table.
    pub fn take_all(&mut self) -> (FxHashMap<LockOwner, OwnerLocks>, VecDeque<Waiter>) {
        self.gone = true;
        self.holders.clear();
        (std::mem::take(&mut self.owners), std::mem::take(&mut self.waiters))
    }
}
