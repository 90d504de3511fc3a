//! The locks on one file. Each owner has an open file description of its own on the host, so that the host's kernel keeps
//! owners apart: those of this guest, of other guests, and host processes. The held ranges are recorded here too, for the
//! process that GETLK reports and for the waits that an unlock can end. Does not know the other files.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};

use super::ranges::{HeldLock, LockRanges};
use super::request::{LockAnswer, LockFamily, LockOwner, LockRequest};
use crate::host::files::Counted;
use crate::sys::lock::{self, LockKind, Span};
use crate::types::{Errno, FileHandle, Unique};

/// Ranges of one owner on one file: the host's kernel walks as many records for each lock on the file.
const RANGES_MAX: usize = 1 << 14;
/// Ranges of all owners on all files: 50 MB of the host kernel's memory.
const ALL_RANGES_MAX: usize = 1 << 18;

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

/// An open file description for the locks of one owner on one file.
#[derive(Debug)]
pub struct LockFile {
    /// Its only descriptor.
    pub file: Counted,
    /// Whether it is open for writing, which an exclusive record lock requires (man fcntl(2)).
    pub is_writable: bool,
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// An owner's description and ranges.
#[derive(Debug)]
pub(super) struct OwnerLocks {
    file: LockFile,
    ranges: LockRanges,
    /// Number of ranges of all owners.
    all: Arc<AtomicUsize>,
}

impl OwnerLocks {
    pub fn new(file: LockFile, all: &Arc<AtomicUsize>) -> OwnerLocks {
        OwnerLocks { file, ranges: LockRanges::default(), all: Arc::clone(all) }
    }

    /// Whether the description serves for a lock that needs write access where `needs_write`.
    pub fn suits(&self, needs_write: bool) -> bool {
        self.file.is_writable || !needs_write
    }

    fn is_full(&self) -> bool {
        self.ranges.len() >= RANGES_MAX || self.all.load(Ordering::Relaxed) >= ALL_RANGES_MAX
    }

    /// Changes the ranges, and the number of all ranges by as much.
    fn change(&mut self, change: impl FnOnce(&mut LockRanges)) {
        let before = self.ranges.len();
        change(&mut self.ranges);
        self.all.fetch_add(self.ranges.len(), Ordering::Relaxed);
        self.all.fetch_sub(before, Ordering::Relaxed);
    }

    /// Replaces the description, which is open for reading only and so holds shared locks only, by `file`. The new one takes
    /// the same locks first: shared locks do not conflict, so each range stays locked throughout. On an error nothing has
    /// changed.
    pub fn move_to(&mut self, file: LockFile, family: LockFamily) -> Result<(), Errno> {
        for held in self.ranges.iter() {
            host_set(file.as_fd(), family, held.span, Some(held.kind))?;
        }
        self.file = file;
        Ok(())
    }

    fn clear_ranges(&mut self) {
        self.change(|ranges| *ranges = LockRanges::default());
    }
}

impl Drop for OwnerLocks {
    fn drop(&mut self) {
        self.all.fetch_sub(self.ranges.len(), Ordering::Relaxed);
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
            if wanted.owner.family == LockFamily::Flock && !owner.ranges.is_empty() {
                let _ = lock::set_whole(owner.file.as_fd(), None);
                owner.clear_ranges();
                self.holders.remove(&wanted.owner);
            }
            return Attempt::Local(other);
        }
        if owner.is_full() {
            return Attempt::Failed(Errno::ENOLCK);
        }
        match host_set(owner.file.as_fd(), wanted.owner.family, wanted.span, Some(wanted.kind)) {
            Ok(()) => {
                let held = HeldLock { span: wanted.span, kind: wanted.kind, pid: wanted.pid, through: wanted.handle };
                owner.change(|ranges| ranges.set(held));
                self.holders.insert(wanted.owner);
                Attempt::Granted
            }
            Err(Errno::EAGAIN) => {
                if wanted.owner.family == LockFamily::Flock {
                    owner.clear_ranges();
                    self.holders.remove(&wanted.owner);
                }
                Attempt::Foreign
            }
            Err(errno) => Attempt::Failed(errno),
        }
    }

    /// Releases what `owner` holds of `span`. False where it has no description. Errors as of fcntl(2) and flock(2).
    pub fn release(&mut self, owner: LockOwner, span: Span) -> Result<bool, Errno> {
        let Some(held) = self.owners.get_mut(&owner) else { return Ok(false) };
        host_set(held.file.as_fd(), owner.family, span, None)?;
        held.change(|ranges| ranges.clear(span));
        if held.ranges.is_empty() {
            self.holders.remove(&owner);
        }
        Ok(true)
    }

    /// A lock of another owner of this guest that conflicts with one of `kind` on `span`.
    fn conflicting(&self, of: LockOwner, span: Span, kind: LockKind) -> Option<(LockOwner, HeldLock)> {
        let mut others = self.holders.iter().filter(|owner| **owner != of && owner.family == of.family);
        others.find_map(|owner| Some((*owner, *self.owners.get(owner)?.ranges.conflicting(span, kind)?)))
    }

    /// The lock that conflicts with one of `kind` on `span` for `owner`; the outer `None` where no owner of this guest holds
    /// one and `owner` has no description to ask the host with.
    pub fn find_conflict(&self, owner: LockOwner, span: Span, kind: LockKind) -> Option<Result<Option<HeldLock>, Errno>> {
        if let Some((_, held)) = self.conflicting(owner, span, kind) {
            return Some(Ok(Some(held)));
        }
        let owner = self.owners.get(&owner)?;
        Some(foreign_conflict(owner.file.as_fd(), span, kind))
    }

    /// The record locks that were taken through `handle`.
    pub fn taken_through(&self, handle: FileHandle) -> Vec<(LockOwner, Span)> {
        let posix = self.holders.iter().filter(|owner| owner.family == LockFamily::Posix);
        let taken = |owner: &LockOwner| self.owners.get(owner).map_or(Vec::new(), |o| o.ranges.taken_through(handle));
        posix.flat_map(|owner| taken(owner).into_iter().map(|span| (*owner, span))).collect()
    }

    /// Whether `owner` has a description, holds nothing and waits for nothing.
    pub fn is_unused(&self, owner: LockOwner) -> bool {
        let holds_nothing = self.owners.get(&owner).is_some_and(|o| o.ranges.is_empty());
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

/// The lock that keeps the description behind `file` from one of `kind` on `span`: of a process outside this guest, whose
/// number the guest does not have.
pub(super) fn foreign_conflict(file: BorrowedFd<'_>, span: Span, kind: LockKind) -> Result<Option<HeldLock>, Errno> {
    let found = lock::in_the_way(file, span, kind)?;
    Ok(found.map(|(span, kind)| HeldLock { span, kind, pid: 0, through: FileHandle::NONE }))
}

fn host_set(file: BorrowedFd<'_>, family: LockFamily, span: Span, kind: Option<LockKind>) -> Result<(), Errno> {
    match family {
        LockFamily::Posix => lock::set(file, span, kind),
        LockFamily::Flock => lock::set_whole(file, kind),
    }
}
