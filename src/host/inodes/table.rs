//! The inode table: from a file on the host to the guest's node id and back. Hard links have one node.
//!
//! A lookup and a FORGET of one file take the lock of the same part of the index, so a lookup count does not drop to zero during a
//! lookup.

use std::ops::Range;
use std::os::fd::RawFd;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::identity::FileKey;
use crate::state::{Birth, InodeIdentity, InodeRecords};
use crate::types::{Errno, NodeId};

/// Retained nodes: forgotten by the guest, but an NFS client of it may still use their ids. Their records take 8 MiB, or up to
/// 32 MiB where they are scattered; the oldest is freed first.
const RETAINED_MAX: usize = 65_536;

/// The nodes that are retained without lookups, and some that were looked up again since.
#[derive(Debug, Default)]
struct Retained {
    places: Vec<NodeId>,
    oldest: usize,
}

impl Retained {
    /// Gives `node` a place. Returns the node that had it before, where all are taken.
    fn keep(&mut self, node: NodeId, places_max: usize) -> Option<NodeId> {
        if self.places.len() < places_max {
            self.places.push(node);
            return None;
        }
        let previous = std::mem::replace(&mut self.places[self.oldest], node);
        self.oldest = (self.oldest + 1) % places_max;
        Some(previous)
    }
}

/// Result of a FORGET.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// The lookup count is zero: what is open of the node can be closed.
    pub is_last: bool,
    /// The node whose record was freed, so that the caller can release what belongs to it: the forgotten one, or a retained one
    /// that it replaced.
    pub freed: Option<(NodeId, InodeIdentity)>,
    /// Slots of scattered nodes for [`InodeTable::free_retained`].
    pub sparse: Option<Range<u32>>,
}

/// Result of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    /// The file got a new node.
    New(NodeId),
    /// The file had a node, whose lookup count was incremented.
    Known(NodeId),
}

/// The table.
#[derive(Debug)]
pub(super) struct InodeTable {
    records: InodeRecords,
    retained: Mutex<Retained>,
    retained_max: usize,
}

/// Birth times are as coarse as the host's clock tick, 10 ms at most, before Linux 6.13. A file that is
/// looked up within this after its birth may be deleted and its number be reused with the same birth time.
const BIRTH_TICK_NS: u64 = 20_000_000;

/// Whether the clock tick of a birth is over. Never for a file system without birth times.
fn is_settled(birth_ns: u64) -> bool {
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    birth_ns != 0 && birth_ns.saturating_add(BIRTH_TICK_NS) < now_ns
}

/// Whether two identities with one key are of one file. The type may have been taken of another file than the handle; then they
/// are not.
fn is_same(known: &InodeIdentity, identity: &InodeIdentity) -> bool {
    known.handle == identity.handle && known.kind == identity.kind
}

impl InodeTable {
    /// A table over `records`, which are empty.
    pub fn new(records: InodeRecords) -> InodeTable {
        InodeTable { records, retained: Mutex::default(), retained_max: RETAINED_MAX }
    }

    /// A table over the records of a process that died. `retained` are the nodes that it kept without lookups.
    pub fn recovered(records: InodeRecords, retained: Vec<NodeId>) -> InodeTable {
        let (mut kept, mut previous) = (Retained::default(), Vec::new());
        previous.extend(retained.into_iter().filter_map(|node| kept.keep(node, RETAINED_MAX)));
        let table = InodeTable { records, retained: Mutex::new(kept), retained_max: RETAINED_MAX };
        for node in previous {
            table.end_retention(node);
        }
        table
    }

    /// Frees `node`, whatever the guest knows of it.
    pub fn drop_node(&self, node: NodeId) {
        if let Some(identity) = self.records.identity(node) {
            self.records.lock(&FileKey::of_record(&identity)).free(node);
        }
    }

    /// Nodes that are made from now on have this generation or a later one.
    pub fn begin_at(&self, generation: u32) {
        self.records.begin_at(generation);
    }

    /// The node of a file that is certainly known, counted once more. `None` for one that may be another file with the same inode
    /// number: `insert` compares the file handle.
    pub fn look_up(&self, key: &FileKey, birth_ns: u64) -> Option<NodeId> {
        let locked = self.records.lock(key);
        let node = locked.node()?;
        let is_certain = self.records.birth(node) == Some(Birth { ns: birth_ns, settled: true });
        (is_certain && self.records.add_lookup(node)).then_some(node)
    }

    /// The node with the key, type and handle (or no handle) of `identity` and another birth time.
    pub fn born_before(&self, identity: &InodeIdentity) -> Option<NodeId> {
        let node = self.records.lock(&FileKey::of_record(identity)).node()?;
        self.records.identity(node).filter(|known| known.birth_ns != identity.birth_ns && is_same(known, identity)).map(|_| node)
    }

    /// Counts a lookup of `node`, the file with `key`, which now has another birth time. `None` where it was freed meanwhile.
    pub fn look_up_reborn(&self, key: &FileKey, node: NodeId, birth_ns: u64) -> Option<NodeId> {
        let locked = self.records.lock(key);
        locked.node().filter(|known| *known == node)?;
        let birth = self.records.birth(node)?;
        self.records.set_birth(node, Birth { ns: birth_ns, ..birth });
        self.records.add_lookup(node).then_some(node)
    }

    /// The node that was last made for a file with `key`, where the guest has looked it up and not forgotten it.
    pub fn looked_up(&self, key: &FileKey) -> Option<InodeIdentity> {
        let node = self.records.lock(key).node().filter(|node| self.is_looked_up(*node))?;
        self.records.identity(node)
    }

    /// Whether there is a node of a file with `key`.
    pub fn knows(&self, key: &FileKey) -> bool {
        self.records.lock(key).node().is_some()
    }

    /// Makes a node for a file, or counts the one that it has. ENFILE where the table is full.
    pub fn insert(&self, identity: &InodeIdentity) -> Result<Inserted, Errno> {
        self.insert_pinned(identity, None, |_| ())
    }

    /// As [`InodeTable::insert`], for a node that keeps the descriptor `pinned`. `on_new` is called before any other thread can find
    /// a new node.
    pub fn insert_pinned(&self, identity: &InodeIdentity, pinned: Option<RawFd>, on_new: impl FnOnce(NodeId)) -> Result<Inserted, Errno> {
        let mut locked = self.records.lock(&FileKey::of_record(identity));
        // A node without a handle keeps its file open, so that its number cannot be reused.
        let settled = identity.handle.is_none() || is_settled(identity.birth_ns);
        let birth = Birth { ns: identity.birth_ns, settled };
        if let Some(node) = locked.node()
            && self.records.identity(node).is_some_and(|known| known.birth_ns == birth.ns && is_same(&known, identity))
            && self.records.add_lookup(node)
        {
            if settled {
                self.records.set_birth(node, birth);
            }
            return Ok(Inserted::Known(node));
        }
        let node = self.records.create(identity, pinned).map_err(|_| Errno::ENFILE)?;
        self.records.set_birth(node, birth);
        on_new(node);
        locked.insert(node);
        Ok(Inserted::New(node))
    }

    /// Counts one more lookup of `node` itself. ESTALE where there is no such node.
    pub fn look_up_node(&self, node: NodeId) -> Result<(), Errno> {
        let key = FileKey::of_record(&self.identity(node)?);
        let _locked = self.records.lock(&key);
        if self.records.add_lookup(node) { Ok(()) } else { Err(Errno::ESTALE) }
    }

    /// Takes `count` lookups off `node`. At zero the node is freed, or retained if `retain` says so, and then found again under the
    /// same id. The root is never freed.
    pub fn forget(&self, node: NodeId, count: u64, retain: impl FnOnce(&InodeIdentity) -> bool) -> Forgotten {
        let Some(identity) = self.records.identity(node).filter(|_| node != NodeId::ROOT) else { return Forgotten::default() };
        let mut locked = self.records.lock(&FileKey::of_record(&identity));
        if self.records.forget(node, count) != Some(0) {
            return Forgotten::default();
        }
        if !retain(&identity) {
            locked.free(node);
            return Forgotten { is_last: true, freed: Some((node, identity)), sparse: None };
        }
        let Some(retention) = self.records.retain(node) else { return Forgotten::default() };
        // Two locks are never held at once.
        drop(locked);
        let previous = if retention.is_new { self.retained.lock().keep(node, self.retained_max) } else { None };
        Forgotten { is_last: true, freed: previous.and_then(|node| self.end_retention(node)), sparse: retention.sparse }
    }

    /// Frees the retained nodes of `slots`, except those that were looked up again. Returns each that it freed, so that the caller
    /// can release what belongs to it.
    pub fn free_retained(&self, slots: Range<u32>) -> impl Iterator<Item = (NodeId, InodeIdentity)> + '_ {
        self.records.nodes_in(slots).filter(|node| !self.is_looked_up(*node)).filter_map(|node| self.end_retention(node))
    }

    /// Frees a node that is no longer retained, unless it was looked up again.
    fn end_retention(&self, node: NodeId) -> Option<(NodeId, InodeIdentity)> {
        let identity = self.records.identity(node)?;
        let mut locked = self.records.lock(&FileKey::of_record(&identity));
        if self.records.end_retention(node)? > 0 {
            return None;
        }
        locked.free(node);
        Some((node, identity))
    }

    /// Which file `node` is; ESTALE where there is no such node.
    pub fn identity(&self, node: NodeId) -> Result<InodeIdentity, Errno> {
        self.records.identity(node).ok_or(Errno::ESTALE)
    }

    /// Records that the type of `node` was checked on the object behind its handle. ESTALE where there is no such node.
    pub fn mark_type_seen(&self, node: NodeId) -> Result<(), Errno> {
        if self.records.mark_type_seen(node) { Ok(()) } else { Err(Errno::ESTALE) }
    }

    /// Whether the guest has looked `node` up and not forgotten it.
    pub fn is_looked_up(&self, node: NodeId) -> bool {
        self.records.lookups(node).is_some_and(|lookups| lookups > 0)
    }

    /// Lookups of `node` that were not forgotten.
    #[cfg(feature = "failpoints")]
    pub fn lookups(&self, node: NodeId) -> u64 {
        self.records.lookups(node).unwrap_or(0)
    }

    /// S_IFMT bits of `node`, or ESTALE.
    pub fn kind(&self, node: NodeId) -> Result<u32, Errno> {
        self.records.kind(node).ok_or(Errno::ESTALE)
    }

    /// Every node.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.records.nodes().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::Arena;
    use crate::sys::file_handle::{HANDLE_LEN_MAX, Handle};

    fn table() -> InodeTable {
        let inodes_max = 1 << 16;
        InodeTable::new(InodeRecords::new(&arena(inodes_max), 0, inodes_max))
    }

    fn arena(inodes_max: u32) -> Arc<Arena> {
        Arena::new(crate::state::inodes_len(inodes_max)).unwrap()
    }

    fn file(ino: u64, birth_ns: u64) -> InodeIdentity {
        InodeIdentity { device: 1, ino, mount_id: 1, birth_ns, kind: libc::S_IFREG, type_seen: true, handle: None }
    }

    #[test]
    fn one_file_is_one_node_until_every_lookup_is_forgotten() {
        let table = table();
        assert_eq!(table.insert(&file(1, 1)).unwrap(), Inserted::New(NodeId::ROOT));
        let Inserted::New(node) = table.insert(&file(2, 1)).unwrap() else { panic!("known") };
        let key = FileKey::of_record(&file(2, 1));
        assert_eq!(table.insert(&file(2, 1)).unwrap(), Inserted::Known(node));
        assert_eq!(table.look_up(&key, 1), Some(node));
        assert_eq!(table.forget(node, 2, |_| false), Forgotten::default());
        assert_eq!(table.forget(node, 1, |_| false), Forgotten { is_last: true, freed: Some((node, file(2, 1))), sparse: None });
        assert_eq!(table.look_up(&key, 1), None);
        assert_eq!(table.identity(node), Err(Errno::ESTALE));
        assert_eq!(table.forget(NodeId::ROOT, 100, |_| true), Forgotten::default());
        assert!(table.identity(NodeId::ROOT).is_ok());
    }

    #[test]
    fn files_of_one_number_and_one_clock_tick_are_told_apart_by_their_handles() {
        let table = table();
        table.insert(&file(1, 1)).unwrap();
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let generation = |n: u8| {
            let mut handle = Handle { kind: 1, len: 8, bytes: [0; HANDLE_LEN_MAX] };
            handle.bytes[4] = n;
            InodeIdentity { handle: Some(handle), ..file(2, now_ns) }
        };
        let key = FileKey::of_record(&generation(1));
        let Inserted::New(old) = table.insert(&generation(1)).unwrap() else { panic!("known") };
        assert_eq!(table.look_up(&key, now_ns), None, "the tick is not over");
        assert_eq!(table.insert(&generation(1)).unwrap(), Inserted::Known(old));
        let Inserted::New(new) = table.insert(&generation(2)).unwrap() else { panic!("known") };
        assert_ne!(old, new);

        let long_ago = InodeIdentity { birth_ns: now_ns - 2 * BIRTH_TICK_NS, ..generation(3) };
        let Inserted::New(settled) = table.insert(&long_ago).unwrap() else { panic!("known") };
        assert_eq!(table.look_up(&key, long_ago.birth_ns), Some(settled));
    }

    #[test]
    fn a_reused_inode_number_is_another_node_and_both_can_be_forgotten() {
        let table = table();
        table.insert(&file(1, 1)).unwrap();
        let Inserted::New(old) = table.insert(&file(2, 1)).unwrap() else { panic!("known") };
        assert_eq!(table.look_up(&FileKey::of_record(&file(2, 2)), 2), None);
        let Inserted::New(new) = table.insert(&file(2, 2)).unwrap() else { panic!("known") };
        assert_ne!(old, new);
        assert!(table.forget(old, 1, |_| false).freed.is_some());
        assert_eq!(table.look_up(&FileKey::of_record(&file(2, 2)), 2), Some(new), "still indexed");
    }

    #[test]
    fn a_retained_node_keeps_its_id_until_its_place_is_taken() {
        let table = InodeTable { retained_max: 2, ..table() };
        table.insert(&file(1, 1)).unwrap();
        let look_up = |ino| match table.insert(&file(ino, 1)).unwrap() {
            Inserted::New(node) | Inserted::Known(node) => node,
        };
        let [a, b, c] = [2, 3, 4].map(look_up);
        let forget = |node| table.forget(node, 1, |_| true);
        let kept = || Forgotten { is_last: true, ..Forgotten::default() };
        assert_eq!((forget(a), forget(b)), (kept(), kept()));
        assert_eq!(forget(b), kept(), "one FORGET too many takes no second place");
        assert_eq!((look_up(2), look_up(2)), (a, a), "found again under its id");
        assert_eq!(forget(c).freed, None, "the place of one that lives again is taken, and it lives on");
        assert!(table.identity(a).is_ok());

        assert_eq!(forget(a), Forgotten::default());
        assert_eq!(forget(a).freed, Some((b, file(3, 1))), "a has a new place, that of b");
        assert_eq!(table.identity(b), Err(Errno::ESTALE));
        assert_ne!(look_up(3), b, "an id is not given twice");
        assert_eq!(table.look_up_node(c), Ok(()));
        assert_eq!(table.look_up_node(b), Err(Errno::ESTALE));
        assert_eq!(table.forget(a, 1, |_| false).freed, Some((a, file(2, 1))), "freed at the end of a session");
    }

    #[test]
    fn however_many_are_forgotten_no_more_than_the_bound_are_retained() {
        let table = InodeTable { retained_max: 10, ..table() };
        table.insert(&file(1, 1)).unwrap();
        for round in 0..1000u64 {
            let ino = 2 + round * 7 % 50;
            for _ in 0..=round % 3 {
                table.insert(&file(ino, 1)).unwrap();
            }
            let Inserted::Known(node) = table.insert(&file(ino, 1)).unwrap() else { panic!("new") };
            table.forget(node, u64::MAX, |_| true);
            assert!(table.nodes().len() <= 11, "round {round}: {}", table.nodes().len());
        }
    }

    #[test]
    fn retained_nodes_that_lie_scattered_take_bounded_memory() {
        const FILES: u64 = 300_000;
        let inodes_max = 1 << 19;
        let arena = arena(inodes_max);
        let table = InodeTable::new(InodeRecords::new(&arena, 0, inodes_max));
        let nodes: Vec<NodeId> = (1..FILES)
            .map(|ino| match table.insert(&file(ino, 1)).unwrap() {
                Inserted::New(node) | Inserted::Known(node) => node,
            })
            .collect();
        let full = arena.resident_len().unwrap();
        let is_kept = |node: &NodeId| node.0 % 64 == 5;
        nodes.iter().filter(|node| !is_kept(node)).for_each(|node| _ = table.forget(*node, 1, |_| false));
        assert!(arena.resident_len().unwrap() > full * 9 / 10, "one record in 64 is in every block");
        let mut freed = 0;
        for node in nodes.iter().filter(|node| is_kept(node)) {
            let forgotten = table.forget(*node, 1, |_| true);
            freed += forgotten.sparse.map_or(0, |slots| table.free_retained(slots).count());
        }
        let left = arena.resident_len().unwrap();
        assert!(left < 34 << 20, "{left} bytes of {full} stay");
        let retained = table.nodes().len() - 1;
        assert!(freed > 0 && retained > 4000, "{retained} retained, {freed} freed");
        assert_eq!(retained + freed, nodes.iter().filter(|node| is_kept(node)).count());
    }

    #[test]
    fn threads_that_look_up_and_forget_at_once_lose_no_lookup() {
        const FILES: u64 = 40;
        let table = InodeTable { retained_max: 5, ..table() };
        table.insert(&file(1, 1)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        let file = file(2 + (round * 7 + thread) % FILES, 1);
                        let (Inserted::New(node) | Inserted::Known(node)) = table.insert(&file).unwrap();
                        assert_eq!(table.identity(node), Ok(file), "counted by this thread, so it stays");
                        table.forget(node, 1, |_| round % 3 > 0);
                    }
                });
            }
        });
        assert!(table.nodes().len() <= 1 + 5, "{} nodes", table.nodes().len());
        for ino in 2..2 + FILES {
            let (Inserted::New(node) | Inserted::Known(node)) = table.insert(&file(ino, 1)).unwrap();
            assert!(table.forget(node, 1, |_| false).freed.is_some(), "the only lookup");
        }
        assert_eq!(table.nodes(), [NodeId::ROOT]);
    }
}
