//! The guest's locks on the host: taking and releasing them, GETLK, INTERRUPT.

use std::collections::hash_map::Entry;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::node::{Attempt, NodeLocks};
use super::owner::{LockFile, OwnerLocks, foreign_conflict};
use super::request::{LockFamily, LockOwner, LockRequest, LockWait, Locked};
use super::retry;
use super::table::{Detached, LockTable};
use crate::host::files::Counted;
use crate::state::{HeldLock, LockRecords, RecordedOwner};
use crate::sys::lock::{LockKind, Span};
use crate::types::{Errno, FileHandle, NodeId, Unique};

/// All locks of the guest.
#[derive(Debug)]
pub struct GuestLocks(Arc<LockTable>);

impl GuestLocks {
    /// An empty table, kept in `records`. A wait that takes longer than `wait_max` ends with ENOLCK.
    pub fn new(wait_max: Option<Duration>, records: LockRecords) -> GuestLocks {
        GuestLocks(Arc::new(LockTable::new(wait_max, records)))
    }

    /// The locks of a process that died, kept in `records`, with the description of each owner. Its waits are not there: their requests
    /// are executed again.
    pub fn recovered(
        wait_max: Option<Duration>,
        records: LockRecords,
        owners: impl Iterator<Item = (RecordedOwner, Counted)>,
    ) -> GuestLocks {
        let locks = GuestLocks::new(wait_max, records);
        locks.0.recover(owners);
        locks
    }

    /// Adds the number of the descriptor of every owner to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        self.0.name_descriptors(named);
    }

    /// Takes the lock. EAGAIN where another owner holds a conflicting one; with `wait` the request is suspended instead and
    /// answered when the wait ends. EDEADLK where the wait would never end, EINTR where the request was interrupted before,
    /// ENOLCK where there are too many locks. ESTALE where `is_known` says that the guest forgot the file, whose locks nothing
    /// would release then.
    ///
    /// `open` opens the file for an owner that has no description on it yet, or one that is open for reading only where the
    /// lock `needs_write`.
    pub fn lock(
        &self,
        wanted: &LockRequest,
        needs_write: bool,
        is_known: impl Fn() -> bool,
        open: impl Fn() -> Result<LockFile, Errno>,
        mut wait: Option<LockWait<'_>>,
    ) -> Result<Locked, Errno> {
        let table = &self.0;
        let suits = |owner: &OwnerLocks| owner.suits(needs_write);
        let is_open = table.on_existing(wanted.node, |locks| locks.owners.get(&wanted.owner).is_some_and(suits)).unwrap_or(false);
        // Opened outside the lock. Another thread of the same owner may open it too; one of the two is closed again.
        let mut file = if is_open { None } else { Some(table.open_counted(&open)?) };
        loop {
            let result = table.on(wanted.node, |locks| {
                if !is_known() {
                    return Some(Err(Errno::ESTALE));
                }
                match locks.owners.entry(wanted.owner) {
                    Entry::Vacant(place) => match OwnerLocks::new(wanted.node, wanted.owner, file.take()?, &table.ranges) {
                        Ok(owner) => _ = place.insert(owner),
                        Err(errno) => {
                            table.uncount(1);
                            return Some(Err(errno));
                        }
                    },
                    Entry::Occupied(mut owner) if !suits(owner.get()) => {
                        // Where the file cannot be opened for writing, the host decides with the description that there is.
                        if file.as_ref()?.is_writable {
                            let moved = owner.get_mut().move_to(file.take()?);
                            table.uncount(1);
                            if let Err(errno) = moved {
                                return Some(Err(errno));
                            }
                        }
                    }
                    Entry::Occupied(_) => {}
                }
                Some(self.lock_or_wait(locks, wanted, wait.as_mut()))
            });
            match result {
                Some(result) => {
                    if file.is_some() {
                        table.uncount(1);
                    }
                    return result;
                }
                // Another thread of the same owner has unlocked everything meanwhile.
                None => file = Some(table.open_counted(&open)?),
            }
        }
    }

    fn lock_or_wait(&self, locks: &mut NodeLocks, wanted: &LockRequest, wait: Option<&mut LockWait<'_>>) -> Result<Locked, Errno> {
        let table = &self.0;
        let result = match (locks.attempt(wanted), wait) {
            (Attempt::Granted, _) => Ok(Locked::Done),
            (Attempt::Failed(errno), _) => Err(errno),
            (Attempt::Local(_) | Attempt::Foreign, None) => Err(Errno::EAGAIN),
            (Attempt::Local(other), Some(_)) if !table.waits.may_wait(wanted.owner, other) => Err(Errno::EDEADLK),
            (_, Some(wait)) => {
                let begun = if retry::has_thread(table) { table.waits.begin(wanted, wait, locks) } else { Err(Errno::ENOLCK) };
                begun.map(|()| Locked::Waits).inspect_err(|_| table.waits.unblock(wanted.owner))
            }
        };
        table.drop_owner_if_unused(locks, wanted.owner);
        // The owner may have held more before: exclusive instead of shared, or what flock(2) releases.
        let may_free = result != Err(Errno::EAGAIN) || wanted.owner.family == LockFamily::Flock;
        if result == Ok(Locked::Done) {
            table.waits.unblock_waiters_of(wanted.owner, &locks.waiters);
        }
        if may_free && !locks.waiters.is_empty() {
            retry::schedule(table, wanted.node);
        }
        result
    }

    /// Releases what `owner` holds of `span`. Errors as of fcntl(2) and flock(2).
    pub fn unlock(&self, node: NodeId, owner: LockOwner, span: Span) -> Result<(), Errno> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.on_existing(node, |locks| self.unlock_one(node, locks, owner, span)).unwrap_or(Ok(()))
    }

    fn unlock_one(&self, node: NodeId, locks: &mut NodeLocks, owner: LockOwner, span: Span) -> Result<(), Errno> {
        if !locks.release(owner, span)? {
            return Ok(());
        }
        self.0.drop_owner_if_unused(locks, owner);
        if !locks.waiters.is_empty() {
            self.0.waits.unblock_waiters_of(owner, &locks.waiters);
            retry::schedule(&self.0, node);
        }
        Ok(())
    }

    /// The lock that conflicts with one of `kind` on `span` for `owner`. `other` is any open file of the node, for an owner
    /// that has no lock on it. The process is known for locks of this guest, otherwise 0.
    pub fn find_conflict(
        &self,
        node: NodeId,
        owner: LockOwner,
        span: Span,
        kind: LockKind,
        other: BorrowedFd<'_>,
    ) -> Result<Option<HeldLock>, Errno> {
        let known = self.0.on_existing(node, |locks| locks.find_conflict(owner, span, kind));
        known.flatten().unwrap_or_else(|| foreign_conflict(other, span, kind))
    }

    /// Ends what belongs to `handle`, which is released: waits, with EBADF, and record locks that were taken through it. A
    /// process has lost its own by then (FLUSH); those of the open file itself (F_OFD_SETLK in the guest) end here.
    pub fn release(&self, node: NodeId, handle: FileHandle) {
        if self.0.is_empty() {
            return;
        }
        let ended = self.0.on_existing(node, |locks| {
            let ended = locks.take_waiters(|waiter| waiter.wanted.handle == handle);
            for waiter in &ended {
                self.0.drop_owner_if_unused(locks, waiter.wanted.owner);
            }
            for (owner, span) in locks.taken_through(handle) {
                // RELEASE has no error for this.
                let _ = self.unlock_one(node, locks, owner, span);
            }
            ended
        });
        self.0.waits.end(ended.into_iter().flatten(), Errno::EBADF);
    }

    /// INTERRUPT: ends the wait of the request `unique` with EINTR. One whose request does not wait is remembered, for it may
    /// have overtaken the request.
    pub fn interrupt(&self, unique: Unique) {
        let Some(node) = self.0.waits.node_of(unique) else { return };
        let ended = self.0.on_existing(node, |locks| {
            let at = locks.waiters.iter().position(|waiter| waiter.unique == unique)?;
            let waiter = locks.waiters.remove(at)?;
            self.0.drop_owner_if_unused(locks, waiter.wanted.owner);
            Some(waiter)
        });
        self.0.waits.end(ended.flatten(), Errno::EINTR);
    }

    /// The request `unique` does not wait for a lock: an INTERRUPT of it that came before is dropped.
    pub fn forget_interrupt(&self, unique: Unique) {
        self.0.waits.forget_interrupt(unique);
    }

    /// Removes the locks on `node`, which the guest forgot, from the table, to be ended by [`GuestLocks::end`]. Does not block.
    pub fn detach(&self, node: NodeId) -> Option<Detached> {
        self.0.detach(node)
    }

    /// Ends locks that were removed from the table; waits end with `errno`.
    pub fn end(&self, detached: Detached, errno: Errno) {
        self.0.end(detached, errno);
    }

    /// Ends all locks; waits end with EIO.
    pub fn clear(&self) {
        self.0.clear();
    }
}
