//! O_PATH descriptors of inodes: a bounded set of recently used ones, and those that an inode without a
//! file handle must keep. Hits allocate nothing.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::types::NodeId;

/// Parts of the set with a lock of their own: more than there are threads that meet.
const SHARDS: usize = 16;

/// The descriptors, by node.
#[derive(Debug)]
pub struct PathFds {
    shards: [Mutex<Shard>; SHARDS],
    shard_len_max: usize,
}

#[derive(Debug, Default)]
struct Shard {
    pinned: FxHashMap<NodeId, Arc<OwnedFd>>,
    places: FxHashMap<NodeId, usize>,
    recent: Vec<Recent>,
    /// Where the search for a descriptor to close goes on (second chance).
    hand: usize,
}

#[derive(Debug)]
struct Recent {
    node: NodeId,
    fd: Arc<OwnedFd>,
    used: bool,
}

impl PathFds {
    /// A set that keeps at most `len_max` descriptors beside the pinned ones.
    pub fn new(len_max: usize) -> PathFds {
        PathFds { shards: Default::default(), shard_len_max: (len_max / SHARDS).max(1) }
    }

    fn shard(&self, node: NodeId) -> &Mutex<Shard> {
        &self.shards[node.0 as usize % SHARDS]
    }

    /// The descriptor of `node`, if it is here.
    pub fn get(&self, node: NodeId) -> Option<Arc<OwnedFd>> {
        let mut shard = self.shard(node).lock();
        if let Some(&place) = shard.places.get(&node) {
            let recent = &mut shard.recent[place];
            recent.used = true;
            return Some(Arc::clone(&recent.fd));
        }
        shard.pinned.get(&node).cloned()
    }

    /// Keeps `fd` until it was not used for a while.
    pub fn insert(&self, node: NodeId, fd: Arc<OwnedFd>) {
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

    /// Keeps `fd` as long as the node lives.
    pub fn pin(&self, node: NodeId, fd: OwnedFd) {
        self.shard(node).lock().pinned.insert(node, Arc::new(fd));
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
        drop((pinned, recent));
    }
}

impl Shard {
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

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn the_set_is_bounded_keeps_what_is_used_and_never_drops_pinned_ones() {
        let set = PathFds::new(4 * SHARDS);
        let node = |i: u64| NodeId(i * SHARDS as u64); // all in one shard
        set.pin(node(100), fd());
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
    }
}
