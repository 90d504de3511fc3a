//! A mapping of a guest memory region that is ours alone, beside that of vhost-user-backend. Only with one of our own can
//! pages be taken away from a host call that does not end, without anybody else losing sight of them.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use vm_memory::FileOffset;

/// A shared mapping of a part of the guest's memory file.
#[derive(Debug)]
pub(super) struct Mapping {
    host: NonNull<u8>,
    len: usize,
    /// Pieces that were taken out of it.
    cuts: AtomicUsize,
}

/// Pieces that are taken out of all mappings. The kernel has one count of mappings for the process, 65,530 as a rule
/// (vm.max_map_count); beyond it no memory is to be had, and each piece makes two more.
static CUTS: AtomicUsize = AtomicUsize::new(0);
/// A quarter of that for them: eight requests of the largest size that QEMU's queues have, if no two pages of them adjoin.
const CUTS_MAX: usize = 8192;

// SAFETY: an address range that stays mapped as long as the object lives; what is done with it is up to `GuestMap`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file`.
    pub fn new(file: &FileOffset, len: usize) -> io::Result<Mapping> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let host = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, file.file(), file.start()) }?;
        let host = NonNull::new(host.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Mapping { host, len, cuts: AtomicUsize::new(0) })
    }

    /// Where it begins.
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// Takes the whole pages among `ranges`, offsets into the mapping, out of it: a host call that still uses these addresses
    /// goes on with private memory, and the guest's is left alone. With `keeps_content` that is a copy, else it is empty.
    /// Pages that a call has pinned (direct I/O) are not the mapping's any more and stay in use. Bytes of pages that are only
    /// partly named stay shared: others' may lie beside them. An error where the mapping cannot be cut there, as one of huge
    /// pages, and nothing done where it would be cut into too many pieces.
    pub fn withdraw(&self, ranges: impl Iterator<Item = Range<usize>>, keeps_content: bool) -> io::Result<()> {
        let ranges = whole_pages(ranges, self.len);
        let room = |cuts: usize| cuts.checked_add(ranges.len()).filter(|sum| *sum <= CUTS_MAX);
        if CUTS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return Err(io::Error::other("too many single pages are withdrawn"));
        }
        self.cuts.fetch_add(ranges.len(), Ordering::Relaxed);
        let mut result = Ok(());
        for range in ranges {
            let taken = if keeps_content { self.replace_by_copy(&range) } else { self.replace_by_nothing(&range) };
            result = result.and(taken);
        }
        result
    }

    fn replace_by_nothing(&self, range: &Range<usize>) -> io::Result<()> {
        // SAFETY: `whole_pages` gave ranges inside the mapping.
        let shared = unsafe { self.host.add(range.start) };
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE);
        // SAFETY: the new mapping takes the place of pages of ours that hold nothing of Rust's.
        let mapped = unsafe { rustix::mm::mmap_anonymous(shared.as_ptr().cast(), range.len(), prot, flags) };
        if mapped.is_err() {
            self.keep_taken(range);
        }
        mapped?;
        Ok(())
    }

    fn replace_by_copy(&self, range: &Range<usize>) -> io::Result<()> {
        let len = range.len();
        // SAFETY: `whole_pages` gave ranges inside the mapping.
        let shared = unsafe { self.host.add(range.start) };
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let copy = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?;
        // SAFETY: `len` bytes were mapped just now, and nobody else has their address yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(copy.cast::<u8>(), len) };
        // SAFETY: as many bytes lie in the mapping from there on.
        unsafe { super::copy::from_guest(shared, bytes) };
        // SAFETY: the new mapping takes the place of pages of ours that hold nothing of Rust's.
        let moved = unsafe { rustix::mm::mremap_fixed(copy, len, len, MremapFlags::MAYMOVE, shared.as_ptr().cast()) };
        if moved.is_err() {
            // SAFETY: made above, and nobody has its address.
            let _ = unsafe { rustix::mm::munmap(copy, len) };
            self.keep_taken(range);
        }
        moved?;
        Ok(())
    }

    /// After a failed replacement: kernels before 6.12 may have unmapped the range by then, and other memory must not come to
    /// lie where a host call still writes. Memory without access is not accounted, so this does not fail for want of it.
    fn keep_taken(&self, range: &Range<usize>) {
        // SAFETY: `whole_pages` gave ranges inside the mapping.
        let shared = unsafe { self.host.add(range.start) };
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: as in `replace_by_nothing`.
        let _ = unsafe { rustix::mm::mmap_anonymous(shared.as_ptr().cast(), range.len(), ProtFlags::empty(), flags) };
    }
}

/// The whole pages in `ranges` that lie below `len`, in order, each once.
fn whole_pages(ranges: impl Iterator<Item = Range<usize>>, len: usize) -> Vec<Range<usize>> {
    let page = rustix::param::page_size();
    let inner = |range: Range<usize>| range.start.next_multiple_of(page)..range.end.min(len) / page * page;
    let mut pages: Vec<Range<usize>> = ranges.map(inner).filter(|pages| !pages.is_empty()).collect();
    pages.sort_unstable_by_key(|pages| pages.start);
    pages.dedup_by(|next, before| {
        let follows = next.start <= before.end;
        if follows {
            before.end = before.end.max(next.end);
        }
        follows
    });
    pages
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`; `GuestMap` lets nobody keep an address beyond its own life. Pages that were withdrawn lie
        // in the same range.
        let _ = unsafe { rustix::mm::munmap(self.host.as_ptr().cast(), self.len) };
        CUTS.fetch_sub(self.cuts.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_overlapping_and_adjoining_ranges_each_whole_page_is_named_once() {
        let page = rustix::param::page_size();
        let pages = |ranges: &[Range<usize>]| whole_pages(ranges.iter().cloned(), 64 * page);
        let half = page / 2;
        assert_eq!(
            pages(&[5 * page..6 * page, half..3 * page + half, page..2 * page, 3 * page..4 * page]),
            [page..4 * page, 5 * page..6 * page]
        );
        assert!(pages(&[half..page + half, 7..9]).is_empty());
        let at_the_end = pages(&[62 * page..usize::MAX - page, 70 * page..71 * page]);
        assert!(at_the_end.len() == 1 && at_the_end[0] == (62 * page..64 * page));
    }
}
