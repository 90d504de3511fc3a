//! Inode records whose process died, attached by the next one: each is verified, and the index and the free slots are made anew.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::arena::{Arena, ArenaError, Records, generation_of, slot_of};
use super::attached::Refused;
use super::index::{Chained, Index};
use super::inodes::{IDLE, INODES_MAX, InodeIdentity, InodeRecord, InodeRecords, LIVE, RETAINED, TYPE_SEEN};
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
        let inodes_max = size_of_table(&records)?;
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
            let is_whole = is_whole(record, slot, state);
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

    /// Makes the table in `arena`, before it is attached, one of a process with another table of descriptors, in which mounts have other
    /// ids. Keeps nodes with a handle on the mount of `root`, which is the root as this process has it. Frees the others: those that kept
    /// a descriptor, and those on other mounts. Returns how many of them the guest knew. May be called once more where a process died in it.
    /// [`ArenaError::Unusable`] where the table cannot be used, or was made for another root.
    pub fn make_over(arena: &Arc<Arena>, root: &InodeIdentity) -> Result<u64, ArenaError> {
        let records: Records<InodeRecord> = arena.attached_table()?;
        size_of_table(&records)?;
        let root_slot = slot_of(NodeId::ROOT.0);
        let of_root = records.at(root_slot);
        let (key, birth_ns) = (of_root.key(), of_root.birth_ns.load(Ordering::Relaxed));
        let is_root = is_whole(of_root, root_slot, of_root.state.load(Ordering::Acquire))
            && (key.device, key.ino, birth_ns) == (root.device, root.ino, root.birth_ns)
            && u32::from(of_root.kind.load(Ordering::Relaxed)) == root.kind
            && of_root.has_handle() == root.handle.is_some();
        if !is_root {
            return Err(ArenaError::Unusable("they are of another share"));
        }
        let move_to_mount = |record: &InodeRecord, slot, state| {
            record.mount_id.store(root.mount_id, Ordering::Relaxed);
            record.check.store(record.checked(slot, state), Ordering::Relaxed);
        };
        let mut lost = 0;
        for slot in records.with_memory()?.into_iter().flatten().filter(|slot| *slot > 0 && *slot != root_slot) {
            let record = records.at(slot);
            let state = record.state.load(Ordering::Acquire);
            if state & 0xffff_ffff == 0 || !is_whole(record, slot, state) {
                continue;
            }
            // The second: this was done before.
            let at = record.key();
            let is_on_mount = at.mount_id == key.mount_id || at.mount_id == root.mount_id && at.device == root.device;
            if is_on_mount && record.has_handle() {
                move_to_mount(record, slot, state);
            } else {
                lost += u64::from(record.lookups.load(Ordering::Relaxed) > 0);
                record.state.store((state & !0xffff_ffff).wrapping_add(1 << 32), Ordering::Relaxed);
            }
        }
        // Last: until here it says which mount that of the others is.
        move_to_mount(of_root, root_slot, of_root.state.load(Ordering::Relaxed));
        Ok(lost)
    }
}

/// Slots of the table.
fn size_of_table(records: &Records<InodeRecord>) -> Result<u32, ArenaError> {
    let count = u32::try_from(records.count()).ok().filter(|max| (2..=INODES_MAX).contains(max));
    count.ok_or(ArenaError::Unusable("the table of inodes has another size"))
}

/// Whether the record with `state` in `slot` is that of a node, and what it was when it was made.
fn is_whole(record: &InodeRecord, slot: u32, state: u64) -> bool {
    state & 0xffff_ffff & !TYPE_SEEN == LIVE && record.checked(slot, state) == record.check.load(Ordering::Relaxed)
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
