//! What is open of an inode, by node: a bounded set of recently used ones, and those that the inode must
//! keep (an O_PATH descriptor, where it has no file handle). Hits allocate nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::types::{Errno, NodeId};

/// Parts of the set with a lock of their own: more than there are threads that meet.
const SHARDS: usize = 16;

/// What is open, by node: a descriptor, or something that holds one.
#[derive(Debug)]
pub struct ByNode<T> {
    shards: [Mutex<Shard<T>>; SHARDS],
    shard_len_max: usize,
    pinned: AtomicUsize,
    pinned_max: usize,
}

/// A descriptor that has its place among the pinned ones.
#[derive(Debug)]
pub struct Pinnable<'p, T> {
    fd: Option<T>,
    pinned: &'p AtomicUsize,
}

impl<T> Drop for Pinnable<'_, T> {
    fn drop(&mut self) {
        if self.fd.is_some() {
            self.pinned.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Shard<T> {
    pinned: FxHashMap<NodeId, Arc<T>>,
    places: FxHashMap<NodeId, usize>,
    recent: Vec<Recent<T>>,
    /// Where the search for a descriptor to close goes on (second chance).
    hand: usize,
}

#[derive(Debug)]
struct Recent<T> {
    node: NodeId,
    fd: Arc<T>,
    used: bool,
}

impl<T> ByNode<T> {
    /// A set that keeps about `recent_max` descriptors beside at most `pinned_max` pinned ones.
    pub fn new(recent_max: usize, pinned_max: usize) -> ByNode<T> {
        let shard_len_max = (recent_max / SHARDS).max(1);
        let shard = |_| Mutex::new(Shard { pinned: FxHashMap::default(), places: FxHashMap::default(), recent: Vec::new(), hand: 0 });
        ByNode { shards: std::array::from_fn(shard), shard_len_max, pinned: AtomicUsize::new(0), pinned_max }
    }

    fn shard(&self, node: NodeId) -> &Mutex<Shard<T>> {
        &self.shards[node.0 as usize % SHARDS]
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

    /// Keeps `fd` until it was not used for a while.
    pub fn insert(&self, node: NodeId, fd: Arc<T>) {
        let evicted;
        {
            let mut shard = self.shard(node).lock();
            // Not marked: one that is never used again goes before one that is.
            let entry = Recent { node, fd, used: false };
            if let Some(&place) = shard.places.get(&node) {
                evicted = Some(std::mem::replace(&mut shard.recent[place], entry));
            } else if shard.recent.len() < self.shard_len_max {
                let place = shard.recent.len();
                shard.places.insert(node, place);
                shard.recent.push(entry);
                evicted = None;
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

    /// Makes room for one more pinned descriptor. ENFILE where there is none.
    pub fn pinnable(&self, fd: T) -> Result<Pinnable<'_, T>, Errno> {
        let pinnable = Pinnable { fd: Some(fd), pinned: &self.pinned };
        if self.pinned.fetch_add(1, Ordering::Relaxed) < self.pinned_max { Ok(pinnable) } else { Err(Errno::ENFILE) }
    }

    /// Keeps a descriptor as long as the node lives.
    pub fn pin(&self, node: NodeId, mut pinnable: Pinnable<'_, T>) {
        if let Some(fd) = pinnable.fd.take() {
            self.shard(node).lock().pinned.insert(node, Arc::new(fd));
        }
    }

    /// Forgets the descriptors of `node`.
    pub fn remove(&self, node: NodeId) {
        let mut shard = self.shard(node).lock();
        let pinned = shard.pinned.remove(&node);
        let recent = shard.places.remove(&node).map(|place| {
            let old = shard.recent.swap_remove(place);
            if let Some(moved) = shard.recent.get(place).map(|r| r.node) {
                shard.places.insert(moved, place);
            }
            old
        });
        drop(shard);
        if pinned.is_some() {
            self.pinned.fetch_sub(1, Ordering::Relaxed);
        }
        drop((pinned, recent));
    }
}

impl<T> Shard<T> {
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
        let set = ByNode::new(4 * SHARDS, 1);
        let node = |i: u64| NodeId(i * SHARDS as u64); // all in one shard
        set.pin(node(100), set.pinnable(fd()).unwrap());
        assert_eq!(set.pinnable(fd()).unwrap_err(), Errno::ENFILE);
        for i in 0..50 {
            set.insert(node(i), Arc::new(fd()));
            assert!(set.get(node(0)).is_some(), "used every time");
        }
        let kept = (0..50).filter(|&i| set.get(node(i)).is_some()).count();
        assert_eq!(kept, 4);
        assert!(set.get(node(100)).is_some());
        set.remove(node(0));
        set.remove(node(100));
        assert!(set.get(node(0)).is_none() && set.get(node(100)).is_none());
        assert!(set.pinnable(fd()).is_ok(), "there is room again");
    }
}
