//! One owner of locks on one file: its open file description on the host, the ranges that it holds, and the records of both, by which
//! the next process goes on if this one dies. Does not know other owners.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustc_hash::FxHashSet;

use super::ranges::{LockRanges, Range};
use super::request::{LockFamily, LockOwner, LockRequest};
use crate::host::files::Counted;
use crate::state::{HeldLock, LockRecords, OwnerNote, OwnerSlot, RangeSlot, RecordedOwner};
use crate::sys::lock::{self, LockKind, Span};
use crate::types::{Errno, FileHandle, NodeId};

/// Ranges of one owner on one file: the host's kernel walks as many records for each lock on the file.
const RANGES_MAX: usize = 1 << 14;
/// Ranges of all owners on all files: 50 MB of the host kernel's memory.
const ALL_RANGES_MAX: usize = 1 << 18;

/// An open file description for the locks of one owner on one file.
#[derive(Debug)]
pub struct LockFile {
    /// Its only descriptor.
    pub file: Counted,
    /// Whether it is open for writing, which an exclusive record lock requires (man fcntl(2)).
    pub is_writable: bool,
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The records of all owners on all files, and the number of ranges that they hold.
#[derive(Debug)]
pub(super) struct AllRanges {
    records: LockRecords,
    held: AtomicUsize,
}

impl AllRanges {
    /// No ranges yet; `records` are for those to come.
    pub fn new(records: LockRecords) -> AllRanges {
        AllRanges { records, held: AtomicUsize::new(0) }
    }
}

/// An owner's description and ranges.
#[derive(Debug)]
pub(super) struct OwnerLocks {
    file: LockFile,
    family: LockFamily,
    ranges: LockRanges,
    /// The number of the last change of the ranges.
    sequence: u64,
    note: OwnerNote,
    record: OwnerSlot,
    all: Arc<AllRanges>,
}

impl OwnerLocks {
    /// An owner on `node` that holds nothing yet. ENOLCK where there are too many.
    pub fn new(node: NodeId, owner: LockOwner, file: LockFile, all: &Arc<AllRanges>) -> Result<OwnerLocks, Errno> {
        let is_flock = owner.family == LockFamily::Flock;
        let note = OwnerNote { node, owner: owner.id, is_flock, is_writable: file.is_writable };
        let record = all.records.add_owner(&note, file.as_fd().as_raw_fd()).map_err(|_| Errno::ENOLCK)?;
        Ok(OwnerLocks { file, family: owner.family, ranges: LockRanges::default(), sequence: 0, note, record, all: Arc::clone(all) })
    }

    /// An owner of a process that died. `file` is its description.
    pub fn recovered(attached: RecordedOwner, file: Counted, all: &Arc<AllRanges>) -> (LockOwner, OwnerLocks) {
        let RecordedOwner { note, slot, ranges, .. } = attached;
        let family = if note.is_flock { LockFamily::Flock } else { LockFamily::Posix };
        let file = LockFile { file, is_writable: note.is_writable };
        let sequence = ranges.last().map_or(0, |(sequence, ..)| *sequence) + 1;
        // Where a change was not completed, the later range holds.
        let range = |&(_, held, record)| Range { held, record: Some(record) };
        let mut next = LockRanges::after(&ranges.iter().map(range).collect::<Vec<_>>());
        for range in next.unrecorded() {
            // As many as there are slots may be in use: then one more process that dies loses what GETLK tells of this range.
            range.record = all.records.take_range().ok();
            range.record.inspect(|record| all.records.write_range(*record, slot, sequence, &range.held));
        }
        let kept: FxHashSet<RangeSlot> = next.records().collect();
        let gone = ranges.iter().map(|(.., record)| *record).filter(|record| !kept.contains(record));
        gone.for_each(|record| all.records.give_range(record));
        all.held.fetch_add(next.len(), Ordering::Relaxed);
        let owner = LockOwner { family, id: note.owner };
        (owner, OwnerLocks { file, family, ranges: next, sequence, note, record: slot, all: Arc::clone(all) })
    }

    /// The ranges that are held.
    pub fn ranges(&self) -> &LockRanges {
        &self.ranges
    }

    /// Whether the description serves for a lock that needs write access where `needs_write`.
    pub fn suits(&self, needs_write: bool) -> bool {
        self.file.is_writable || !needs_write
    }

    /// Takes the lock. EAGAIN where another process of the host, or another guest, holds a conflicting one; ENOLCK where there are too
    /// many; other errors as of fcntl(2) and flock(2).
    pub fn lock(&mut self, wanted: &LockRequest) -> Result<(), Errno> {
        if self.ranges.len() >= RANGES_MAX || self.all.held.load(Ordering::Relaxed) >= ALL_RANGES_MAX {
            return Err(Errno::ENOLCK);
        }
        let held = HeldLock { span: wanted.span, kind: wanted.kind, pid: wanted.pid, through: wanted.handle };
        let locked = self.change(self.ranges.with(Range { held, record: None }), wanted.span, Some(wanted.kind));
        if locked == Err(Errno::EAGAIN) && self.family == LockFamily::Flock {
            // man flock(2): a conversion that fails has lost the old lock.
            self.replace_ranges(LockRanges::default());
        }
        locked
    }

    /// Releases what is held of `span`. Errors as of fcntl(2) and flock(2); ENOLCK also where there are too many ranges to split one.
    pub fn unlock(&mut self, span: Span) -> Result<(), Errno> {
        self.change(self.ranges.without(span), span, None)
    }

    /// Sets or removes a lock on the host; then `next` are the ranges. Nothing has changed on an error.
    fn change(&mut self, mut next: LockRanges, span: Span, kind: Option<LockKind>) -> Result<(), Errno> {
        let records = &self.all.records;
        let recorded = next.unrecorded().try_for_each(|range| {
            range.record = Some(records.take_range().map_err(|_| Errno::ENOLCK)?);
            Ok(())
        });
        match recorded.and_then(|()| host_set(self.file.as_fd(), self.family, span, kind)) {
            Ok(()) => {
                self.replace_ranges(next);
                Ok(())
            }
            Err(errno) => {
                next.each_not_in(&self.ranges, |record, _| records.give_range(record));
                Err(errno)
            }
        }
    }

    /// Replaces the ranges by `next`, which have records: first what is new is written, then what was is removed, so that a process
    /// that dies in between leaves both.
    fn replace_ranges(&mut self, next: LockRanges) {
        let AllRanges { records, held } = &*self.all;
        self.sequence += 1;
        next.each_not_in(&self.ranges, |record, held| records.write_range(record, self.record, self.sequence, held));
        self.ranges.each_not_in(&next, |record, _| records.give_range(record));
        held.fetch_add(next.len(), Ordering::Relaxed);
        held.fetch_sub(self.ranges.len(), Ordering::Relaxed);
        self.ranges = next;
    }

    /// Replaces the description, which is open for reading only and so holds shared locks only, by `file`. The new one takes
    /// the same locks first: shared locks do not conflict, so each range stays locked throughout. On an error nothing has
    /// changed.
    pub fn move_to(&mut self, file: LockFile) -> Result<(), Errno> {
        for held in self.ranges.iter() {
            host_set(file.as_fd(), self.family, held.span, Some(held.kind))?;
        }
        self.note.is_writable = file.is_writable;
        self.all.records.set_description(self.record, &self.note, file.as_fd().as_raw_fd());
        self.file = file;
        Ok(())
    }

    /// Releases the lock of flock(2), whatever the host says.
    pub fn lose_flock(&mut self) {
        let _ = lock::set_whole(self.file.as_fd(), None);
        self.replace_ranges(LockRanges::default());
    }

    /// Its file, to ask the host about other locks.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for OwnerLocks {
    fn drop(&mut self) {
        self.replace_ranges(LockRanges::default());
        // The record gives the descriptor up before it is closed.
        self.all.records.remove_owner(self.record);
    }
}

/// The lock that keeps the description behind `file` from one of `kind` on `span`: of a process outside this guest, whose
/// number the guest does not have.
pub(super) fn foreign_conflict(file: BorrowedFd<'_>, span: Span, kind: LockKind) -> Result<Option<HeldLock>, Errno> {
    let found = lock::in_the_way(file, span, kind)?;
    Ok(found.map(|(span, kind)| HeldLock { span, kind, pid: 0, through: FileHandle::NONE }))
}

fn host_set(file: BorrowedFd<'_>, family: LockFamily, span: Span, kind: Option<LockKind>) -> Result<(), Errno> {
    match family {
        LockFamily::Posix => lock::set(file, span, kind),
        LockFamily::Flock => lock::set_whole(file, kind),
    }
}
