//! Inode records: the identity of each inode that the guest knows, its lookup count, and the index over them.

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::arena::{Arena, Record, Records, generation_of, slot_of};
use super::check::Check;
use super::index::{self, Chained, FileKey, Index, Locked};
use super::slots::{Slots, TableFull};
use crate::sys::file_handle::{HANDLE_LEN_MAX, Handle};
use crate::types::NodeId;

/// The most inodes that a guest may know at a time. Their records take 8 GiB, their index half of one; a slot takes memory when it is first used.
pub const INODES_MAX: u32 = 1 << 26;
/// The records take at most a quarter of a limited address space (RLIMIT_AS).
const SPACE_SHARE: u64 = 4;
/// The fewest inodes of a table: 128 MiB of records.
const INODES_MIN: u32 = 1 << 20;

/// The most inodes that a guest may know where the address space is limited to `space` bytes; `None` is no limit.
pub fn inodes_max(space: Option<u64>) -> u32 {
    let mut max = INODES_MAX;
    while max > INODES_MIN && space.is_some_and(|space| records_len(max) as u64 > space / SPACE_SHARE) {
        max /= 2;
    }
    max
}

/// Bytes of the records of `inodes_max` inodes and of their index.
pub fn table_len(inodes_max: u32) -> usize {
    records_len(inodes_max) + index::table_len(inodes_max)
}

fn records_len(inodes_max: u32) -> usize {
    inodes_max as usize * size_of::<InodeRecord>()
}

/// The record is that of a node.
pub(super) const LIVE: u64 = 1;
/// `kind` was read from the object that the handle or the descriptor opens. In the same word as the generation, so that the mark
/// cannot be set on the next node of the slot.
pub(super) const TYPE_SEEN: u64 = 2;

/// A mark: the record is kept at a lookup count of 0.
pub(super) const RETAINED: u8 = 1;
/// A mark: [`Birth::settled`].
const SETTLED: u8 = 2;
/// A mark: the slot is idle, as the record is kept at a lookup count of 0.
pub(super) const IDLE: u8 = 4;

/// One inode. Fields other than `state` and those that change under the lock of the index are written before LIVE is set in
/// `state`, and not changed while it is set. What a lookup of a known file reads is in the first half, one cache line.
///
/// A process that died may have left any of these: LIVE cleared and the fields still there, which is a free record; lookups of a
/// request that was not answered; LIVE without lookups and not RETAINED, which is freed when the record is attached.
#[repr(C)]
#[derive(Debug)]
pub struct InodeRecord {
    /// The generation in the upper half, LIVE and TYPE_SEEN in the lower.
    pub(super) state: AtomicU64,
    /// The lookup count. Changes under the lock of the index.
    pub(super) lookups: AtomicU64,
    device: AtomicU64,
    ino: AtomicU64,
    pub(super) mount_id: AtomicU64,
    /// Changes under the lock of the index.
    pub(super) birth_ns: AtomicU64,
    /// S_IFMT bits.
    pub(super) kind: AtomicU16,
    /// RETAINED, SETTLED and IDLE. Changes under the lock of the index.
    pub(super) marks: AtomicU8,
    /// 0: no handle.
    handle_len: AtomicU8,
    /// The index's.
    next: AtomicU32,
    /// Of slot, generation and what does not change while LIVE is set.
    pub(super) check: AtomicU32,
    handle_kind: AtomicI32,
    /// Without a handle, the first word is the number of the descriptor that the node keeps, and one more; 0 for none.
    handle: [AtomicU64; HANDLE_LEN_MAX / 8],
}

const _: () = assert!(size_of::<InodeRecord>() == 128);

// SAFETY: every field is an atomic integer or an array of them.
unsafe impl Record for InodeRecord {
    const KIND: u32 = 1;
}

impl InodeRecord {
    /// The check word of the record in `slot` with the generation of `state`.
    pub(super) fn checked(&self, slot: u32, state: u64) -> u32 {
        let get = |field: &AtomicU64| field.load(Ordering::Relaxed);
        let kinds = u64::from(self.handle_kind.load(Ordering::Relaxed).cast_unsigned()) << 32
            | u64::from(self.kind.load(Ordering::Relaxed)) << 8
            | u64::from(self.handle_len.load(Ordering::Relaxed));
        let id = (state & !0xffff_ffff) | u64::from(slot);
        let words = [id, get(&self.device), get(&self.ino), get(&self.mount_id), kinds];
        words.into_iter().chain(self.handle.iter().map(get)).fold(Check::default(), Check::with).value()
    }

    /// Whether the node has a handle.
    pub(super) fn has_handle(&self) -> bool {
        self.handle_len.load(Ordering::Relaxed) > 0
    }

    /// The descriptor that the node keeps in place of a handle.
    pub(super) fn pinned(&self) -> Option<RawFd> {
        let word = self.handle[0].load(Ordering::Relaxed);
        let number = if self.handle_len.load(Ordering::Relaxed) == 0 { word.checked_sub(1) } else { None };
        number.and_then(|number| RawFd::try_from(number).ok())
    }
}

impl Chained for InodeRecord {
    fn key(&self) -> FileKey {
        let get = |field: &AtomicU64| field.load(Ordering::Relaxed);
        FileKey { device: get(&self.device), ino: get(&self.ino), mount_id: get(&self.mount_id) }
    }

    fn next(&self) -> &AtomicU32 {
        &self.next
    }
}

/// The identity of an inode's file on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeIdentity {
    /// The device number: major in the upper half, minor in the lower.
    pub device: u64,
    /// The inode number.
    pub ino: u64,
    /// The id of its mount.
    pub mount_id: u64,
    /// The birth time in nanoseconds, 0 where the file system has none. It distinguishes files with the same inode number.
    pub birth_ns: u64,
    /// S_IFMT bits of its mode, which never change.
    pub kind: u32,
    /// Whether `kind` was read from the object that `handle` or the node's descriptor opens, not only by name.
    pub type_seen: bool,
    /// Its file handle, where the file system has handles and the daemon may open them.
    pub handle: Option<Handle>,
}

/// When the file of a node was born, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// The birth time in nanoseconds, 0 where the file system has none.
    pub ns: u64,
    /// No other file that is made from now on can have the same key and birth time.
    pub settled: bool,
}

/// Result of keeping a node at a lookup count of 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// It was not kept before.
    pub is_new: bool,
    /// Slots of nodes without lookups, which should be freed: such nodes lie so scattered that they take much more memory than
    /// that of their records.
    pub sparse: Option<Range<u32>>,
}

/// All inode records, and the index over them.
#[derive(Debug)]
pub struct InodeRecords {
    pub(super) records: Records<InodeRecord>,
    pub(super) slots: Slots,
    pub(super) index: Index,
}

/// The part of the index that a key belongs to, locked.
#[derive(Debug)]
pub struct LockedKey<'r> {
    records: &'r InodeRecords,
    locked: Locked<'r, InodeRecord>,
}

impl LockedKey<'_> {
    /// The node with the key.
    pub fn node(&self) -> Option<NodeId> {
        let slot = self.locked.find()?;
        let state = self.records.records.at(slot).state.load(Ordering::Relaxed);
        debug_assert!(state & LIVE != 0, "a freed node is indexed");
        Some(NodeId((state & !0xffff_ffff) | u64::from(slot)))
    }

    /// Makes `node` the one with the key.
    pub fn insert(&mut self, node: NodeId) {
        self.locked.insert(slot_of(node.0));
    }

    /// Removes `node` from the index, where it is the one with the key, and frees it.
    pub fn free(&mut self, node: NodeId) {
        self.locked.remove(slot_of(node.0));
        self.records.free(node);
    }
}

fn live_state_of(node: NodeId) -> u64 {
    (node.0 & !0xffff_ffff) | LIVE
}

impl InodeRecords {
    /// The table for `inodes_max` inodes in `arena`, `offset` bytes after its header. Slot 0 is not used, because node id 0 means
    /// "none"; its state holds the generation of slots without memory.
    pub fn new(arena: &Arc<Arena>, offset: usize, inodes_max: u32) -> InodeRecords {
        InodeRecords {
            records: arena.table(offset, inodes_max as usize),
            slots: Slots::new(inodes_max),
            index: Index::new(arena, offset + records_len(inodes_max), inodes_max),
        }
    }

    /// Locks the part of the index that `key` belongs to.
    pub fn lock(&self, key: &FileKey) -> LockedKey<'_> {
        LockedKey { records: self, locked: self.index.lock(&self.records, key) }
    }

    /// Sets the generation with which slots that were never used are to be taken.
    pub fn begin_at(&self, generation: u32) {
        self.slots.begin_at(generation);
        self.records.begin_at(generation, |record| &record.state);
    }

    fn live(&self, node: NodeId) -> Option<&InodeRecord> {
        let slot = slot_of(node.0);
        let record = self.records.get(slot).filter(|_| self.slots.may_be_taken(slot))?;
        (record.state.load(Ordering::Acquire) & !TYPE_SEEN == live_state_of(node)).then_some(record)
    }

    /// Makes a record with a lookup count of 1; `pinned` is the descriptor that the node keeps in place of a handle. The first one of
    /// a table is [`NodeId::ROOT`]. [`TableFull`] where no slot is free.
    pub fn create(&self, identity: &InodeIdentity, pinned: Option<RawFd>) -> Result<NodeId, TableFull> {
        let slot = self.slots.take()?;
        let record = self.records.get(slot).ok_or(TableFull)?;
        let set = |field: &AtomicU64, value| field.store(value, Ordering::Relaxed);
        set(&record.lookups, 1);
        set(&record.device, identity.device);
        set(&record.ino, identity.ino);
        set(&record.mount_id, identity.mount_id);
        set(&record.birth_ns, identity.birth_ns);
        record.kind.store(u16::try_from(identity.kind).unwrap_or(0), Ordering::Relaxed);
        record.marks.store(0, Ordering::Relaxed);
        let pinned = pinned.and_then(|fd| u64::try_from(fd).ok()).map_or(0, |number| number + 1);
        let none = Handle { kind: 0, len: 0, bytes: [0; HANDLE_LEN_MAX] };
        let handle = identity.handle.as_ref().unwrap_or(&none);
        record.handle_len.store(u8::try_from(handle.len).unwrap_or(0), Ordering::Relaxed);
        record.handle_kind.store(handle.kind, Ordering::Relaxed);
        for (word, bytes) in record.handle.iter().zip(handle.bytes.as_chunks::<8>().0) {
            set(word, u64::from_ne_bytes(*bytes));
        }
        if handle.len == 0 {
            set(&record.handle[0], pinned);
        }
        let state = self.records.generation(slot, |record| &record.state) | LIVE;
        record.check.store(record.checked(slot, state), Ordering::Relaxed);
        // Last: the record is there when this is.
        record.state.store(if identity.type_seen { state | TYPE_SEEN } else { state }, Ordering::Release);
        Ok(NodeId((state & !0xffff_ffff) | u64::from(slot)))
    }

    /// The identity of `node`; `None` where there is no such node.
    pub fn identity(&self, node: NodeId) -> Option<InodeIdentity> {
        let record = self.live(node)?;
        let get = |field: &AtomicU64| field.load(Ordering::Relaxed);
        let handle_len = record.handle_len.load(Ordering::Relaxed);
        let handle = (handle_len > 0).then(|| {
            let mut bytes = [0; HANDLE_LEN_MAX];
            for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&record.handle) {
                *bytes = get(word).to_ne_bytes();
            }
            Handle { kind: record.handle_kind.load(Ordering::Relaxed), len: handle_len.into(), bytes }
        });
        let identity = InodeIdentity {
            device: get(&record.device),
            ino: get(&record.ino),
            mount_id: get(&record.mount_id),
            birth_ns: get(&record.birth_ns),
            kind: record.kind.load(Ordering::Relaxed).into(),
            type_seen: false,
            handle,
        };
        // The record may have been freed, and used for another node, while it was read.
        fence(Ordering::Acquire);
        let state = record.state.load(Ordering::Relaxed);
        (state & !TYPE_SEEN == live_state_of(node)).then_some(InodeIdentity { type_seen: state & TYPE_SEEN != 0, ..identity })
    }

    /// Marks the type of `node` as read from the object that its handle opens. False where there is no such node any more.
    pub fn mark_type_seen(&self, node: NodeId) -> bool {
        let Some(record) = self.live(node) else { return false };
        let live = live_state_of(node);
        // Fails where the mark is set, or where the slot has another node now.
        match record.state.compare_exchange(live, live | TYPE_SEEN, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => true,
            Err(state) => state == live | TYPE_SEEN,
        }
    }

    /// S_IFMT bits of `node`; `None` where there is no such node.
    pub fn kind(&self, node: NodeId) -> Option<u32> {
        self.live(node).map(|r| r.kind.load(Ordering::Relaxed).into())
    }

    /// When the file of `node` was born. The caller holds the lock of the index. `None` where there is no such node.
    pub fn birth(&self, node: NodeId) -> Option<Birth> {
        let record = self.live(node)?;
        let settled = record.marks.load(Ordering::Relaxed) & SETTLED != 0;
        Some(Birth { ns: record.birth_ns.load(Ordering::Relaxed), settled })
    }

    /// Sets that. The caller holds the lock of the index.
    pub fn set_birth(&self, node: NodeId, birth: Birth) {
        let Some(record) = self.live(node) else { return };
        record.birth_ns.store(birth.ns, Ordering::Relaxed);
        if birth.settled {
            record.marks.fetch_or(SETTLED, Ordering::Relaxed);
        } else {
            record.marks.fetch_and(!SETTLED, Ordering::Relaxed);
        }
    }

    /// Increments the lookup count. The caller holds the lock of the index. False where there is no such node.
    pub fn add_lookup(&self, node: NodeId) -> bool {
        let Some(record) = self.live(node) else { return false };
        record.lookups.fetch_add(1, Ordering::Relaxed);
        self.end_idleness(node, record);
        true
    }

    /// Decrements the lookup count by `count`, at most to 0, and returns the new count. The caller holds the lock of the index.
    /// `None` where there is no such node.
    pub fn forget(&self, node: NodeId, count: u64) -> Option<u64> {
        let record = self.live(node)?;
        let left = record.lookups.load(Ordering::Relaxed).saturating_sub(count);
        record.lookups.store(left, Ordering::Relaxed);
        Some(left)
    }

    /// The lookup count of `node`; `None` where there is no such node.
    pub fn lookups(&self, node: NodeId) -> Option<u64> {
        self.live(node).map(|record| record.lookups.load(Ordering::Acquire))
    }

    /// Keeps `node` at a lookup count of 0. The caller holds the lock of the index. `None` where there is no such node.
    pub fn retain(&self, node: NodeId) -> Option<Retention> {
        let before = self.live(node)?.marks.fetch_or(RETAINED | IDLE, Ordering::Relaxed);
        let sparse = if before & IDLE == 0 { self.slots.set_idle(slot_of(node.0), true) } else { None };
        Some(Retention { is_new: before & RETAINED == 0, sparse })
    }

    fn end_idleness(&self, node: NodeId, record: &InodeRecord) {
        if record.marks.load(Ordering::Relaxed) & IDLE != 0 {
            record.marks.fetch_and(!IDLE, Ordering::Relaxed);
            self.slots.set_idle(slot_of(node.0), false);
        }
    }

    /// Takes back [`InodeRecords::retain`], and returns the lookup count of `node`. The caller holds the lock of the index. `None` where there is no
    /// such node.
    pub fn end_retention(&self, node: NodeId) -> Option<u64> {
        let record = self.live(node)?;
        record.marks.fetch_and(!RETAINED, Ordering::Relaxed);
        Some(record.lookups.load(Ordering::Relaxed))
    }

    /// Frees the record of `node`, which is not in the index. Its id is used again after 2^32 uses of the slot at the earliest.
    fn free(&self, node: NodeId) {
        let Some(record) = self.live(node) else { return };
        self.end_idleness(node, record);
        let next = (live_state_of(node) & !LIVE).wrapping_add(1 << 32);
        // Before the caller closes the descriptor that the record names: its number may be another's at once.
        record.state.store(next, Ordering::Release);
        self.slots.give(slot_of(node.0), generation_of(next), |slots, generation| {
            self.records.let_go(slots, generation, |record| &record.state);
        });
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.slots.taken().filter_map(|slot| self.node_in(slot))
    }

    /// The nodes of `slots`.
    pub fn nodes_in(&self, slots: Range<u32>) -> impl Iterator<Item = NodeId> + '_ {
        slots.filter_map(|slot| self.node_in(slot))
    }

    fn node_in(&self, slot: u32) -> Option<NodeId> {
        let state = self.records.get(slot).filter(|_| self.slots.may_be_taken(slot))?.state.load(Ordering::Acquire);
        (state & LIVE != 0).then_some(NodeId((state & !0xffff_ffff) | u64::from(slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(ino: u64) -> InodeIdentity {
        let mut bytes = [0; HANDLE_LEN_MAX];
        bytes[..8].copy_from_slice(&ino.to_ne_bytes());
        let handle = Some(Handle { kind: 1, len: 8, bytes });
        InodeIdentity { device: 1, ino, mount_id: 3, birth_ns: 4, kind: libc::S_IFREG, type_seen: false, handle }
    }

    #[test]
    fn an_id_finds_its_record_until_it_is_freed_and_never_the_next_one() {
        let records = InodeRecords::new(&Arena::new(table_len(INODES_MAX)).unwrap(), 0, INODES_MAX);
        let root = records.create(&identity(2), None).unwrap();
        assert_eq!(root, NodeId::ROOT);
        let node = records.create(&identity(7), None).unwrap();
        assert_eq!(records.identity(node), Some(identity(7)));
        assert!(records.add_lookup(node));
        assert_eq!(records.forget(node, 1), Some(1));
        assert_eq!(records.forget(node, u64::MAX), Some(0));
        records.free(node);
        assert_eq!(records.identity(node), None);
        let next = records.create(&identity(8), None).unwrap();
        assert_ne!(next, node);
        assert_eq!(slot_of(next.0), slot_of(node.0), "the slot is used again");
        assert_eq!(records.identity(node), None);
        assert_eq!(records.nodes().collect::<Vec<_>>(), [root, next]);
        for bad in [0, 99, u64::MAX, 1 << 32 | 1] {
            assert_eq!(records.identity(NodeId(bad)), None);
        }
    }

    #[test]
    fn a_type_that_was_seen_is_that_of_one_node_and_not_of_the_next_one_in_its_slot() {
        let records = InodeRecords::new(&Arena::new(table_len(INODES_MAX)).unwrap(), 0, INODES_MAX);
        records.create(&identity(2), None).unwrap();
        let node = records.create(&identity(7), None).unwrap();
        assert!(!records.identity(node).unwrap().type_seen);
        assert!(records.mark_type_seen(node) && records.mark_type_seen(node), "marked, and marked again");
        assert_eq!(records.identity(node), Some(InodeIdentity { type_seen: true, ..identity(7) }));
        assert!(records.add_lookup(node) && records.kind(node).is_some(), "the mark is no part of the id");
        records.free(node);
        let next = records.create(&identity(8), None).unwrap();
        assert_eq!(slot_of(next.0), slot_of(node.0), "the slot is used again");
        assert!(!records.mark_type_seen(node), "the old node is gone");
        assert!(!records.identity(next).unwrap().type_seen);
        assert_eq!(records.nodes().count(), 2);
    }

    #[test]
    fn memory_of_forgotten_records_goes_back_and_their_ids_do_not_come_again() {
        let arena = Arena::new(table_len(INODES_MAX)).unwrap();
        let records = InodeRecords::new(&arena, 0, INODES_MAX);
        let root = records.create(&identity(1), None).unwrap();
        let mut seen = std::collections::HashSet::from([root]);
        for round in 0..4u64 {
            let nodes: Vec<NodeId> = (2..50_000).map(|ino| records.create(&identity(ino), None).unwrap()).collect();
            assert!(nodes.iter().all(|node| seen.insert(*node)), "round {round}: an id was given again");
            assert!(arena.resident_len().unwrap() > 50_000 * 128);
            // Every other one first, so that no block is empty before the second half.
            for odd in [1, 0] {
                nodes.iter().skip(odd).step_by(2).for_each(|node| records.free(*node));
            }
            assert!(arena.resident_len().unwrap() < 1 << 20, "round {round}: {} bytes stay", arena.resident_len().unwrap());
            assert_eq!(records.nodes().collect::<Vec<_>>(), [root]);
            assert!(nodes.iter().all(|node| records.identity(*node).is_none()));
        }
    }

    #[test]
    fn a_limit_of_addresses_leaves_fewer_inodes_and_never_too_few() {
        assert_eq!(inodes_max(None), INODES_MAX);
        assert_eq!(inodes_max(Some(1 << 40)), INODES_MAX);
        assert_eq!(inodes_max(Some(4 << 30)), 1 << 23, "a gibibyte of four");
        assert_eq!(inodes_max(Some(0)), INODES_MIN);
    }

    #[test]
    fn ids_that_a_guest_makes_up_take_no_memory() {
        let arena = Arena::new(table_len(INODES_MAX)).unwrap();
        let records = InodeRecords::new(&arena, 0, INODES_MAX);
        records.create(&identity(1), None).unwrap();
        let before = arena.resident_len().unwrap();
        for slot in (0..u64::from(INODES_MAX)).step_by(1 << 14) {
            assert_eq!((records.identity(NodeId(slot | 1 << 40)), records.forget(NodeId(slot | 1 << 40), 1)), (None, None));
        }
        assert!(arena.resident_len().unwrap() <= before + BLOCK_LEN, "{} bytes", arena.resident_len().unwrap() - before);
    }

    const BLOCK_LEN: u64 = 256 << 10;
}
