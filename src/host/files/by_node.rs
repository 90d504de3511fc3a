//! Descriptors by node: a bounded cache of recently used ones, and pinned ones that the inode must keep (an O_PATH descriptor,
//! where it has no file handle). Hits allocate nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::state::{Budget, Reserved};
use crate::types::NodeId;

/// Parts of the set with a lock of their own: more than there are threads.
const SHARDS: usize = 16;

/// What is open, by node: a descriptor, or something that holds one.
#[derive(Debug)]
pub(super) struct ByNode<T> {
    shards: [Line<Mutex<Shard<T>>>; SHARDS],
    shard_len_max: usize,
    /// The part that is searched first when a descriptor must be closed.
    turn: AtomicUsize,
    /// In which every descriptor here is counted.
    budget: Arc<Budget>,
}

/// In cache lines of its own, so that threads do not wait for each other's lines.
#[derive(Debug)]
#[repr(align(64))]
struct Line<T>(T);

/// A descriptor with a reserved place in the budget.
#[derive(Debug)]
pub struct Pinnable<'p, T> {
    fd: T,
    reserved: Reserved<'p>,
}

impl<T> Pinnable<'_, T> {
    /// `fd` with its place.
    pub fn new(fd: T, reserved: Reserved<'_>) -> Pinnable<'_, T> {
        Pinnable { fd, reserved }
    }
}

#[derive(Debug)]
struct Shard<T> {
    pinned: FxHashMap<NodeId, Arc<T>>,
    places: FxHashMap<NodeId, usize>,
    recent: Vec<Recent<T>>,
    /// Where the search for a descriptor to close continues (second chance).
    hand: usize,
}

#[derive(Debug)]
struct Recent<T> {
    node: NodeId,
    fd: Arc<T>,
    used: bool,
}

impl<T> ByNode<T> {
    /// A set that keeps about `recent_max` descriptors beside pinned ones, as far as `budget` has places.
    pub fn new(recent_max: usize, budget: Arc<Budget>) -> ByNode<T> {
        let shard_len_max = (recent_max / SHARDS).max(1);
        let shard = || Shard { pinned: FxHashMap::default(), places: FxHashMap::default(), recent: Vec::new(), hand: 0 };
        ByNode { shards: std::array::from_fn(|_| Line(Mutex::new(shard()))), shard_len_max, turn: AtomicUsize::new(0), budget }
    }

    #[expect(clippy::cast_possible_truncation, reason = "any bits of the number will do")]
    fn shard(&self, node: NodeId) -> &Mutex<Shard<T>> {
        &self.shards[node.0 as usize % SHARDS].0
    }

    /// The descriptor of `node`, if it is here.
    pub fn get(&self, node: NodeId) -> Option<Arc<T>> {
        let mut shard = self.shard(node).lock();
        if let Some(&place) = shard.places.get(&node) {
            let recent = &mut shard.recent[place];
            recent.used = true;
            return Some(Arc::clone(&recent.fd));
        }
        shard.pinned.get(&node).cloned()
    }

    /// Keeps `fd` until it is evicted. Where the budget has no place, another one of the same part is evicted for it; if there is
    /// none, `fd` is not kept.
    pub fn insert(&self, node: NodeId, fd: Arc<T>) {
        let evicted;
        {
            let mut shard = self.shard(node).lock();
            // Not marked: one that is never used again is evicted first.
            let entry = Recent { node, fd, used: false };
            if let Some(&place) = shard.places.get(&node) {
                evicted = Some(std::mem::replace(&mut shard.recent[place], entry));
            } else if shard.recent.len() < self.shard_len_max
                && let Some(reserved) = self.budget.reserve(1, 0)
            {
                reserved.keep();
                let place = shard.recent.len();
                shard.places.insert(node, place);
                shard.recent.push(entry);
                evicted = None;
            } else if shard.recent.is_empty() {
                return;
            } else {
                let place = shard.place_to_reuse();
                let old = std::mem::replace(&mut shard.recent[place], entry);
                shard.places.remove(&old.node);
                shard.places.insert(node, place);
                evicted = Some(old);
            }
        }
        // Closed outside the lock.
        drop(evicted);
    }

    /// Keeps a descriptor as long as the node is known.
    pub fn pin(&self, node: NodeId, pinnable: Pinnable<'_, T>) {
        let Pinnable { fd, reserved } = pinnable;
        reserved.keep();
        self.shard(node).lock().pinned.insert(node, Arc::new(fd));
    }

    /// Calls `look` for each that is pinned.
    pub fn each_pinned(&self, mut look: impl FnMut(&T)) {
        for shard in &self.shards {
            shard.0.lock().pinned.values().for_each(|fd| look(fd));
        }
    }

    /// Closes one that was not used recently, for its place. False where there is none.
    pub fn close_recent(&self) -> bool {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let closed = (0..SHARDS).find_map(|i| {
            let mut shard = self.shards[first.wrapping_add(i) % SHARDS].0.lock();
            if shard.recent.is_empty() {
                return None;
            }
            let place = shard.place_to_reuse();
            Some(shard.take(place))
        });
        let is_closed = closed.is_some();
        // Closed outside the lock, and before its place is given back.
        drop(closed);
        if is_closed {
            self.budget.give(1);
        }
        is_closed
    }

    /// Closes the descriptors of `node`.
    pub fn remove(&self, node: NodeId) {
        let mut shard = self.shard(node).lock();
        let pinned = shard.pinned.remove(&node);
        let recent = shard.places.get(&node).copied().map(|place| shard.take(place));
        drop(shard);
        let count = usize::from(pinned.is_some()) + usize::from(recent.is_some());
        drop((pinned, recent));
        if count > 0 {
            self.budget.give(count);
        }
    }
}

impl<T> Drop for ByNode<T> {
    fn drop(&mut self) {
        for shard in &mut self.shards {
            let shard = shard.0.get_mut();
            let count = shard.pinned.len() + shard.recent.len();
            drop((std::mem::take(&mut shard.pinned), std::mem::take(&mut shard.recent)));
            if count > 0 {
                self.budget.give(count);
            }
        }
    }
}

impl<T> Shard<T> {
    /// Takes the recent one at `place` out.
    fn take(&mut self, place: usize) -> Recent<T> {
        let old = self.recent.swap_remove(place);
        self.places.remove(&old.node);
        if let Some(moved) = self.recent.get(place).map(|r| r.node) {
            self.places.insert(moved, place);
        }
        old
    }

    fn place_to_reuse(&mut self) -> usize {
        // Ends within two rounds: the first clears every mark.
        loop {
            self.hand = (self.hand + 1) % self.recent.len();
            if !std::mem::replace(&mut self.recent[self.hand].used, false) {
                return self.hand;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> std::os::fd::OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn the_set_is_bounded_keeps_what_is_used_and_never_drops_pinned_ones() {
        let budget = Arc::new(Budget::new(5));
        let set = ByNode::new(4 * SHARDS, Arc::clone(&budget));
        let node = |i: u64| NodeId(i * SHARDS as u64); // all in one shard
        set.pin(node(100), Pinnable::new(fd(), budget.reserve(1, 0).unwrap()));
        for i in 0..50 {
            set.insert(node(i), Arc::new(fd()));
            assert!(set.get(node(0)).is_some(), "used every time");
        }
        let kept = (0..50).filter(|&i| set.get(node(i)).is_some()).count();
        assert_eq!(kept, 4);
        assert!(budget.reserve(1, 0).is_none(), "each has its place");
        assert!(set.get(node(100)).is_some());
        set.remove(node(0));
        set.remove(node(100));
        assert!(set.get(node(0)).is_none() && set.get(node(100)).is_none());
        assert!(budget.reserve(2, 0).is_some(), "there is room again");
    }

    #[test]
    fn what_is_recent_gives_way_and_is_not_kept_where_there_is_no_room() {
        let budget = Arc::new(Budget::new(3));
        let set = ByNode::new(4 * SHARDS, Arc::clone(&budget));
        for i in 0..3 {
            set.insert(NodeId(i), Arc::new(fd()));
        }
        set.insert(NodeId(3), Arc::new(fd()));
        assert!(set.get(NodeId(3)).is_none(), "no room");
        set.insert(NodeId(SHARDS as u64), Arc::new(fd()));
        assert!(set.get(NodeId(SHARDS as u64)).is_some() && set.get(NodeId(0)).is_none(), "in place of one of its part");
        assert!(set.close_recent() && budget.reserve(1, 0).is_some());
        assert!(set.close_recent() && set.close_recent());
        assert!(!set.close_recent() && budget.reserve(3, 0).is_some());
        assert!([0, 1, 2, 3, SHARDS as u64].iter().all(|&i| set.get(NodeId(i)).is_none()));
    }
}
