//! Handle records: the files that the guest has open. A record holds the number of its descriptor and
//! counts who uses it, so that a RELEASE during an I/O closes the file behind it, never under it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::arena::{Arena, Record, Records};
use super::budget::{Budget, Reserved};
use super::slots::{Slots, TableFull};
use crate::types::{FileHandle, NodeId};

/// Files that a guest may have open at a time, where the limit of descriptors allows as many.
pub const HANDLES_MAX: u32 = 1 << 20;
/// Bytes of the table in the arena.
pub const TABLE_LEN: usize = HANDLES_MAX as usize * size_of::<HandleRecord>();

const LIVE: u64 = 1 << 31;
const USERS: u64 = LIVE - 1;
const NO_FD: i32 = -1;

/// One open file.
#[repr(C)]
#[derive(Debug)]
pub struct HandleRecord {
    /// Generation in the upper half; LIVE; users in the low 31 bits, the handle itself being one.
    state: AtomicU64,
    node: AtomicU64,
    fd: AtomicI32,
    /// A second descriptor of the same file, opened without O_DIRECT when it was first needed.
    buffered_fd: AtomicI32,
    /// Flags that it was opened with on the host.
    flags: AtomicU32,
    reserved: [AtomicU32; 9],
}

const _: () = assert!(size_of::<HandleRecord>() == 64);

// SAFETY: atomics only.
unsafe impl Record for HandleRecord {}

/// All handle records.
#[derive(Debug)]
pub struct HandleTable {
    records: Records<HandleRecord>,
    slots: Slots,
    /// Where the open files have their places.
    budget: Arc<Budget>,
}

/// A file in use. While it lives the descriptor stays open.
#[derive(Debug)]
pub struct OpenFile<'t> {
    table: &'t HandleTable,
    record: &'t HandleRecord,
    slot: u32,
}

/// A file in use, without a borrow of its table: [`HandleTable::take_up`] makes an [`OpenFile`] of it again. One that is
/// dropped otherwise keeps its descriptor open for ever.
#[derive(Debug)]
#[must_use]
pub struct HeldFile {
    slot: u32,
    fd: RawFd,
}

impl HeldFile {
    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `OpenFile::hold` read the number of a descriptor that the record owns, and left the user in the count, so
        // that nothing closes it before `take_up`, which consumes this.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl HandleTable {
    /// The table in `arena`, `offset` bytes behind its header, for files that have their places in `budget`. Slot 0 is
    /// no file's, for handle 0 means "not open": its state holds the generation that slots without memory begin with.
    pub fn new(arena: &Arc<Arena>, offset: usize, budget: Arc<Budget>) -> HandleTable {
        HandleTable { records: arena.table(offset, HANDLES_MAX as usize), slots: Slots::new(HANDLES_MAX), budget }
    }

    /// How many descriptors a file may take that is opened with `flags`: one for direct I/O may need a second one.
    pub fn descriptors_of(flags: i32) -> usize {
        if flags & libc::O_DIRECT == 0 { 1 } else { 2 }
    }

    /// Takes an open file in; `flags` are those it was opened with, `reserved` are its places: [`HandleTable::descriptors_of`]
    /// its flags, in the table's budget.
    pub fn insert(&self, file: OwnedFd, node: NodeId, flags: i32, reserved: Reserved<'_>) -> Result<FileHandle, TableFull> {
        let slot = self.slots.take()?;
        let record = self.records.get(slot).ok_or(TableFull)?;
        record.node.store(node.0, Ordering::Relaxed);
        record.buffered_fd.store(NO_FD, Ordering::Relaxed);
        record.flags.store(flags.cast_unsigned(), Ordering::Relaxed);
        record.fd.store(file.into_raw_fd(), Ordering::Relaxed);
        reserved.keep();
        let generation = self.records.generation(slot, |record| &record.state);
        record.state.store(generation | LIVE | 1, Ordering::Release);
        Ok(FileHandle(generation | u64::from(slot)))
    }

    /// Slots that were never used are taken with `generation` from now on.
    pub fn begin_at(&self, generation: u32) {
        self.slots.begin_at(generation);
        self.records.begin_at(generation, |record| &record.state);
    }

    fn record(&self, slot: u32) -> Option<&HandleRecord> {
        self.records.get(slot).filter(|_| self.slots.may_be_taken(slot))
    }

    /// The file behind `handle`; `None` where there is none.
    pub fn get(&self, handle: FileHandle) -> Option<OpenFile<'_>> {
        let slot = handle.0 as u32;
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

    /// The file that `held` keeps in use, which must come from this table. `None` where that cannot be.
    #[expect(clippy::needless_pass_by_value, reason = "the user that it stands for is the returned one's from now on")]
    pub fn take_up(&self, held: HeldFile) -> Option<OpenFile<'_>> {
        let HeldFile { slot, fd } = held;
        let record = self.record(slot)?;
        debug_assert_eq!(record.fd.load(Ordering::Relaxed), fd, "held by another table");
        Some(OpenFile { table: self, record, slot })
    }

    /// Another user of the file that `held` keeps in use. `None` where it is of no file of this table.
    pub fn user_of(&self, held: &HeldFile) -> Option<OpenFile<'_>> {
        let record = self.record(held.slot)?;
        record.state.fetch_add(1, Ordering::AcqRel);
        Some(OpenFile { table: self, record, slot: held.slot })
    }

    /// Ends `handle`. The file is closed when its last user is done. False where there is no such handle.
    pub fn remove(&self, handle: FileHandle) -> bool {
        let slot = handle.0 as u32;
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

    /// Any open file of `node`, found by a walk: for the rare case that the node has no other way in.
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

    /// Ends every handle.
    pub fn clear(&self) {
        for slot in self.slots.taken() {
            if let Some(record) = self.records.get(slot) {
                let generation = record.state.load(Ordering::Acquire) & !0xffff_ffff;
                self.remove(FileHandle(generation | u64::from(slot)));
            }
        }
    }

    fn close(&self, slot: u32, record: &HandleRecord) {
        for field in [&record.fd, &record.buffered_fd] {
            let fd = field.swap(NO_FD, Ordering::Relaxed);
            if fd != NO_FD {
                // SAFETY: the record owned the descriptor since `insert` or `set_buffered`; nobody uses the
                // record any more, and the swap took the number out of it.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        self.budget.give(HandleTable::descriptors_of(record.flags.load(Ordering::Relaxed).cast_signed()));
        let generation = record.state.load(Ordering::Relaxed) & !0xffff_ffff;
        let next = generation.wrapping_add(1 << 32);
        record.state.store(next, Ordering::Release);
        self.slots.give(slot, (next >> 32) as u32, |slots, generation| {
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
    /// The same file in use, without the borrow of the table.
    pub fn hold(self) -> HeldFile {
        let file = std::mem::ManuallyDrop::new(self);
        HeldFile { slot: file.slot, fd: file.record.fd.load(Ordering::Relaxed) }
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the record owns the descriptor and this user keeps it from being closed.
        unsafe { BorrowedFd::borrow_raw(self.record.fd.load(Ordering::Relaxed)) }
    }

    /// The descriptor without O_DIRECT, if one was set.
    pub fn buffered(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.record.buffered_fd.load(Ordering::Acquire);
        // SAFETY: as in `fd`; once set it stays until the record is closed.
        (fd != NO_FD).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Keeps `file` as the descriptor without O_DIRECT, unless another thread was first.
    pub fn set_buffered(&self, file: OwnedFd) {
        let raw = file.as_raw_fd();
        if self.record.buffered_fd.compare_exchange(NO_FD, raw, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let _ = file.into_raw_fd();
        }
    }

    /// The node that was opened.
    pub fn node(&self) -> NodeId {
        NodeId(self.record.node.load(Ordering::Relaxed))
    }

    /// The flags that it was opened with.
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
        table.insert(file(), NodeId(node), 0, table.budget.reserve(1, 0).unwrap()).unwrap()
    }

    #[test]
    fn a_closed_file_gives_its_places_back() {
        let table = table();
        let direct = libc::O_DIRECT;
        let places = HandleTable::descriptors_of(direct);
        let handle = table.insert(file(), NodeId(5), direct, table.budget.reserve(places, 0).unwrap()).unwrap();
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
