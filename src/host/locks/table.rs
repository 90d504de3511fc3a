//! The guest's locks on the host. Each owner (a process of the guest, or an open file of flock(2)) has an open
//! file description of its own on each file that it locks, so that the host's kernel keeps owners apart: those
//! of one guest, of other guests, and host processes. What an owner holds is noted too: it tells GETLK's
//! process, and which waits a local unlock can end.
//!
//! Host calls are made under the lock of one file's entry. None of them waits; on a network file system they
//! take a round trip, which then delays other lock requests on that file only.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::host::files::descriptors::Counted;
use crate::host::locks::ranges::{Held, LockRanges};
use crate::host::locks::waits::{Waiter, Waits};
use crate::sys::lock::{self, LockKind, Span};
use crate::types::{Errno, FileHandle, NodeId, Unique};

/// Ranges that one owner may hold on one file: the host's kernel walks as many records for each lock on it.
const RANGES_MAX: usize = 1 << 14;
/// Ranges of all owners on all files: 50 MB of the host kernel's memory.
const ALL_RANGES_MAX: usize = 1 << 18;

/// Which kind of locks: the two do not see each other (man flock(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// fcntl(2).
    Posix,
    /// flock(2).
    Flock,
}

/// Who holds a lock, as the guest's kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockOwner {
    /// Among which locks.
    pub family: Family,
    /// The guest's number for a process or an open file.
    pub id: u64,
}

/// A lock that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct LockRequest {
    /// The file.
    pub node: NodeId,
    /// The open file that the guest asked through.
    pub handle: FileHandle,
    /// For whom.
    pub owner: LockOwner,
    /// Which bytes.
    pub span: Span,
    /// How.
    pub kind: LockKind,
    /// The guest's process.
    pub pid: u32,
}

/// What ends a wait: called once, by no thread that holds a lock of ours.
pub type LockAnswer = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// How a request may wait for a lock.
pub struct LockWait<'w> {
    /// The request, for an INTERRUPT of it.
    pub unique: Unique,
    /// Suspends the request, which waits from then on: what answers it when the wait is over.
    pub suspend: &'w mut dyn FnMut() -> Result<LockAnswer, Errno>,
}

impl std::fmt::Debug for LockWait<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LockWait").field("unique", &self.unique).finish_non_exhaustive()
    }
}

/// What became of a request for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    /// It is held.
    Done,
    /// The answer comes later.
    Waits,
}

/// All locks of the guest.
#[derive(Debug, Default)]
pub struct Locks {
    nodes: Mutex<FxHashMap<NodeId, Arc<Mutex<NodeLocks>>>>,
    /// Descriptions that are open.
    files: AtomicUsize,
    /// Ranges that are held, of all owners.
    ranges: Arc<AtomicUsize>,
    pub(in crate::host) waits: Waits,
}

/// The locks on one file.
#[derive(Debug, Default)]
pub(in crate::host) struct NodeLocks {
    owners: FxHashMap<LockOwner, Owner>,
    /// Those of `owners` that hold something: few, where many wait.
    holders: FxHashSet<LockOwner>,
    pub waiters: VecDeque<Waiter>,
    /// Taken off the table: look there again.
    gone: bool,
}

/// An open file description for the locks of one owner on one file.
#[derive(Debug)]
pub struct LockFile {
    /// Its only descriptor.
    pub file: Counted,
    /// Whether it is open for writing, as an exclusive record lock demands (man fcntl(2)).
    pub is_writable: bool,
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Debug)]
struct Owner {
    file: LockFile,
    ranges: LockRanges,
    /// The count of all owners' ranges.
    all: Arc<AtomicUsize>,
}

impl Owner {
    fn new(file: LockFile, all: &Arc<AtomicUsize>) -> Owner {
        Owner { file, ranges: LockRanges::default(), all: Arc::clone(all) }
    }

    fn is_full(&self) -> bool {
        self.ranges.len() >= RANGES_MAX || self.all.load(Ordering::Relaxed) >= ALL_RANGES_MAX
    }

    /// Changes the ranges, and the count of all by as much.
    fn change(&mut self, change: impl FnOnce(&mut LockRanges)) {
        let before = self.ranges.len();
        change(&mut self.ranges);
        self.all.fetch_add(self.ranges.len(), Ordering::Relaxed);
        self.all.fetch_sub(before, Ordering::Relaxed);
    }

    /// Puts `file` in place of the owner's description, which is open for reading only and so holds nothing but shared locks.
    /// The new one takes the same locks first: shared locks do not exclude each other, and at no time is one not held. On an
    /// error everything is as before.
    fn move_to(&mut self, file: LockFile, family: Family) -> Result<(), Errno> {
        for held in self.ranges.iter() {
            host_set(file.as_fd(), family, held.span, Some(held.kind))?;
        }
        self.file = file;
        Ok(())
    }

    /// flock(2) has given everything up.
    fn lose(&mut self) {
        self.change(|ranges| *ranges = LockRanges::default());
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.all.fetch_sub(self.ranges.len(), Ordering::Relaxed);
    }
}

/// How an attempt came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Attempt {
    Granted,
    /// Another owner of this guest is in the way.
    Local(LockOwner),
    /// Somebody else on the host is.
    Foreign,
    Failed(Errno),
}

impl NodeLocks {
    /// Tries to take the lock; the owner has its description.
    pub fn attempt(&mut self, wanted: &LockRequest) -> Attempt {
        let in_the_way = self.holder_in_the_way(wanted.owner, wanted.span, wanted.kind).map(|(owner, _)| owner);
        let Some(owner) = self.owners.get_mut(&wanted.owner) else { return Attempt::Failed(Errno::ENOLCK) };
        if let Some(other) = in_the_way {
            // flock(2) gives the old lock up first; two that turn shared into exclusive would else wait for ever.
            if wanted.owner.family == Family::Flock && !owner.ranges.is_empty() {
                let _ = lock::set_whole(owner.file.as_fd(), None);
                owner.lose();
                self.holders.remove(&wanted.owner);
            }
            return Attempt::Local(other);
        }
        if owner.is_full() {
            return Attempt::Failed(Errno::ENOLCK);
        }
        match host_set(owner.file.as_fd(), wanted.owner.family, wanted.span, Some(wanted.kind)) {
            Ok(()) => {
                let held = Held { span: wanted.span, kind: wanted.kind, pid: wanted.pid, through: wanted.handle };
                owner.change(|ranges| ranges.set(held));
                self.holders.insert(wanted.owner);
                Attempt::Granted
            }
            Err(Errno::EAGAIN) => {
                if wanted.owner.family == Family::Flock {
                    owner.lose();
                    self.holders.remove(&wanted.owner);
                }
                Attempt::Foreign
            }
            Err(errno) => Attempt::Failed(errno),
        }
    }

    fn holder_in_the_way(&self, of: LockOwner, span: Span, kind: LockKind) -> Option<(LockOwner, Held)> {
        let mut others = self.holders.iter().filter(|owner| **owner != of && owner.family == of.family);
        others.find_map(|owner| Some((*owner, *self.owners.get(owner)?.ranges.in_the_way_of(span, kind)?)))
    }
}

fn host_set(file: BorrowedFd<'_>, family: Family, span: Span, kind: Option<LockKind>) -> Result<(), Errno> {
    match family {
        Family::Posix => lock::set(file, span, kind),
        Family::Flock => lock::set_whole(file, kind),
    }
}

impl Locks {
    /// An empty table. A wait that takes longer than `wait_max` ends with ENOLCK.
    pub fn new(wait_max: Option<Duration>) -> Locks {
        Locks { nodes: Mutex::default(), files: AtomicUsize::new(0), ranges: Arc::default(), waits: Waits::new(wait_max) }
    }

    /// Runs `act` on the locks of `node`, which get an entry if they have none.
    fn on<R>(&self, node: NodeId, act: impl FnOnce(&mut MutexGuard<'_, NodeLocks>) -> R) -> R {
        loop {
            let entry = Arc::clone(self.nodes.lock().entry(node).or_default());
            let mut locks = entry.lock();
            if !locks.gone {
                let result = act(&mut locks);
                self.drop_if_unused(node, &entry, &mut locks);
                return result;
            }
        }
    }

    /// As `on`, where there is an entry.
    pub(in crate::host) fn on_existing<R>(&self, node: NodeId, act: impl FnOnce(&mut MutexGuard<'_, NodeLocks>) -> R) -> Option<R> {
        let entry = self.nodes.lock().get(&node).cloned()?;
        let mut locks = entry.lock();
        if locks.gone {
            return None;
        }
        let result = act(&mut locks);
        self.drop_if_unused(node, &entry, &mut locks);
        Some(result)
    }

    /// `locks` are those in `entry`, which may have been taken out of the table, and `node` have another one.
    fn drop_if_unused(&self, node: NodeId, entry: &Arc<Mutex<NodeLocks>>, locks: &mut NodeLocks) {
        if locks.owners.is_empty() && locks.waiters.is_empty() {
            locks.gone = true;
            let mut nodes = self.nodes.lock();
            if nodes.get(&node).is_some_and(|present| Arc::ptr_eq(present, entry)) {
                nodes.remove(&node);
            }
        }
    }

    /// Takes the lock. Where another is in the way: EAGAIN, or, with `wait`, the answer that it makes is called
    /// when the wait is over. EDEADLK where it would never be; EINTR where it was interrupted before it began; ENOLCK where
    /// there are too many locks; ESTALE where `is_known` says that the guest forgot the file, so that no lock stays that nothing
    /// ends. `open` opens the file for an owner that has no lock on it yet, or whose description is open
    /// for reading only where the lock `needs_write`.
    pub fn lock(
        self: &Arc<Self>,
        wanted: &LockRequest,
        needs_write: bool,
        is_known: impl Fn() -> bool,
        open: impl Fn() -> Result<LockFile, Errno>,
        mut wait: Option<LockWait<'_>>,
    ) -> Result<Locked, Errno> {
        let suits = |owner: &Owner| owner.file.is_writable || !needs_write;
        let is_open = self.on_existing(wanted.node, |locks| locks.owners.get(&wanted.owner).is_some_and(suits)).unwrap_or(false);
        // Opened outside the lock. Another thread of the same owner may open it too, and one is closed again.
        let mut file = if is_open { None } else { Some(self.counted(&open)?) };
        loop {
            let result = self.on(wanted.node, |locks| {
                if !is_known() {
                    return Some(Err(Errno::ESTALE));
                }
                match locks.owners.entry(wanted.owner) {
                    Entry::Vacant(place) => _ = place.insert(Owner::new(file.take()?, &self.ranges)),
                    Entry::Occupied(mut owner) if !suits(owner.get()) => {
                        // Where the file cannot be opened for writing the host decides with the description that there is.
                        if file.as_ref()?.is_writable {
                            let moved = owner.get_mut().move_to(file.take()?, wanted.owner.family);
                            self.files.fetch_sub(1, Ordering::Relaxed);
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
                        self.files.fetch_sub(1, Ordering::Relaxed);
                    }
                    return result;
                }
                // Another thread of the same owner has unlocked everything meanwhile.
                None => file = Some(self.counted(&open)?),
            }
        }
    }

    fn lock_or_wait(
        self: &Arc<Self>,
        locks: &mut NodeLocks,
        wanted: &LockRequest,
        wait: Option<&mut LockWait<'_>>,
    ) -> Result<Locked, Errno> {
        let result = match (locks.attempt(wanted), wait) {
            (Attempt::Granted, _) => Ok(Locked::Done),
            (Attempt::Failed(errno), _) => Err(errno),
            (Attempt::Local(_) | Attempt::Foreign, None) => Err(Errno::EAGAIN),
            (Attempt::Local(other), Some(_)) if !self.waits.may_wait(wanted.owner, other) => Err(Errno::EDEADLK),
            (_, Some(wait)) => self.waits.begin(self, wanted, wait, locks).inspect_err(|_| self.waits.is_free(wanted.owner)),
        };
        self.drop_owner_if_unused(locks, wanted.owner);
        // What was held before may have been more: exclusive instead of shared, or what flock(2) gives up.
        let may_free = result != Err(Errno::EAGAIN) || wanted.owner.family == Family::Flock;
        if result == Ok(Locked::Done) {
            self.waits.gave_up(wanted.owner, &locks.waiters);
        }
        if may_free && !locks.waiters.is_empty() {
            self.waits.look_at(self, wanted.node);
        }
        result
    }

    fn counted(&self, open: impl Fn() -> Result<LockFile, Errno>) -> Result<LockFile, Errno> {
        self.files.fetch_add(1, Ordering::Relaxed);
        open().inspect_err(|_| _ = self.files.fetch_sub(1, Ordering::Relaxed))
    }

    /// Closes the description of an owner that holds nothing and waits for nothing.
    pub(in crate::host) fn drop_owner_if_unused(&self, locks: &mut NodeLocks, owner: LockOwner) {
        let is_unused = locks.owners.get(&owner).is_some_and(|o| o.ranges.is_empty());
        if is_unused && !locks.waiters.iter().any(|w| w.wanted.owner == owner) {
            locks.owners.remove(&owner);
            self.files.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes off what `owner` holds of `span`.
    pub fn unlock(self: &Arc<Self>, node: NodeId, owner: LockOwner, span: Span) -> Result<(), Errno> {
        if self.files.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        self.on_existing(node, |locks| self.unlock_one(node, locks, owner, span)).unwrap_or(Ok(()))
    }

    fn unlock_one(self: &Arc<Self>, node: NodeId, locks: &mut NodeLocks, owner: LockOwner, span: Span) -> Result<(), Errno> {
        let Some(held) = locks.owners.get_mut(&owner) else { return Ok(()) };
        host_set(held.file.as_fd(), owner.family, span, None)?;
        held.change(|ranges| ranges.clear(span));
        if held.ranges.is_empty() {
            locks.holders.remove(&owner);
        }
        self.drop_owner_if_unused(locks, owner);
        if !locks.waiters.is_empty() {
            self.waits.gave_up(owner, &locks.waiters);
            self.waits.look_at(self, node);
        }
        Ok(())
    }

    /// The lock that keeps `owner` from one of `kind` on `span`. `other` is any open file of the node, for an owner
    /// that has no lock on it. The process is known for locks of this guest, else 0.
    pub fn in_the_way(
        &self,
        node: NodeId,
        owner: LockOwner,
        span: Span,
        kind: LockKind,
        other: BorrowedFd<'_>,
    ) -> Result<Option<Held>, Errno> {
        let known = self.on_existing(node, |locks| {
            if let Some((_, held)) = locks.holder_in_the_way(owner, span, kind) {
                return Some(Ok(Some(held)));
            }
            let file = locks.owners.get(&owner)?;
            Some(lock::in_the_way(file.file.as_fd(), span, kind).map(|found| found.map(foreign)))
        });
        match known.flatten() {
            Some(found) => found,
            None => Ok(lock::in_the_way(other, span, kind)?.map(foreign)),
        }
    }

    /// Ends what hangs on `handle`, which is released: waits, with EBADF, and record locks that were taken through it. A
    /// process has lost its own by then (FLUSH); those of the open file itself (F_OFD_SETLK in the guest) end here.
    pub fn release(self: &Arc<Self>, node: NodeId, handle: FileHandle) {
        if self.files.load(Ordering::Relaxed) == 0 {
            return;
        }
        let ended = self.on_existing(node, |locks| {
            let (ended, left): (VecDeque<_>, VecDeque<_>) = locks.waiters.drain(..).partition(|w| w.wanted.handle == handle);
            locks.waiters = left;
            for waiter in &ended {
                self.drop_owner_if_unused(locks, waiter.wanted.owner);
            }
            let posix = locks.holders.iter().filter(|owner| owner.family == Family::Posix);
            let taken = |owner: &LockOwner| locks.owners.get(owner).map_or(Vec::new(), |o| o.ranges.taken_through(handle));
            let left: Vec<(LockOwner, Span)> = posix.flat_map(|owner| taken(owner).into_iter().map(|span| (*owner, span))).collect();
            for (owner, span) in left {
                // A guest that released the file cannot be told of an error.
                let _ = self.unlock_one(node, locks, owner, span);
            }
            ended
        });
        self.waits.end(ended.into_iter().flatten(), Errno::EBADF);
    }

    /// INTERRUPT: ends the wait of the request `unique` with EINTR. One whose request does not wait is remembered, for it may
    /// have overtaken it.
    pub fn interrupt(self: &Arc<Self>, unique: Unique) {
        let Some(node) = self.waits.node_of(unique) else { return };
        let ended = self.on_existing(node, |locks| {
            let at = locks.waiters.iter().position(|waiter| waiter.unique == unique)?;
            let waiter = locks.waiters.remove(at)?;
            self.drop_owner_if_unused(locks, waiter.wanted.owner);
            Some(waiter)
        });
        self.waits.end(ended.flatten().into_iter(), Errno::EINTR);
    }

    /// The request `unique` does not wait for a lock: an INTERRUPT of it that came before is forgotten.
    pub fn forget_interrupt(&self, unique: Unique) {
        self.waits.forget_interrupt(unique);
    }

    /// Takes the locks on `node`, which the guest forgot, out of the table; to be ended by [`Locks::end`]. Waits for nothing.
    pub fn detach(&self, node: NodeId) -> Option<Detached> {
        if self.files.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.nodes.lock().remove(&node).map(Detached)
    }

    /// Ends locks that were taken out of the table; waits end with `errno`.
    pub fn end(&self, detached: Detached, errno: Errno) {
        let Detached(entry) = detached;
        let mut locks = entry.lock();
        locks.gone = true;
        locks.holders.clear();
        let (owners, waiters) = (std::mem::take(&mut locks.owners), std::mem::take(&mut locks.waiters));
        drop(locks);
        self.files.fetch_sub(owners.len(), Ordering::Relaxed);
        drop(owners);
        self.waits.end(waiters.into_iter(), errno);
    }

    /// Lets go of everything; waits end with EIO.
    pub fn clear(&self) {
        let nodes: Vec<NodeId> = self.nodes.lock().keys().copied().collect();
        for detached in nodes.into_iter().filter_map(|node| self.detach(node)) {
            self.end(detached, Errno::EIO);
        }
        self.waits.clear();
    }
}

/// The locks of one file, on their way out: whoever still finds them there looks at the table again.
#[derive(Debug)]
pub struct Detached(Arc<Mutex<NodeLocks>>);

/// A lock of somebody outside this guest.
fn foreign((span, kind): (Span, LockKind)) -> Held {
    Held { span, kind, pid: 0, through: FileHandle::NONE }
}
