//! All locks of the guest, by file. Host calls are made under the lock of one file's entry. None of them waits; on a network
//! file system they take a round trip, which delays other lock requests on that file only.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHashMap;

use super::node::NodeLocks;
use super::owner::{AllRanges, LockFile, OwnerLocks};
use super::request::LockOwner;
use super::waits::Waits;
use crate::host::files::Counted;
use crate::state::{LockRecords, RecordedOwner};
use crate::types::{Errno, NodeId};

/// The locks by file, and the waits.
#[derive(Debug)]
pub(super) struct LockTable {
    nodes: Mutex<FxHashMap<NodeId, Arc<Mutex<NodeLocks>>>>,
    /// Open file descriptions, one for each owner on each file.
    files: AtomicUsize,
    /// What all owners have in common.
    pub ranges: Arc<AllRanges>,
    pub waits: Waits,
}

/// The locks of one file that were removed from the table.
#[derive(Debug)]
pub struct Detached(Arc<Mutex<NodeLocks>>);

impl LockTable {
    /// An empty table, kept in `records`; a wait ends after `wait_max`.
    pub fn new(wait_max: Option<Duration>, records: LockRecords) -> LockTable {
        let (nodes, files, ranges) = (Mutex::default(), AtomicUsize::new(0), Arc::new(AllRanges::new(records)));
        LockTable { nodes, files, ranges, waits: Waits::new(wait_max) }
    }

    /// Adds owners of a process that died, each with its description. One that holds nothing may have been granted what its request,
    /// which is executed again, waits for.
    pub fn recover(&self, owners: impl Iterator<Item = (RecordedOwner, Counted)>) {
        for (attached, file) in owners {
            let node = attached.note.node;
            let (owner, locks) = OwnerLocks::recovered(attached, file, &self.ranges);
            self.files.fetch_add(1, Ordering::Relaxed);
            self.on(node, |node| node.recover(owner, locks));
        }
    }

    /// Whether no owner has a description, so that nothing is locked or waited for.
    pub fn is_empty(&self) -> bool {
        self.files.load(Ordering::Relaxed) == 0
    }

    /// Runs `act` on the locks of `node`, which get an entry if they have none.
    pub fn on<R>(&self, node: NodeId, act: impl FnOnce(&mut MutexGuard<'_, NodeLocks>) -> R) -> R {
        loop {
            let entry = Arc::clone(self.nodes.lock().entry(node).or_default());
            let mut locks = entry.lock();
            if !locks.gone {
                let result = act(&mut locks);
                self.remove_if_unused(node, &entry, &mut locks);
                return result;
            }
        }
    }

    /// As [`LockTable::on`], where there is an entry.
    pub fn on_existing<R>(&self, node: NodeId, act: impl FnOnce(&mut MutexGuard<'_, NodeLocks>) -> R) -> Option<R> {
        let entry = self.nodes.lock().get(&node).cloned()?;
        let mut locks = entry.lock();
        if locks.gone {
            return None;
        }
        let result = act(&mut locks);
        self.remove_if_unused(node, &entry, &mut locks);
        Some(result)
    }

    /// `locks` are those in `entry`, which may have been removed from the table and replaced by another one.
    fn remove_if_unused(&self, node: NodeId, entry: &Arc<Mutex<NodeLocks>>, locks: &mut NodeLocks) {
        if locks.owners.is_empty() && locks.waiters.is_empty() {
            locks.gone = true;
            let mut nodes = self.nodes.lock();
            if nodes.get(&node).is_some_and(|present| Arc::ptr_eq(present, entry)) {
                nodes.remove(&node);
            }
        }
    }

    /// What `open` opens, counted; its errors.
    pub fn open_counted(&self, open: impl Fn() -> Result<LockFile, Errno>) -> Result<LockFile, Errno> {
        self.files.fetch_add(1, Ordering::Relaxed);
        open().inspect_err(|_| self.uncount(1))
    }

    /// Adds the number of the descriptor of every owner to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        for node in self.nodes.lock().values() {
            named.extend(node.lock().owners.values().map(|owner| owner.file().as_raw_fd()));
        }
    }

    /// Counts `count` descriptions less.
    pub fn uncount(&self, count: usize) {
        self.files.fetch_sub(count, Ordering::Relaxed);
    }

    /// Closes the description of an owner that holds nothing and waits for nothing.
    pub fn drop_owner_if_unused(&self, locks: &mut NodeLocks, owner: LockOwner) {
        if locks.is_unused(owner) {
            locks.owners.remove(&owner);
            self.uncount(1);
        }
    }

    /// Removes the locks on `node` from the table, to be ended by [`LockTable::end`]. Does not block.
    pub fn detach(&self, node: NodeId) -> Option<Detached> {
        if self.is_empty() {
            return None;
        }
        self.nodes.lock().remove(&node).map(Detached)
    }

    /// Ends locks that were removed from the table; waits end with `errno`.
    pub fn end(&self, detached: Detached, errno: Errno) {
        let Detached(entry) = detached;
        let mut locks = entry.lock();
        let (owners, waiters) = locks.take_all();
        drop(locks);
        self.uncount(owners.len());
        drop(owners);
        self.waits.end(waiters, errno);
    }

    /// Ends all locks; waits end with EIO.
    pub fn clear(&self) {
        let nodes: Vec<NodeId> = self.nodes.lock().keys().copied().collect();
        for detached in nodes.into_iter().filter_map(|node| self.detach(node)) {
            self.end(detached, Errno::EIO);
        }
        self.waits.clear();
    }
}
