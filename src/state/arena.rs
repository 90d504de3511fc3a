//! One memfd that holds every record: header page, inode slots, handle slots. It is sparse: a slot that
//! was never used costs address space only. Whoever inherits the memfd can map it and walk the records.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// "gatherfs" in the first word of an arena.
const MAGIC: u64 = u64::from_le_bytes(*b"gatherfs");
/// Layout of the records that follow; another number is another layout.
const LAYOUT_VERSION: u64 = 1;
const HEADER_LEN: usize = 4096;

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The kernel gave no memory.
    #[error(
        "cannot make the record arena of {len} bytes of address space: {source}; raise the limit of it (ulimit -v, RLIMIT_AS) if there is one"
    )]
    Map {
        /// Bytes of address space.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The mapped memfd.
#[derive(Debug)]
pub struct Arena {
    /// Keeps the records reachable for a process that inherits the descriptor. None where a limit of file sizes
    /// (RLIMIT_FSIZE) is below the arena's address space, which memory without a descriptor does not count against.
    _memfd: Option<OwnedFd>,
    base: NonNull<u8>,
    len: usize,
    /// Asked for at the start: later a sandbox may forbid the question.
    page_len: usize,
    /// Bytes that a table has: records have one owner.
    given: Mutex<Vec<Range<usize>>>,
}

// SAFETY: the mapping is shared memory of atomics only; it stays mapped as long as the arena lives.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// A record type: a `repr(C)` structure of atomics for which all zeroes is "never used".
///
/// # Safety
/// Every field is an atomic integer or an array of them, so that any bit pattern is valid.
pub unsafe trait Record: Sync {}

// SAFETY: an atomic integer itself.
unsafe impl Record for AtomicU64 {}

impl Arena {
    /// An arena with room for `records_len` bytes of records.
    pub fn new(records_len: usize) -> Result<Arc<Arena>, ArenaError> {
        let len = HEADER_LEN + records_len;
        let map = || -> io::Result<Arena> {
            let memfd = rustix::fs::memfd_create(c"gatherfs-records", MemfdFlags::CLOEXEC)?;
            let memfd = match rustix::fs::ftruncate(&memfd, len as u64) {
                Err(rustix::io::Errno::FBIG) => None,
                sized => sized.map(|()| Some(memfd))?,
            };
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
            let base = match &memfd {
                // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
                Some(memfd) => unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, memfd, 0) }?,
                // SAFETY: as above.
                None => unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?,
            };
            let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
            // A core dump without the records' address space stays small. Best effort.
            // SAFETY: the advice changes no contents.
            let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontDump) };
            Ok(Arena { _memfd: memfd, base, len, page_len: rustix::param::page_size(), given: Mutex::default() })
        };
        let arena = map().map_err(|source| ArenaError::Map { len, source })?;
        let header: Table<AtomicU64> = arena.table_at(0, 2);
        header.get(0).store(MAGIC, Ordering::Relaxed);
        header.get(1).store(LAYOUT_VERSION, Ordering::Relaxed);
        Ok(Arc::new(arena))
    }

    fn table_at<T: Record>(&self, offset: usize, count: usize) -> Table<T> {
        let end = count.checked_mul(size_of::<T>()).and_then(|len| offset.checked_add(len)).filter(|end| *end <= self.len);
        let end = end.expect("a table lies inside the arena");
        assert!(offset.is_multiple_of(align_of::<T>()));
        let mut given = self.given.lock();
        assert!(given.iter().all(|other| end <= other.start || other.end <= offset), "two tables overlap");
        given.push(offset..end);
        // SAFETY: just seen to lie inside the mapping.
        let first = unsafe { self.base.add(offset) };
        Table { first: first.cast(), count, kind: PhantomData }
    }

    /// The table of `count` records that begins `offset` bytes behind the header. No part of it may be another table's.
    pub fn table<T: Record>(self: &Arc<Self>, offset: usize, count: usize) -> Records<T> {
        Records { table: self.table_at(HEADER_LEN + offset, count), arena: Arc::clone(self) }
    }
}

#[cfg(test)]
impl Arena {
    /// Bytes that have memory.
    pub fn resident_len(&self) -> io::Result<u64> {
        let memfd = self._memfd.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(rustix::fs::fstat(memfd)?.st_blocks as u64 * 512)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are the mapping that `new` made; tables hold the arena, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[derive(Debug)]
struct Table<T: Record> {
    first: NonNull<T>,
    count: usize,
    kind: PhantomData<T>,
}

impl<T: Record> Table<T> {
    fn get(&self, index: usize) -> &T {
        assert!(index < self.count);
        // SAFETY: below `count`, which `table_at` checked against the mapping.
        let record = unsafe { self.first.add(index) };
        // SAFETY: records are atomics (`Record`), valid for any bytes and for sharing; whoever has the table keeps the arena mapped.
        unsafe { record.as_ref() }
    }
}

/// A table of records, with the arena that it lies in.
#[derive(Debug)]
pub struct Records<T: Record> {
    table: Table<T>,
    arena: Arc<Arena>,
}

// SAFETY: records are atomics; the arena keeps them mapped.
unsafe impl<T: Record> Send for Records<T> {}
// SAFETY: as above.
unsafe impl<T: Record> Sync for Records<T> {}

impl<T: Record> Records<T> {
    /// The record of slot `index`, if the table is that long.
    pub fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        (index < self.table.count).then(|| self.table.get(index))
    }

    /// The generation, in the upper half, that a free slot is taken with. `state` has the slot's own there, or 0
    /// where it has no memory; that of slot 0 has the one that such slots begin with.
    pub fn generation(&self, slot: u32, state: impl Fn(&T) -> &AtomicU64) -> u64 {
        let own = self.get(slot).map_or(0, |record| state(record).load(Ordering::Relaxed));
        (if own == 0 { self.get(0).map_or(0, |record| state(record).load(Ordering::Acquire)) } else { own }) & !0xffff_ffff
    }

    /// Slots without memory are taken with `generation` from now on.
    pub fn begin_at(&self, generation: u32, state: impl Fn(&T) -> &AtomicU64) {
        if let Some(record) = self.get(0) {
            state(record).store(u64::from(generation) << 32, Ordering::Release);
        }
    }

    /// Gives the memory of free `slots` back to the host: they read as never used, and are taken with `generation`.
    pub fn let_go(&self, slots: Range<u32>, generation: u32, state: impl Fn(&T) -> &AtomicU64) {
        self.begin_at(generation, state);
        let table = self.table.first.addr().get();
        // Whole pages only: others keep what they hold.
        let page_len = self.arena.page_len;
        let first = (table + slots.start as usize * size_of::<T>()).next_multiple_of(page_len);
        let end = (table + (slots.end as usize).min(self.table.count) * size_of::<T>()) / page_len * page_len;
        if first < end {
            // SAFETY: inside the mapping; a record may be all zeroes at any time (`Record`), and these are nobody's.
            let gone = unsafe { rustix::mm::madvise(self.table.first.as_ptr().with_addr(first).cast(), end - first, Advice::LinuxRemove) };
            if let Err(e) = gone {
                tracing::debug!("memory of {} records stays: {e}", slots.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_in_one_table_only() {
        let arena = Arena::new(64).unwrap();
        let first: Records<AtomicU64> = arena.table(0, 4);
        let second: Records<AtomicU64> = arena.table(32, 4);
        assert!(first.get(3).is_some() && first.get(4).is_none() && second.get(3).is_some());
        for (offset, count) in [(0, 1), (24, 2), (56, 1), (64, 1), (0, usize::MAX)] {
            let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| arena.table::<AtomicU64>(offset, count)));
            assert!(again.is_err(), "{count} records at {offset}");
        }
    }
}
