//! One shared mapping for all records: a header page and the tables of inode and handle records. It is sparse: a page of records
//! that were never used takes address space only. It belongs to a memfd where possible, so that a process that inherits the
//! descriptor can map the records.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// "gatherfs" in the first word of an arena.
const MAGIC: u64 = u64::from_le_bytes(*b"gatherfs");
/// The version of the layout of the records, in the second word.
const LAYOUT_VERSION: u64 = 2;
/// The largest page of 64-bit Linux. Tables that begin at a multiple of it can return the memory of all their records.
pub const PAGE_LEN_MAX: usize = 64 << 10;
/// Only the first page takes memory.
const HEADER_LEN: usize = PAGE_LEN_MAX;

/// Why the arena cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The kernel refused the memfd or the mapping.
    #[error(
        "cannot make the record arena of {len} bytes of address space: {source}; raise the limit of it (ulimit -v, RLIMIT_AS) if there is one"
    )]
    Map {
        /// Bytes of address space.
        len: usize,
        /// The error of the system call.
        source: io::Error,
    },
}

/// The mapping.
#[derive(Debug)]
pub struct Arena {
    /// The memfd of the mapping, which a process may inherit. `None`, with an anonymous mapping, where the limit of file sizes
    /// (RLIMIT_FSIZE) is below the arena's length; the limit does not apply to anonymous memory.
    memfd: Option<OwnedFd>,
    base: NonNull<u8>,
    len: usize,
    /// Read when the arena is made: the first query may be a system call that the sandbox forbids later (PR_GET_AUXV).
    page_len: usize,
    /// The byte ranges of the tables, which must not overlap.
    given: Mutex<Vec<Range<usize>>>,
}

// SAFETY: the mapping holds atomics only, and stays mapped as long as the arena exists.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// A record type: a `repr(C)` structure of atomics for which all zeroes is "never used".
///
/// # Safety
/// Every field must be an atomic integer or an array of them, so that any bit pattern is valid.
pub unsafe trait Record: Sync {}

// SAFETY: an atomic integer itself.
unsafe impl Record for AtomicU64 {}
// SAFETY: as above.
unsafe impl Record for AtomicU32 {}

impl Arena {
    /// An arena for `records_len` bytes of records. [`ArenaError::Map`] where the kernel refuses the memfd or the mapping: ENOMEM
    /// beyond RLIMIT_AS or vm.overcommit, EMFILE or ENFILE.
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
                // SAFETY: the kernel chooses an unused address range for the new mapping.
                Some(memfd) => unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, memfd, 0) }?,
                // SAFETY: as above.
                None => unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?,
            };
            let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
            // Keeps a core dump small. An error is ignored.
            // SAFETY: the advice does not change the contents.
            let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontDump) };
            Ok(Arena { memfd, base, len, page_len: rustix::param::page_size(), given: Mutex::default() })
        };
        let arena = map().map_err(|source| ArenaError::Map { len, source })?;
        let header: Table<AtomicU64> = arena.table_at(0, 2);
        header.get(0).store(MAGIC, Ordering::Relaxed);
        header.get(1).store(LAYOUT_VERSION, Ordering::Relaxed);
        Ok(Arc::new(arena))
    }

    /// The descriptor by which another process may map it; `None` for an anonymous mapping.
    pub fn fd(&self) -> Option<RawFd> {
        self.memfd.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn table_at<T: Record>(&self, offset: usize, count: usize) -> Table<T> {
        let end = count.checked_mul(size_of::<T>()).and_then(|len| offset.checked_add(len)).filter(|end| *end <= self.len);
        let end = end.expect("a table is within the arena");
        assert!(offset.is_multiple_of(align_of::<T>()));
        let mut given = self.given.lock();
        assert!(given.iter().all(|other| end <= other.start || other.end <= offset), "two tables overlap");
        given.push(offset..end);
        // SAFETY: the offset is within the mapping, as checked above.
        let first = unsafe { self.base.add(offset) };
        Table { first: first.cast(), count, kind: PhantomData }
    }

    /// The table of `count` records, `offset` bytes after the header.
    ///
    /// # Panics
    /// Where the table is misaligned, not within the arena, or overlaps another table.
    pub fn table<T: Record>(self: &Arc<Self>, offset: usize, count: usize) -> Records<T> {
        Records { table: self.table_at(HEADER_LEN + offset, count), arena: Arc::clone(self) }
    }
}

#[cfg(test)]
impl Arena {
    /// Bytes of the memfd that have memory.
    pub fn resident_len(&self) -> io::Result<u64> {
        let memfd = self.memfd.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(rustix::fs::fstat(memfd)?.st_blocks as u64 * 512)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `new` mapped `len` bytes at `base`. Tables keep the arena, so none exists any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The slot of a node id, a file handle, or the state of a record: the lower half.
#[expect(clippy::cast_possible_truncation, reason = "the slot is the lower half of the word")]
pub fn slot_of(word: u64) -> u32 {
    word as u32
}

/// The generation of a node id, a file handle, or the state of a record: the upper half.
pub fn generation_of(word: u64) -> u32 {
    slot_of(word >> 32)
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
        // SAFETY: the index is below `count`, and `table_at` checked that `count` records are within the mapping.
        let record = unsafe { self.first.add(index) };
        // SAFETY: a record consists of atomics (`Record`), for which any bytes are valid. The owner of the table keeps the arena,
        // and with it the mapping.
        unsafe { record.as_ref() }
    }
}

/// A table of records, with its arena.
#[derive(Debug)]
pub struct Records<T: Record> {
    table: Table<T>,
    arena: Arc<Arena>,
}

// SAFETY: records consist of atomics, and the arena keeps them mapped.
unsafe impl<T: Record> Send for Records<T> {}
// SAFETY: as above.
unsafe impl<T: Record> Sync for Records<T> {}

impl<T: Record> Records<T> {
    /// The record of slot `index`; `None` beyond the table.
    pub fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        (index < self.table.count).then(|| self.table.get(index))
    }

    /// The record of slot `index`.
    ///
    /// # Panics
    /// Beyond the table.
    pub fn at(&self, index: u32) -> &T {
        self.table.get(index as usize)
    }

    /// Records in a page of the host.
    #[expect(clippy::cast_possible_truncation, reason = "a page is at most 64 KiB")]
    pub fn per_page(&self) -> u32 {
        (self.arena.page_len / size_of::<T>()) as u32
    }

    /// The generation, in the upper half, with which the free `slot` is to be taken. `state` selects the word of a record that has
    /// the generation in its upper half: that of the slot, or of slot 0 where the slot's is 0, as in a slot without memory.
    pub fn generation(&self, slot: u32, state: impl Fn(&T) -> &AtomicU64) -> u64 {
        let own = self.get(slot).map_or(0, |record| state(record).load(Ordering::Relaxed));
        (if own == 0 { self.get(0).map_or(0, |record| state(record).load(Ordering::Acquire)) } else { own }) & !0xffff_ffff
    }

    /// Sets the generation with which slots without memory are to be taken.
    pub fn begin_at(&self, generation: u32, state: impl Fn(&T) -> &AtomicU64) {
        if let Some(record) = self.get(0) {
            state(record).store(u64::from(generation) << 32, Ordering::Release);
        }
    }

    /// Returns the memory of the free `slots` to the host. They read as zeroes then, and are to be taken with `generation`.
    pub fn let_go(&self, slots: Range<u32>, generation: u32, state: impl Fn(&T) -> &AtomicU64) {
        self.begin_at(generation, state);
        self.discard(slots);
    }

    /// Returns the memory of the records of `slots` to the host, as far as they have whole pages. Those read as zeroes then.
    pub fn discard(&self, slots: Range<u32>) {
        let table = self.table.first.addr().get();
        // Records in other pages keep their state.
        let page_len = self.arena.page_len;
        let first = (table + slots.start as usize * size_of::<T>()).next_multiple_of(page_len);
        let end = (table + (slots.end as usize).min(self.table.count) * size_of::<T>()) / page_len * page_len;
        if first < end {
            // SAFETY: the range is within the mapping, and all zeroes are a valid record (`Record`).
            let gone = unsafe { rustix::mm::madvise(self.table.first.as_ptr().with_addr(first).cast(), end - first, Advice::LinuxRemove) };
            if let Err(e) = gone {
                tracing::debug!("cannot return the memory of {} records: {e}", slots.len());
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
