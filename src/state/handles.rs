//! Handle records: the files that the guest has open. A record holds the number of its descriptor and counts its users, so that
//! a RELEASE during an I/O closes the descriptor after the I/O.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use rustc_hash::FxHashSet;

use super::arena::{Arena, ArenaError, Record, Records, generation_of, slot_of};
use super::attached::Refused;
use super::budget::{Budget, Reserved};
use super::check::Check;
use super::slots::{SlotUse, Slots, TableFull};
use crate::sys::descriptor::is_open;
use crate::sys::failpoint::crash_point;
use crate::types::{FileHandle, NodeId};

/// The most files that a guest may have open, where the limit of descriptors allows as many.
pub const HANDLES_MAX: u32 = 1 << 20;
/// Bytes of the table in the arena.
pub const TABLE_LEN: usize = HANDLES_MAX as usize * size_of::<HandleRecord>();

/// The handle exists.
const LIVE: u64 = 1 << 31;
/// The bits of the number of users.
const USERS: u64 = LIVE - 1;
/// No descriptor.
const NO_FD: i32 = -1;

/// One open file. A process that died may have left LIVE cleared with users, where RELEASE came during an I/O, or without users and
/// with descriptors, which are no longer the record's.
#[repr(C)]
#[derive(Debug)]
pub struct HandleRecord {
    /// The generation in the upper half; LIVE; the number of users in the low 31 bits. The handle itself counts as one.
    state: AtomicU64,
    node: AtomicU64,
    fd: AtomicI32,
    /// A second descriptor of the same file without O_DIRECT, opened when it is first needed.
    buffered_fd: AtomicI32,
    /// The flags of open(2) on the host.
    flags: AtomicU32,
    /// Not 0 where a transfer waits for a disk and others can be in flight meanwhile.
    waits_for_disk: AtomicU32,
    /// Of slot, generation, and what does not change while LIVE is set: node, fd and flags.
    check: AtomicU32,
    /// Of slot, generation and buffered_fd.
    buffered_check: AtomicU32,
    reserved: [AtomicU32; 6],
}

const _: () = assert!(size_of::<HandleRecord>() == 64);

// SAFETY: every field is an atomic integer or an array of them.
unsafe impl Record for HandleRecord {
    const KIND: u32 = 3;
}

impl HandleRecord {
    /// The check word of the record in `slot` with the generation of `state`.
    fn checked(&self, slot: u32, state: u64) -> u32 {
        let fd = u64::from(self.fd.load(Ordering::Relaxed).cast_unsigned());
        let words =
            [(state & !0xffff_ffff) | u64::from(slot), self.node.load(Ordering::Relaxed), fd, self.flags.load(Ordering::Relaxed).into()];
        words.into_iter().fold(Check::default(), Check::with).value()
    }

    /// The check word of the second descriptor `fd`.
    fn checked_buffered(slot: u32, state: u64, fd: RawFd) -> u32 {
        let words = [(state & !0xffff_ffff) | u64::from(slot), u64::from(fd.cast_unsigned())];
        words.into_iter().fold(Check::default().with(2), Check::with).value()
    }

    fn descriptors(&self) -> [RawFd; 2] {
        [self.fd.load(Ordering::Relaxed), self.buffered_fd.load(Ordering::Relaxed)]
    }
}

/// All handle records.
#[derive(Debug)]
pub struct HandleTable {
    records: Records<HandleRecord>,
    slots: Slots,
    /// The budget of the descriptors.
    budget: Arc<Budget>,
}

/// A user of an open file. The descriptor stays open as long as it exists.
#[derive(Debug)]
pub struct OpenFile<'t> {
    table: &'t HandleTable,
    record: &'t HandleRecord,
    slot: u32,
}

/// A user of an open file that does not borrow the table. [`HandleTable::take_up`] turns it into an [`OpenFile`] again. Dropping
/// it leaves the descriptor open until the table is dropped.
#[derive(Debug)]
#[must_use]
pub struct HeldFile {
    slot: u32,
    fd: RawFd,
}

impl HeldFile {
    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `OpenFile::hold` read the number of a descriptor that the record owns, and kept the user counted, so that the
        // descriptor is not closed before `take_up`, which consumes this.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl HandleTable {
    /// The table in `arena`, `offset` bytes after its header, for files with places in `budget`. Slot 0 is not used, because handle
    /// 0 means "not open"; its state holds the generation of slots without memory.
    pub fn new(arena: &Arc<Arena>, offset: usize, budget: Arc<Budget>) -> HandleTable {
        HandleTable { records: arena.table(offset, HANDLES_MAX as usize), slots: Slots::new(HANDLES_MAX), budget }
    }

    /// The table in `arena`, which was attached; its files take their places in `budget`. Each handle has one user. What was
    /// released during an I/O is closed.
    pub fn attach(arena: &Arc<Arena>, budget: Arc<Budget>) -> Result<HandleTable, ArenaError> {
        let records: Records<HandleRecord> = arena.attached_table()?;
        if records.count() != HANDLES_MAX as usize {
            return Err(ArenaError::Unusable("the table of handles has another size"));
        }
        let begin = generation_of(records.generation(0, |record| &record.state));
        let (mut used, mut released, mut refused) = (Vec::new(), Vec::new(), Refused::new("handle", begin));
        for slot in records.with_memory()?.into_iter().flatten().filter(|slot| *slot > 0) {
            let record = records.at(slot);
            let state = record.state.load(Ordering::Acquire);
            if state == 0 {
                continue;
            }
            let (users, [fd, buffered]) = (state & USERS, record.descriptors());
            if state & (LIVE | USERS) == 0 {
                // It may have been left between the end of its last user and that of its number, so it gets another one.
                let next = (state & !0xffff_ffff).wrapping_add(1 << 32);
                record.state.store(next, Ordering::Relaxed);
                used.push((slot, SlotUse::Free(generation_of(next))));
                continue;
            }
            if users == 0 || record.checked(slot, state) != record.check.load(Ordering::Relaxed) || !is_open(fd) {
                refused.add(slot, generation_of(state));
                continue;
            }
            let is_named = record.buffered_check.load(Ordering::Relaxed) == HandleRecord::checked_buffered(slot, state, buffered);
            if !is_named || !is_open(buffered) {
                record.buffered_fd.store(NO_FD, Ordering::Relaxed);
            }
            refused.pass(generation_of(state));
            budget.take(HandleTable::descriptors_of(record.flags.load(Ordering::Relaxed).cast_signed())).keep();
            used.push((slot, SlotUse::Taken));
            let alone = (state & !USERS) | u64::from(state & LIVE != 0);
            record.state.store(alone, Ordering::Relaxed);
            if alone & LIVE == 0 {
                released.push(slot);
            }
        }
        for (slot, generation) in refused.freed() {
            records.at(slot).state.store(u64::from(generation) << 32, Ordering::Relaxed);
            used.push((slot, SlotUse::Free(generation)));
        }
        used.sort_unstable_by_key(|(slot, _)| *slot);
        let let_go = |slots, generation| records.let_go(slots, generation, |record| &record.state);
        let slots = Slots::rebuilt(HANDLES_MAX, begin, used.into_iter(), let_go);
        let table = HandleTable { records, slots, budget };
        released.into_iter().for_each(|slot| table.close(slot, table.records.at(slot)));
        Ok(table)
    }

    /// Makes the table in `arena`, before it is attached, one of a process with another table of descriptors: each file is opened again by
    /// `open`, which gets its node and flags. A handle of which that fails is gone. Returns how many are. May be called once more where
    /// a process died in it. [`ArenaError::Unusable`] where the table has another size.
    pub fn make_over(arena: &Arc<Arena>, open: impl Fn(NodeId, i32) -> Option<OwnedFd>) -> Result<u64, ArenaError> {
        let records: Records<HandleRecord> = arena.attached_table()?;
        let mut lost = 0;
        for slot in records.with_memory()?.into_iter().flatten().filter(|slot| *slot > 0) {
            let record = records.at(slot);
            let state = record.state.load(Ordering::Acquire);
            // Not the last: `attach` drops it.
            if state & (LIVE | USERS) == 0 || record.checked(slot, state) != record.check.load(Ordering::Relaxed) {
                continue;
            }
            let (node, flags) = (NodeId(record.node.load(Ordering::Relaxed)), record.flags.load(Ordering::Relaxed).cast_signed());
            let file = (state & LIVE != 0).then(|| open(node, flags)).flatten();
            record.buffered_fd.store(NO_FD, Ordering::Relaxed);
            let is_open = file.is_some();
            record.fd.store(file.map_or(NO_FD, OwnedFd::into_raw_fd), Ordering::Relaxed);
            if is_open {
                record.check.store(record.checked(slot, state), Ordering::Relaxed);
            } else {
                lost += u64::from(state & LIVE != 0);
                record.state.store((state & !0xffff_ffff).wrapping_add(1 << 32), Ordering::Relaxed);
            }
        }
        Ok(lost)
    }

    /// Every handle with the flags that its file was opened with.
    pub fn open(&self) -> impl Iterator<Item = (FileHandle, i32)> + '_ {
        self.slots.taken().filter_map(|slot| {
            let record = self.records.get(slot)?;
            let state = record.state.load(Ordering::Acquire);
            let flags = record.flags.load(Ordering::Relaxed).cast_signed();
            (state & LIVE != 0).then_some((FileHandle((state & !0xffff_ffff) | u64::from(slot)), flags))
        })
    }

    /// Adds the numbers of the descriptors of every open file to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        for (handle, _) in self.open() {
            let numbers = self.records.get(slot_of(handle.0)).map(HandleRecord::descriptors);
            named.extend(numbers.into_iter().flatten().filter(|fd| *fd != NO_FD));
        }
    }

    /// Removes the handles with one of `descriptors`, which are not theirs, and closes none of their descriptors.
    pub fn give_up(&self, descriptors: &FxHashSet<RawFd>) {
        for (handle, _) in self.open().collect::<Vec<_>>() {
            let Some(record) = self.records.get(slot_of(handle.0)) else { continue };
            if record.descriptors().iter().any(|fd| descriptors.contains(fd)) {
                record.fd.store(NO_FD, Ordering::Relaxed);
                record.buffered_fd.store(NO_FD, Ordering::Relaxed);
                self.remove(handle);
            }
        }
    }

    /// The most descriptors of a file that is opened with `flags`: two with O_DIRECT, else one.
    pub fn descriptors_of(flags: i32) -> usize {
        if flags & libc::O_DIRECT == 0 { 1 } else { 2 }
    }

    /// Adds an open file. `flags` are those it was opened with, `reserved` are [`HandleTable::descriptors_of`] places of the
    /// table's budget. `note` is told the handle before it exists. [`TableFull`] where no slot is free.
    pub fn insert(
        &self,
        file: OwnedFd,
        node: NodeId,
        flags: i32,
        reserved: Reserved<'_>,
        note: impl FnOnce(FileHandle),
    ) -> Result<FileHandle, TableFull> {
        let slot = self.slots.take()?;
        let record = self.records.get(slot).ok_or(TableFull)?;
        record.node.store(node.0, Ordering::Relaxed);
        record.buffered_fd.store(NO_FD, Ordering::Relaxed);
        record.flags.store(flags.cast_unsigned(), Ordering::Relaxed);
        record.waits_for_disk.store(0, Ordering::Relaxed);
        record.fd.store(file.into_raw_fd(), Ordering::Relaxed);
        reserved.keep();
        let generation = self.records.generation(slot, |record| &record.state);
        record.check.store(record.checked(slot, generation), Ordering::Relaxed);
        let handle = FileHandle(generation | u64::from(slot));
        // What is noted is no other file's where this process dies now: a slot that has a generation and no file gets another one.
        record.state.store(generation, Ordering::Release);
        note(handle);
        crash_point!("handle");
        // Last: from here on the record owns the descriptor, also for a process that attaches it.
        record.state.store(generation | LIVE | 1, Ordering::Release);
        Ok(handle)
    }

    /// Sets the generation with which slots that were never used are to be taken.
    pub fn begin_at(&self, generation: u32) {
        self.slots.begin_at(generation);
        self.records.begin_at(generation, |record| &record.state);
    }

    fn record(&self, slot: u32) -> Option<&HandleRecord> {
        self.records.get(slot).filter(|_| self.slots.may_be_taken(slot))
    }

    /// The file of `handle`; `None` where it is not open.
    pub fn get(&self, handle: FileHandle) -> Option<OpenFile<'_>> {
        let slot = slot_of(handle.0);
        let record = self.record(slot)?;
        let mut state = record.state.load(Ordering::Acquire);
        loop {
            if state & LIVE == 0 || (state ^ handle.0) >> 32 != 0 || state & USERS == USERS {
                return None;
            }
            match record.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(OpenFile { table: self, record, slot }),
                Err(seen) => state = seen,
            }
        }
    }

    /// The file of `held`, which must come from this table. `None` where its slot is not in use.
    #[expect(clippy::needless_pass_by_value, reason = "the returned value takes over the user that it counts for")]
    pub fn take_up(&self, held: HeldFile) -> Option<OpenFile<'_>> {
        let HeldFile { slot, fd } = held;
        let record = self.record(slot)?;
        debug_assert_eq!(record.fd.load(Ordering::Relaxed), fd, "held by another table");
        Some(OpenFile { table: self, record, slot })
    }

    /// Another user of the file of `held`, which must come from this table. `None` where its slot is not in use.
    pub fn user_of(&self, held: &HeldFile) -> Option<OpenFile<'_>> {
        let record = self.record(held.slot)?;
        record.state.fetch_add(1, Ordering::AcqRel);
        Some(OpenFile { table: self, record, slot: held.slot })
    }

    /// Removes `handle`. The file is closed when its last user is dropped. False where there is no such handle.
    pub fn remove(&self, handle: FileHandle) -> bool {
        let slot = slot_of(handle.0);
        let Some(record) = self.record(slot) else { return false };
        let mut state = record.state.load(Ordering::Acquire);
        loop {
            if state & LIVE == 0 || (state ^ handle.0) >> 32 != 0 {
                return false;
            }
            let next = (state & !LIVE) - 1;
            match record.state.compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if next & USERS == 0 {
                        self.close(slot, record);
                    }
                    return true;
                }
                Err(seen) => state = seen,
            }
        }
    }

    /// An open file of `node`, by a search of the whole table: for the rare case that the node cannot be opened otherwise.
    pub fn find(&self, node: NodeId) -> Option<OpenFile<'_>> {
        self.slots.taken().find_map(|slot| {
            let record = self.records.get(slot)?;
            let state = record.state.load(Ordering::Acquire);
            if state & LIVE == 0 || record.node.load(Ordering::Relaxed) != node.0 {
                return None;
            }
            let file = self.get(FileHandle((state & !0xffff_ffff) | u64::from(slot)))?;
            (file.node() == node).then_some(file)
        })
    }

    /// Open handles.
    #[cfg(feature = "failpoints")]
    pub fn open_count(&self) -> usize {
        let is_live = |slot| self.records.get(slot).is_some_and(|record| record.state.load(Ordering::Acquire) & LIVE != 0);
        self.slots.taken().filter(|slot| is_live(*slot)).count()
    }

    /// Removes every handle.
    pub fn clear(&self) {
        for slot in self.slots.taken() {
            if let Some(record) = self.records.get(slot) {
                let generation = record.state.load(Ordering::Acquire) & !0xffff_ffff;
                self.remove(FileHandle(generation | u64::from(slot)));
            }
        }
    }

    fn close(&self, slot: u32, record: &HandleRecord) {
        // The record gives a number up before it is another file's.
        for field in [&record.fd, &record.buffered_fd] {
            let fd = field.swap(NO_FD, Ordering::Relaxed);
            if fd != NO_FD {
                // SAFETY: the record has owned the descriptor since `insert` or `set_buffered`. It has no users any more, and the
                // swap removed the number from it.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        self.budget.give(HandleTable::descriptors_of(record.flags.load(Ordering::Relaxed).cast_signed()));
        let generation = record.state.load(Ordering::Relaxed) & !0xffff_ffff;
        let next = generation.wrapping_add(1 << 32);
        record.state.store(next, Ordering::Release);
        self.slots.give(slot, generation_of(next), |slots, generation| {
            self.records.let_go(slots, generation, |record| &record.state);
        });
    }
}

impl Drop for HandleTable {
    fn drop(&mut self) {
        self.clear();
    }
}

impl OpenFile<'_> {
    /// The same user without a borrow of the table.
    pub fn hold(self) -> HeldFile {
        let file = std::mem::ManuallyDrop::new(self);
        HeldFile { slot: file.slot, fd: file.record.fd.load(Ordering::Relaxed) }
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the record owns the descriptor, which stays open while this user is counted.
        unsafe { BorrowedFd::borrow_raw(self.record.fd.load(Ordering::Relaxed)) }
    }

    /// The descriptor without O_DIRECT, if there is one.
    pub fn buffered(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.record.buffered_fd.load(Ordering::Acquire);
        // SAFETY: as in `fd`. Once set, the descriptor stays until the record is closed.
        (fd != NO_FD).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Sets `file` as the descriptor without O_DIRECT, or closes it where another thread has set one.
    pub fn set_buffered(&self, file: OwnedFd) {
        let raw = file.as_raw_fd();
        if self.record.buffered_fd.compare_exchange(NO_FD, raw, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let state = self.record.state.load(Ordering::Relaxed);
            let check = HandleRecord::checked_buffered(self.slot, state, raw);
            self.record.buffered_check.store(check, Ordering::Release);
            let _ = file.into_raw_fd();
        }
    }

    /// Removes its handle, and ends this use. The file is closed when its last user is dropped. False where the handle was removed
    /// meanwhile.
    pub fn remove(self) -> bool {
        let mut state = self.record.state.load(Ordering::Acquire);
        while state & LIVE != 0 {
            // The handle counts as a user, and so does this.
            let next = (state & !LIVE) - 2;
            match self.record.state.compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let file = std::mem::ManuallyDrop::new(self);
                    if next & USERS == 0 {
                        file.table.close(file.slot, file.record);
                    }
                    return true;
                }
                Err(seen) => state = seen,
            }
        }
        false
    }

    /// The node that was opened.
    pub fn node(&self) -> NodeId {
        NodeId(self.record.node.load(Ordering::Relaxed))
    }

    /// Whether a transfer waits for a disk, and others can be in flight meanwhile.
    pub fn waits_for_disk(&self) -> bool {
        self.record.waits_for_disk.load(Ordering::Relaxed) != 0
    }

    /// Sets what [`OpenFile::waits_for_disk`] says.
    pub fn set_waits_for_disk(&self, waits: bool) {
        self.record.waits_for_disk.store(waits.into(), Ordering::Relaxed);
    }

    /// The flags of open(2).
    pub fn flags(&self) -> i32 {
        self.record.flags.load(Ordering::Relaxed).cast_signed()
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        let before = self.record.state.fetch_sub(1, Ordering::AcqRel);
        if before & USERS == 1 {
            self.table.close(self.slot, self.record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn table() -> HandleTable {
        HandleTable::new(&Arena::new(TABLE_LEN).unwrap(), 0, Arc::new(Budget::new(2)))
    }

    fn insert(table: &HandleTable, node: u64) -> FileHandle {
        table.insert(file(), NodeId(node), 0, table.budget.reserve(1, 0).unwrap(), |_| ()).unwrap()
    }

    #[test]
    fn a_closed_file_gives_its_places_back() {
        let table = table();
        let direct = libc::O_DIRECT;
        let places = HandleTable::descriptors_of(direct);
        let handle = table.insert(file(), NodeId(5), direct, table.budget.reserve(places, 0).unwrap(), |_| ()).unwrap();
        assert!(table.budget.reserve(1, 0).is_none(), "a second descriptor may be needed");
        let user = table.get(handle).unwrap();
        assert!(table.remove(handle));
        assert!(table.budget.reserve(1, 0).is_none(), "it is in use");
        drop(user);
        assert!(table.budget.reserve(2, 0).is_some());
    }

    #[test]
    fn a_released_handle_is_gone_and_its_slot_gets_another_number() {
        let table = table();
        let handle = insert(&table, 5);
        assert_ne!(handle, FileHandle::NONE);
        assert_eq!(table.get(handle).unwrap().node(), NodeId(5));
        assert!(table.remove(handle));
        assert!(!table.remove(handle));
        assert!(table.get(handle).is_none());
        let next = insert(&table, 6);
        assert_ne!(next, handle);
        assert!(table.get(handle).is_none());
        assert!(table.get(FileHandle(u64::MAX)).is_none());
        assert_eq!(table.find(NodeId(6)).unwrap().node(), NodeId(6));
    }

    #[test]
    fn a_user_may_remove_its_handle_while_there_are_others() {
        let table = table();
        let handle = insert(&table, 5);
        let (first, second, third) = (table.get(handle).unwrap(), table.get(handle).unwrap(), table.get(handle).unwrap());
        assert!(first.remove() && table.get(handle).is_none());
        assert!(!second.remove(), "removed already");
        assert!(rustix::io::fcntl_getfd(third.fd()).is_ok(), "still open");
        drop(third);
        let next = insert(&table, 6);
        assert_eq!(next.0 as u32, handle.0 as u32, "the slot is free again");
        assert!(table.get(next).unwrap().remove());
        assert_eq!(insert(&table, 7).0 as u32, handle.0 as u32, "closed by the last user");
    }

    #[test]
    fn a_release_during_use_closes_the_file_behind_the_last_user() {
        let table = table();
        let handle = insert(&table, 5);
        let held = table.get(handle).unwrap().hold();
        let raw = held.fd().as_raw_fd();
        assert!(table.remove(handle));
        drop(table.user_of(&held));
        let user = table.take_up(held).unwrap();
        assert!(rustix::io::fcntl_getfd(user.fd()).is_ok(), "still open");
        assert_eq!(user.fd().as_raw_fd(), raw);
        drop(user);
        let next = insert(&table, 7);
        assert_eq!(next.0 as u32, handle.0 as u32, "the slot is free again");
    }
}
