//! One shared mapping for all records of a session: a header page and the tables. It is sparse: a page of records that were never
//! used takes address space only. It belongs to a memfd where possible, so that a process that has the descriptor can map the
//! records after the one that made them has died.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::header::{Header, TablePlace};
use crate::sys::space::lseek;
use crate::types::Errno;

/// The largest page of 64-bit Linux. Tables that begin at a multiple of it can return the memory of all their records.
pub const PAGE_LEN_MAX: usize = 64 << 10;
/// Only the first page takes memory.
const HEADER_LEN: usize = PAGE_LEN_MAX;
/// The record of the session, in the first page behind the header itself.
const SESSION_AT: usize = 1024;
const _: () = assert!(size_of::<Header>() <= SESSION_AT);
/// Bytes up to the end of a page of 4 KiB.
const SESSION_LEN: usize = 4096 - SESSION_AT;

/// Why the arena cannot be made or attached.
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
    /// The records of another process cannot be used.
    #[error("the records of the process that died cannot be used: {0}; the guest's files are lost, and a new session begins")]
    Unusable(&'static str),
    /// They cannot be examined.
    #[error("the records of the process that died cannot be read: {0}; the guest's files are lost, and a new session begins")]
    Unreadable(#[from] Errno),
}

/// The mapping.
#[derive(Debug)]
pub struct Arena {
    /// The memfd of the mapping. `None`, with an anonymous mapping, where the limit of file sizes (RLIMIT_FSIZE) is below the
    /// arena's length; the limit does not apply to anonymous memory.
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
pub unsafe trait Record: Sync {
    /// What tells its table from others in an arena that is attached; 0 for a table that is not looked for.
    const KIND: u32 = 0;
}

// SAFETY: an atomic integer itself.
unsafe impl Record for AtomicU64 {
    const KIND: u32 = 8;
}
// SAFETY: as above.
unsafe impl Record for AtomicU32 {}

impl Arena {
    /// An arena for `records_len` bytes of records. [`ArenaError::Map`] where the kernel refuses the memfd or the mapping: ENOMEM
    /// beyond RLIMIT_AS or vm.overcommit, EMFILE or ENFILE.
    pub fn new(records_len: usize) -> Result<Arc<Arena>, ArenaError> {
        let len = HEADER_LEN + records_len;
        let make = || -> io::Result<Arena> {
            let memfd = rustix::fs::memfd_create(c"gatherfs-records", MemfdFlags::CLOEXEC)?;
            let memfd = match rustix::fs::ftruncate(&memfd, len as u64) {
                Err(rustix::io::Errno::FBIG) => None,
                sized => sized.map(|()| Some(memfd))?,
            };
            Arena::map(memfd, len)
        };
        let arena = make().map_err(|source| ArenaError::Map { len, source })?;
        arena.header().make(len as u64, random_id());
        Ok(Arc::new(arena))
    }

    /// The arena that another process made, which has ended. Whatever is in `memfd`, nothing beyond its end is mapped.
    /// [`ArenaError::Unusable`] where it is no arena of this version, or its header is damaged; [`ArenaError::Map`] as of
    /// [`Arena::new`].
    pub fn attach(memfd: OwnedFd) -> Result<Arc<Arena>, ArenaError> {
        let end = lseek(memfd.as_fd(), SeekFrom::End(0))?;
        let len = usize::try_from(end).ok().filter(|len| *len >= HEADER_LEN).ok_or(ArenaError::Unusable("they are too short"))?;
        let arena = Arena::map(Some(memfd), len).map_err(|source| ArenaError::Map { len, source })?;
        match arena.header().fault(end, HEADER_LEN as u64) {
            Some(fault) => Err(ArenaError::Unusable(fault)),
            None => Ok(Arc::new(arena)),
        }
    }

    /// A mapping of `len` bytes of `memfd`, or of anonymous memory.
    fn map(memfd: Option<OwnedFd>, len: usize) -> io::Result<Arena> {
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
        let header = 0..SESSION_AT;
        Ok(Arena { memfd, base, len, page_len: rustix::param::page_size(), given: Mutex::new(vec![header]) })
    }

    /// The descriptor by which another process can attach the arena; `None` where it has none.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(OwnedFd::as_fd)
    }

    /// Tells this arena from others; random.
    pub fn id(&self) -> u64 {
        self.header().id()
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is longer than the header, which consists of atomics, for which any bytes are valid.
        unsafe { self.base.cast().as_ref() }
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

    /// The table of `count` records, `offset` bytes after the header, of an arena that this process has made.
    ///
    /// # Panics
    /// Where the table is misaligned, not within the arena, or overlaps another table, and where there are too many tables.
    pub fn table<T: Record>(self: &Arc<Self>, offset: usize, count: usize) -> Records<T> {
        let offset = HEADER_LEN + offset;
        let table = self.table_at(offset, count);
        let record_len = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
        let is_listed = self.header().add(TablePlace { kind: T::KIND, record_len, offset: offset as u64, count: count as u64 });
        assert!(is_listed, "an arena has too many tables");
        Records { table, arena: Arc::clone(self) }
    }

    /// The table of an attached arena, once. [`ArenaError::Unusable`] where it has none with such records.
    pub fn attached_table<T: Record>(self: &Arc<Self>) -> Result<Records<T>, ArenaError> {
        let mut places = self.header().tables().filter(|table| table.kind == T::KIND);
        let place = places.next().filter(|_| T::KIND != 0 && places.next().is_none());
        let place = place.ok_or(ArenaError::Unusable("a table is missing, or is there twice"))?;
        let (offset, count) = (usize::try_from(place.offset), usize::try_from(place.count));
        let (Ok(offset), Ok(count)) = (offset, count) else { return Err(ArenaError::Unusable("a table is too large")) };
        if place.record_len as usize != size_of::<T>() || !offset.is_multiple_of(align_of::<T>()) {
            return Err(ArenaError::Unusable("a table has records of another length"));
        }
        Ok(Records { table: self.table_at(offset, count), arena: Arc::clone(self) })
    }

    /// The one record in the header page.
    ///
    /// # Panics
    /// Where it is asked for twice, or too long for the page.
    pub fn session<T: Record>(self: &Arc<Self>) -> Records<T> {
        assert!(size_of::<T>() <= SESSION_LEN);
        Records { table: self.table_at(SESSION_AT, 1), arena: Arc::clone(self) }
    }

    /// The parts of `range` that have memory.
    fn with_memory(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, Errno> {
        let memfd = self.descriptor().ok_or(Errno::EBADF)?;
        let (mut found, mut at) = (Vec::new(), range.start);
        while at < range.end {
            let first = match lseek(memfd, SeekFrom::Data(at)) {
                // No memory up to the end.
                Err(errno) if errno.raw() == libc::ENXIO => break,
                first => first?,
            };
            // The end counts as a hole.
            at = lseek(memfd, SeekFrom::Hole(first))?;
            if first < range.end {
                found.push(first..at.min(range.end));
            }
        }
        Ok(found)
    }
}

/// A random number.
fn random_id() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
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
    /// The arena that has the table.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Records of the table.
    pub fn count(&self) -> usize {
        self.table.count
    }

    /// The slots whose records have memory, ascending: to read another one would allocate memory for it. The errno of lseek(2),
    /// and EBADF for an arena without a descriptor.
    pub fn with_memory(&self) -> Result<Vec<Range<u32>>, Errno> {
        let first = (self.table.first.addr().get() - self.arena.base.addr().get()) as u64;
        let len = size_of::<T>() as u64;
        let found = self.arena.with_memory(first..first + len * self.table.count as u64)?;
        let slot = |offset: u64| u32::try_from(offset / len).unwrap_or(u32::MAX);
        Ok(found.into_iter().map(|bytes| slot(bytes.start - first)..slot(bytes.end - first + len - 1)).collect())
    }

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
