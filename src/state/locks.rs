//! Records of the guest's locks on the host: who has an open file description for locks, and which byte ranges it holds. Does not know
//! how a lock is taken, nor which ranges follow from a change.
//!
//! A change writes what is held from now on before it removes what was. A process that dies in between leaves both; each range has the
//! number of its change, and where two overlap, the later one holds.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustc_hash::FxHashMap;

use super::arena::{Arena, ArenaError, Record, Records};
use super::attached::Refused;
use super::check::Check;
use super::slots::{SlotUse, Slots, TableFull};
use crate::sys::descriptor::is_open;
use crate::sys::failpoint::crash_point;
use crate::sys::lock::{LockKind, Span};
use crate::types::{FileHandle, NodeId};

/// As many as there may be open files: each owner has one.
const OWNERS_MAX: u32 = 1 << 20;
/// More than are held at a time (`host/locks/owner.rs`): a change takes up to three before it gives any back.
const RANGES_MAX: u32 = (1 << 18) + (1 << 14);
const OWNERS_LEN: usize = OWNERS_MAX as usize * size_of::<OwnerRecord>();
/// Bytes of both tables.
pub const TABLE_LEN: usize = OWNERS_LEN + RANGES_MAX as usize * size_of::<RangeRecord>();

/// Bits of [`OwnerRecord::state`] above the number of the descriptor; the check is above them.
const LIVE: u64 = 1 << 32;
const FLOCK: u64 = 1 << 33;
const WRITABLE: u64 = 1 << 34;
const CHECK_SHIFT: u32 = 35;

/// Values of the low byte of [`RangeRecord::state`], beside 0 for none.
const SHARED: u64 = 1;
const EXCLUSIVE: u64 = 2;
const SEQUENCE_SHIFT: u32 = 8;

#[repr(C)]
#[derive(Debug)]
struct OwnerRecord {
    /// One word, so that an owner gets another description in one step: the descriptor, LIVE and the like, and in the upper 29 bits the
    /// check. Stored last, and 0 before the descriptor is closed.
    state: AtomicU64,
    node: AtomicU64,
    owner: AtomicU64,
    reserved: AtomicU64,
}

const _: () = assert!(size_of::<OwnerRecord>() == 32);

// SAFETY: every field is an atomic integer.
unsafe impl Record for OwnerRecord {
    const KIND: u32 = 6;
}

impl OwnerRecord {
    /// `state` with its check.
    fn checked(&self, slot: u32, state: u64) -> u64 {
        let state = state & ((1 << CHECK_SHIFT) - 1);
        let words = [slot.into(), state, self.node.load(Ordering::Relaxed), self.owner.load(Ordering::Relaxed)];
        let check = words.into_iter().fold(Check::default().with(6), Check::with).value();
        state | u64::from(check) << CHECK_SHIFT
    }
}

#[repr(C)]
#[derive(Debug)]
struct RangeRecord {
    /// The number of the change, and in the low byte the kind. Stored last.
    state: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    through: AtomicU64,
    /// The slot of the owner.
    owner: AtomicU32,
    pid: AtomicU32,
    check: AtomicU32,
    reserved: [AtomicU32; 5],
}

const _: () = assert!(size_of::<RangeRecord>() == 64);

// SAFETY: every field is an atomic integer or an array of them.
unsafe impl Record for RangeRecord {
    const KIND: u32 = 7;
}

impl RangeRecord {
    fn checked(&self, slot: u32, state: u64) -> u32 {
        let (owner, pid) = (self.owner.load(Ordering::Relaxed), self.pid.load(Ordering::Relaxed));
        let words = [&self.start, &self.end, &self.through].map(|word| word.load(Ordering::Relaxed));
        let numbers = [slot.into(), state, owner.into(), pid.into()];
        numbers.into_iter().chain(words).fold(Check::default().with(7), Check::with).value()
    }

    /// What it says; `None` where that is no range.
    fn note(&self, state: u64) -> Option<HeldLock> {
        let kind = match state & ((1 << SEQUENCE_SHIFT) - 1) {
            SHARED => LockKind::Shared,
            EXCLUSIVE => LockKind::Exclusive,
            _ => return None,
        };
        let [start, end, through] = [&self.start, &self.end, &self.through].map(|word| word.load(Ordering::Relaxed));
        let (pid, through) = (self.pid.load(Ordering::Relaxed), FileHandle(through));
        (start <= end).then_some(HeldLock { span: Span { start, end }, kind, pid, through })
    }
}

/// What is recorded of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerNote {
    /// The file.
    pub node: NodeId,
    /// The guest's number of the owner.
    pub owner: u64,
    /// Whether its lock is one of flock(2).
    pub is_flock: bool,
    /// Whether its description is open for writing.
    pub is_writable: bool,
}

/// One range that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLock {
    /// The byte range.
    pub span: Span,
    /// Shared or exclusive.
    pub kind: LockKind,
    /// The guest's process that requested it.
    pub pid: u32,
    /// The open file that it was requested through.
    pub through: FileHandle,
}

/// The record of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerSlot(u32);

/// The record of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RangeSlot(u32);

/// The records.
#[derive(Debug)]
pub struct LockRecords {
    owners: Records<OwnerRecord>,
    owner_slots: Slots,
    ranges: Records<RangeRecord>,
    range_slots: Slots,
}

/// An owner as an attached record has it.
#[derive(Debug)]
pub struct RecordedOwner {
    /// What the record says.
    pub note: OwnerNote,
    /// The record.
    pub slot: OwnerSlot,
    /// Its ranges, with the number of the change that made each, in that order.
    pub ranges: Vec<(u64, HeldLock, RangeSlot)>,
}

/// Such an owner with its descriptor, which nobody owns yet.
#[derive(Debug)]
pub struct AttachedOwner {
    owner: RecordedOwner,
    fd: RawFd,
}

impl AttachedOwner {
    /// The file.
    pub fn node(&self) -> NodeId {
        self.owner.note.node
    }

    /// The number of its descriptor.
    pub fn number(&self) -> RawFd {
        self.fd
    }

    /// The owner, and its descriptor.
    pub fn own(self) -> (RecordedOwner, OwnedFd) {
        // SAFETY: `LockRecords::attach` found it open and named by this record, whose process has ended; it gives each out once, and the
        // caller has dropped what two records name.
        (self.owner, unsafe { OwnedFd::from_raw_fd(self.fd) })
    }
}

/// Records that were attached.
#[derive(Debug)]
pub struct AttachedLocks {
    /// The records.
    pub records: LockRecords,
    /// The owners.
    pub owners: Vec<AttachedOwner>,
}

impl LockRecords {
    /// The tables in `arena`, `offset` bytes after its header.
    pub fn new(arena: &Arc<Arena>, offset: usize) -> LockRecords {
        LockRecords {
            owners: arena.table(offset, OWNERS_MAX as usize),
            owner_slots: Slots::new(OWNERS_MAX),
            ranges: arena.table(offset + OWNERS_LEN, RANGES_MAX as usize),
            range_slots: Slots::new(RANGES_MAX),
        }
    }

    /// The tables in `arena`, which was attached, and what is in them. Damaged records are freed, and so are ranges without an owner.
    /// [`ArenaError::Unusable`] where the tables have another size.
    pub fn attach(arena: &Arc<Arena>) -> Result<AttachedLocks, ArenaError> {
        let (owners, ranges) = (arena.attached_table::<OwnerRecord>()?, arena.attached_table::<RangeRecord>()?);
        if owners.count() != OWNERS_MAX as usize || ranges.count() != RANGES_MAX as usize {
            return Err(ArenaError::Unusable("the table of locks has another size"));
        }
        let mut found = attach_owners(&owners)?;
        let used: Vec<_> = found.iter().map(|found| (found.owner.slot.0, SlotUse::Taken)).collect();
        let owner_slots = Slots::rebuilt(OWNERS_MAX, 0, used.into_iter(), |slots, _| owners.discard(slots));
        let used = attach_ranges(&ranges, &mut found)?;
        let range_slots = Slots::rebuilt(RANGES_MAX, 0, used.into_iter(), |slots, _| ranges.discard(slots));
        Ok(AttachedLocks { records: LockRecords { owners, owner_slots, ranges, range_slots }, owners: found })
    }

    /// Forgets the locks in `arena`, before it is attached: they ended with the descriptors of a process that is gone. Returns how many
    /// ranges were held.
    pub fn make_over(arena: &Arc<Arena>) -> Result<u64, ArenaError> {
        let (owners, ranges) = (arena.attached_table::<OwnerRecord>()?, arena.attached_table::<RangeRecord>()?);
        let used = owners.with_memory()?.into_iter().flatten();
        used.for_each(|slot| owners.at(slot).state.store(0, Ordering::Relaxed));
        let used = ranges.with_memory()?.into_iter().flatten();
        Ok(used.map(|slot| u64::from(ranges.at(slot).state.swap(0, Ordering::Relaxed) != 0)).sum())
    }

    /// Records an owner, whose description is open as `fd`. [`TableFull`] where no slot is free.
    pub fn add_owner(&self, note: &OwnerNote, fd: RawFd) -> Result<OwnerSlot, TableFull> {
        let slot = OwnerSlot(self.owner_slots.take()?);
        let record = self.owners.at(slot.0);
        record.node.store(note.node.0, Ordering::Relaxed);
        record.owner.store(note.owner, Ordering::Relaxed);
        self.set_description(slot, note, fd);
        Ok(slot)
    }

    /// The description of the owner that `note` is of is open as `fd` now, and [`OwnerNote::is_writable`] or not. What it was before
    /// is not the record's any more.
    pub fn set_description(&self, slot: OwnerSlot, note: &OwnerNote, fd: RawFd) {
        let bit = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
        let state = u64::from(fd.cast_unsigned()) | LIVE | bit(note.is_flock, FLOCK) | bit(note.is_writable, WRITABLE);
        let record = self.owners.at(slot.0);
        crash_point!("lock owner");
        record.state.store(record.checked(slot.0, state), Ordering::Release);
        crash_point!("lock owner");
    }

    /// Removes an owner without ranges, before its descriptor is closed.
    pub fn remove_owner(&self, slot: OwnerSlot) {
        self.owners.at(slot.0).state.store(0, Ordering::Release);
        crash_point!("lock owner");
        self.owner_slots.give(slot.0, 0, |slots, _| self.owners.discard(slots));
    }

    /// A record for a range, to be written. [`TableFull`] where none is free.
    pub fn take_range(&self) -> Result<RangeSlot, TableFull> {
        self.range_slots.take().map(RangeSlot)
    }

    /// Records that `owner` holds a range since its change number `sequence`.
    pub fn write_range(&self, slot: RangeSlot, owner: OwnerSlot, sequence: u64, note: &HeldLock) {
        let record = self.ranges.at(slot.0);
        let kind = if note.kind == LockKind::Exclusive { EXCLUSIVE } else { SHARED };
        let state = sequence << SEQUENCE_SHIFT | kind;
        record.start.store(note.span.start, Ordering::Relaxed);
        record.end.store(note.span.end, Ordering::Relaxed);
        record.through.store(note.through.0, Ordering::Relaxed);
        record.owner.store(owner.0, Ordering::Relaxed);
        record.pid.store(note.pid, Ordering::Relaxed);
        record.check.store(record.checked(slot.0, state), Ordering::Relaxed);
        record.state.store(state, Ordering::Release);
        crash_point!("lock range");
    }

    /// Gives a record back, written or not.
    pub fn give_range(&self, slot: RangeSlot) {
        self.ranges.at(slot.0).state.store(0, Ordering::Release);
        crash_point!("lock range");
        self.range_slots.give(slot.0, 0, |slots, _| self.ranges.discard(slots));
    }

    /// Drops an owner that was attached, with its ranges. Its descriptor is nobody's.
    pub fn drop_owner(&self, AttachedOwner { owner, .. }: AttachedOwner) {
        owner.ranges.into_iter().for_each(|(_, _, range)| self.give_range(range));
        self.remove_owner(owner.slot);
    }
}

/// The owners whose records are whole; the others are freed.
fn attach_owners(records: &Records<OwnerRecord>) -> Result<Vec<AttachedOwner>, ArenaError> {
    let (mut found, mut refused) = (Vec::new(), Refused::new("lock owner", 0));
    for slot in records.with_memory()?.into_iter().flatten().filter(|slot| *slot > 0) {
        let record = records.at(slot);
        let state = record.state.load(Ordering::Acquire);
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let fd = (state as u32).cast_signed();
        if state == 0 {
            continue;
        }
        if state & LIVE == 0 || record.checked(slot, state) != state || !is_open(fd) {
            refused.add(slot, 0);
            continue;
        }
        let (node, owner) = (NodeId(record.node.load(Ordering::Relaxed)), record.owner.load(Ordering::Relaxed));
        let note = OwnerNote { node, owner, is_flock: state & FLOCK != 0, is_writable: state & WRITABLE != 0 };
        found.push(AttachedOwner { owner: RecordedOwner { note, slot: OwnerSlot(slot), ranges: Vec::new() }, fd });
    }
    refused.freed().for_each(|(slot, _)| records.at(slot).state.store(0, Ordering::Relaxed));
    Ok(found)
}

/// Adds the ranges whose records are whole to their owners; the others are freed. Returns the slots that are used, ascending.
fn attach_ranges(records: &Records<RangeRecord>, owners: &mut [AttachedOwner]) -> Result<Vec<(u32, SlotUse)>, ArenaError> {
    let by_slot: FxHashMap<u32, usize> = owners.iter().enumerate().map(|(at, found)| (found.owner.slot.0, at)).collect();
    let (mut used, mut refused) = (Vec::new(), Refused::new("lock range", 0));
    for slot in records.with_memory()?.into_iter().flatten().filter(|slot| *slot > 0) {
        let record = records.at(slot);
        let state = record.state.load(Ordering::Acquire);
        if state == 0 {
            continue;
        }
        let note = record.note(state).filter(|_| record.checked(slot, state) == record.check.load(Ordering::Relaxed));
        let Some(note) = note else {
            refused.add(slot, 0);
            continue;
        };
        let owner = by_slot.get(&record.owner.load(Ordering::Relaxed)).and_then(|at| owners.get_mut(*at));
        let Some(AttachedOwner { owner, .. }) = owner else {
            // Its owner's record was damaged.
            record.state.store(0, Ordering::Relaxed);
            continue;
        };
        owner.ranges.push((state >> SEQUENCE_SHIFT, note, RangeSlot(slot)));
        used.push((slot, SlotUse::Taken));
    }
    refused.freed().for_each(|(slot, _)| records.at(slot).state.store(0, Ordering::Relaxed));
    owners.iter_mut().for_each(|found| found.owner.ranges.sort_by_key(|(sequence, ..)| *sequence));
    Ok(used)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use proptest::prelude::*;

    use super::*;

    const OWNERS: u64 = 8;
    const RANGES: u64 = 5;

    fn owner(number: u64) -> OwnerNote {
        OwnerNote { node: NodeId(100 + number), owner: number, is_flock: number.is_multiple_of(2), is_writable: number.is_multiple_of(3) }
    }

    fn range(number: u64) -> HeldLock {
        let kind = if number.is_multiple_of(2) { LockKind::Shared } else { LockKind::Exclusive };
        let span = Span { start: 10 * number, end: 10 * number + 4 };
        HeldLock { span, kind, pid: 7, through: FileHandle(number) }
    }

    /// The memfd that a process leaves that dies with locks, and the descriptors of the owners.
    fn leave() -> (OwnedFd, Vec<OwnedFd>) {
        let arena = Arena::new(TABLE_LEN).unwrap();
        let records = LockRecords::new(&arena, 0);
        let files: Vec<OwnedFd> = (0..OWNERS).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        for (number, file) in (0..).zip(&files) {
            let slot = records.add_owner(&owner(number), file.as_raw_fd()).unwrap();
            // The later change is in the lower slot.
            let slots: Vec<_> = (0..RANGES).map(|_| records.take_range().unwrap()).collect();
            for (sequence, range_slot) in (0..RANGES).zip(slots.into_iter().rev()) {
                records.write_range(range_slot, slot, sequence, &range(sequence));
            }
        }
        (rustix::io::fcntl_dupfd_cloexec(arena.descriptor().unwrap(), 0).unwrap(), files)
    }

    fn attach(memfd: &OwnedFd) -> AttachedLocks {
        LockRecords::attach(&Arena::attach(memfd.try_clone().unwrap()).unwrap()).unwrap()
    }

    fn notes(found: &AttachedOwner) -> Vec<(u64, HeldLock)> {
        found.owner.ranges.iter().map(|(sequence, note, _)| (*sequence, *note)).collect()
    }

    #[test]
    fn what_was_recorded_is_found_in_the_order_of_the_changes() {
        let (memfd, files) = leave();
        let attached = attach(&memfd);
        let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        assert_eq!(attached.owners.iter().map(AttachedOwner::number).collect::<Vec<_>>(), numbers);
        for (number, found) in (0..).zip(&attached.owners) {
            assert_eq!(found.owner.note, owner(number));
            assert_eq!(notes(found), (0..RANGES).map(|at| (at, range(at))).collect::<Vec<_>>());
        }
        let records = attached.records;
        attached.owners.into_iter().for_each(|owner| records.drop_owner(owner));
        drop(records);
        assert!(attach(&memfd).owners.is_empty());
    }

    #[test]
    fn an_owner_gets_another_description() {
        let (memfd, files) = leave();
        let other: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let attached = attach(&memfd);
        let note = OwnerNote { is_writable: true, ..owner(4) };
        attached.records.set_description(attached.owners[4].owner.slot, &note, other.as_raw_fd());
        let again = attach(&memfd);
        assert_eq!((again.owners[4].owner.note, again.owners[4].number()), (note, other.as_raw_fd()));
        assert_eq!(notes(&again.owners[4]).len() as u64, RANGES);
        again.records.set_description(again.owners[4].owner.slot, &note, RawFd::MAX);
        assert_eq!(attach(&memfd).owners.len(), files.len() - 1, "such a descriptor is not open");
    }

    proptest! {
        #[test]
        fn whatever_is_damaged_the_rest_goes_on(
            damages in prop::collection::vec((any::<bool>(), 1..=OWNERS * RANGES, 0u64..8, prop_oneof![(0u32..64).prop_map(|bit| 1 << bit), 1u64..=u64::MAX]), 0..10),
        ) {
            let (memfd, _files) = leave();
            let header = super::super::arena::PAGE_LEN_MAX as u64;
            let (mut owners_hit, mut ranges_hit) = (Vec::new(), Vec::new());
            for (is_owner, slot, word, change) in damages {
                let slot = if is_owner { (slot - 1) % OWNERS + 1 } else { slot };
                let at = if is_owner { header + slot * 32 + word % 4 * 8 } else { header + OWNERS_LEN as u64 + slot * 64 + word * 8 };
                if is_owner { owners_hit.push(slot - 1) } else { ranges_hit.push(slot - 1) }
                let mut bytes = [0; 8];
                rustix::io::pread(&memfd, &mut bytes[..], at).unwrap();
                rustix::io::pwrite(&memfd, &(u64::from_ne_bytes(bytes) ^ change).to_ne_bytes(), at).unwrap();
            }
            let attached = attach(&memfd);
            for number in 0..OWNERS {
                let found = attached.owners.iter().find(|found| found.owner.note == owner(number));
                let Some(found) = found else {
                    prop_assert!(owners_hit.contains(&number), "owner {} is gone", number);
                    continue;
                };
                for sequence in 0..RANGES {
                    let is_there = notes(found).contains(&(sequence, range(sequence)));
                    prop_assert!(is_there || ranges_hit.contains(&(number * RANGES + RANGES - 1 - sequence)));
                }
                prop_assert!(found.owner.ranges.len() as u64 <= RANGES);
            }
            prop_assert!(attached.owners.len() as u64 <= OWNERS);
            let left = attached.owners.len();
            drop(attached);
            prop_assert_eq!(attach(&memfd).owners.len(), left, "what was refused is freed");
        }
    }
}
