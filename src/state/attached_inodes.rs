//! Inode records whose process died, attached by the next one: each is verified, and the index and the free slots are made anew.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::arena::{Arena, ArenaError, Records, generation_of};
use super::attached::Refused;
use super::index::{Chained, Index};
use super::inodes::{IDLE, INODES_MAX, InodeRecord, InodeRecords, LIVE, RETAINED, TYPE_SEEN};
use super::slots::{SlotUse, Slots};
use crate::sys::descriptor::is_open;
use crate::types::NodeId;

/// A descriptor that a node keeps in place of a handle, named by its record and owned by nobody yet.
#[derive(Debug)]
pub struct Pinned {
    node: NodeId,
    fd: RawFd,
}

impl Pinned {
    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The number of the descriptor.
    pub fn number(&self) -> RawFd {
        self.fd
    }

    /// The descriptor.
    pub fn own(self) -> OwnedFd {
        // SAFETY: `InodeRecords::attach` found it open and named by this record, whose process has ended; it gives each out once, and the
        // caller has dropped what two records name.
        unsafe { OwnedFd::from_raw_fd(self.fd) }
    }
}

/// Inode records that were attached.
#[derive(Debug)]
pub struct AttachedInodes {
    /// The records.
    pub records: InodeRecords,
    /// The descriptors that nodes keep.
    pub pinned: Vec<Pinned>,
    /// Nodes that are kept at a lookup count of 0, or were.
    pub retained: Vec<NodeId>,
    /// How many nodes with a handle are on each mount.
    pub by_mount: FxHashMap<u64, u64>,
}

impl InodeRecords {
    /// The table in `arena`, which was attached. A record without lookups that is not retained is freed, and so is a damaged one.
    /// [`ArenaError::Unusable`] where the table, or the record of the root, cannot be used.
    pub fn attach(arena: &Arc<Arena>) -> Result<AttachedInodes, ArenaError> {
        let records: Records<InodeRecord> = arena.attached_table()?;
        let inodes_max = u32::try_from(records.count()).ok().filter(|max| (2..=INODES_MAX).contains(max));
        let inodes_max = inodes_max.ok_or(ArenaError::Unusable("the table of inodes has another size"))?;
        let index = Index::anew(arena, inodes_max)?;
        let begin = generation_of(records.generation(0, |record| &record.state));
        let (mut used, mut indexed, mut refused) = (Vec::new(), Vec::new(), Refused::new("inode", begin));
        let (mut pinned, mut retained, mut by_mount) = (Vec::new(), Vec::new(), FxHashMap::<u64, u64>::default());
        for slot in records.with_memory()?.into_iter().flatten().filter(|slot| *slot > 0) {
            let record = records.at(slot);
            let state = record.state.load(Ordering::Acquire);
            if state == 0 {
                continue;
            }
            let node = NodeId((state & !0xffff_ffff) | u64::from(slot));
            if state & 0xffff_ffff == 0 {
                used.push((slot, SlotUse::Free(generation_of(state))));
                continue;
            }
            let is_whole = state & 0xffff_ffff & !TYPE_SEEN == LIVE && record.checked(slot, state) == record.check.load(Ordering::Relaxed);
            let named = record.pinned();
            if !is_whole || named.is_some_and(|fd| !is_open(fd)) {
                refused.add(slot, generation_of(state));
                continue;
            }
            refused.pass(generation_of(state));
            let (lookups, marks) = (record.lookups.load(Ordering::Relaxed), record.marks.load(Ordering::Relaxed));
            let is_retained = marks & RETAINED != 0;
            if lookups == 0 && !is_retained && node != NodeId::ROOT {
                // Between the last FORGET and its end.
                let next = (state & !0xffff_ffff).wrapping_add(1 << 32);
                record.state.store(next, Ordering::Relaxed);
                used.push((slot, SlotUse::Free(generation_of(next))));
                continue;
            }
            if is_retained {
                retained.push(node);
            }
            let is_idle = lookups == 0 && node != NodeId::ROOT;
            record.marks.store(if is_idle { marks | IDLE } else { marks & !IDLE }, Ordering::Relaxed);
            used.push((slot, if is_idle { SlotUse::Idle } else { SlotUse::Taken }));
            if record.has_handle() {
                *by_mount.entry(record.key().mount_id).or_default() += 1;
            }
            pinned.extend(named.map(|fd| Pinned { node, fd }));
            indexed.push(slot);
        }
        index.make_room(indexed.len());
        indexed.into_iter().for_each(|slot| insert(&index, &records, slot));
        for (slot, generation) in refused.freed() {
            records.at(slot).state.store(u64::from(generation) << 32, Ordering::Relaxed);
            used.push((slot, SlotUse::Free(generation)));
        }
        used.sort_unstable_by_key(|(slot, _)| *slot);
        let slots = Slots::rebuilt(inodes_max, begin, used.into_iter(), |slots, generation| {
            records.let_go(slots, generation, |record| &record.state);
        });
        let records = InodeRecords { records, slots, index };
        if records.kind(NodeId::ROOT).is_none() {
            return Err(ArenaError::Unusable("the record of the root is damaged"));
        }
        Ok(AttachedInodes { records, pinned, retained, by_mount })
    }
}

/// Adds the record of `slot` to the index. Of two with one key, whose file is a later one with the same inode number, the index has
/// that with lookups, or that which was born later.
fn insert(index: &Index, records: &Records<InodeRecord>, slot: u32) {
    let order = |slot: u32| {
        let record = records.at(slot);
        (record.lookups.load(Ordering::Relaxed) > 0, record.birth_ns.load(Ordering::Relaxed), slot)
    };
    let mut locked = index.lock(records, &records.at(slot).key());
    if locked.find().is_none_or(|known| order(known) < order(slot)) {
        locked.insert(slot);
    }
}
