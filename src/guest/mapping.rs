//! A mapping of a guest memory region in addition to that of vhost-user-backend. Pages of it can be replaced under a host call
//! that does not return, without an effect on other users of the region.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use vm_memory::FileOffset;

/// A shared mapping of a part of the guest's memory file.
#[derive(Debug)]
pub(super) struct Mapping {
    host: NonNull<u8>,
    len: usize,
    /// Ranges of it that were replaced.
    cuts: AtomicUsize,
}

/// Ranges that are replaced in all mappings of the process. One count for the process, because the kernel limits the mappings of
/// a process (vm.max_map_count, by default 65,530), whatever object made them. Each replaced range adds two; at the limit, no
/// memory can be allocated.
static CUTS: AtomicUsize = AtomicUsize::new(0);
/// The most replaced ranges: a quarter of the default limit, or eight requests of the largest size of QEMU's queues in which no
/// two pages are adjacent.
const CUTS_MAX: usize = 8192;

// SAFETY: the range stays mapped as long as the object exists. `GuestMap` governs the accesses to it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file`. The errors of mmap(2).
    pub fn new(file: &FileOffset, len: usize) -> io::Result<Mapping> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: the kernel chooses an unused address range for the new mapping.
        let host = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, file.file(), file.start()) }?;
        let host = NonNull::new(host.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        leave_out_of_dumps(host, len);
        Ok(Mapping { host, len, cuts: AtomicUsize::new(0) })
    }

    /// The host address of the first byte.
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// Replaces the whole pages in `ranges`, offsets in the mapping, by private memory: copies with `keeps_content`, else zeroes.
    /// A host call that still uses these addresses then does not reach the guest's memory, except through pages that it has
    /// pinned (direct I/O). Pages that `ranges` cover in part stay shared, because other buffers may be in them.
    ///
    /// An error where a page cannot be replaced, as in a mapping of huge pages; the other ranges are replaced. An error, and
    /// nothing replaced, where the process would have more than 8192 replaced ranges.
    pub fn withdraw(&self, ranges: impl Iterator<Item = Range<usize>>, keeps_content: bool) -> io::Result<()> {
        let ranges = whole_pages(ranges, self.len);
        let room = |cuts: usize| cuts.checked_add(ranges.len()).filter(|sum| *sum <= CUTS_MAX);
        if CUTS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return Err(io::Error::other("too many ranges of guest memory are withdrawn"));
        }
        self.cuts.fetch_add(ranges.len(), Ordering::Relaxed);
        let mut result = Ok(());
        for range in ranges {
            let replaced = if keeps_content { self.replace_by_copy(&range) } else { self.replace_by_zeroes(&range) };
            result = result.and(replaced);
        }
        result
    }

    fn replace_by_zeroes(&self, range: &Range<usize>) -> io::Result<()> {
        // SAFETY: `whole_pages` returns ranges within the mapping.
        let shared = unsafe { self.host.add(range.start) };
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE);
        // SAFETY: the new mapping replaces pages of this mapping, to which no reference exists.
        let mapped = unsafe { rustix::mm::mmap_anonymous(shared.as_ptr().cast(), range.len(), prot, flags) };
        if mapped.is_err() {
            self.keep_taken(range);
        }
        mapped?;
        Ok(())
    }

    fn replace_by_copy(&self, range: &Range<usize>) -> io::Result<()> {
        let len = range.len();
        // SAFETY: `whole_pages` returns ranges within the mapping.
        let shared = unsafe { self.host.add(range.start) };
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses an unused address range for the new mapping.
        let copy = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?;
        // SAFETY: the call above mapped `len` bytes, and nothing else refers to them.
        let bytes = unsafe { std::slice::from_raw_parts_mut(copy.cast::<u8>(), len) };
        // SAFETY: `len` bytes are in the mapping from `shared` on.
        unsafe { super::copy::from_guest(shared, bytes) };
        // SAFETY: the copy replaces pages of this mapping, to which no reference exists.
        let moved = unsafe { rustix::mm::mremap_fixed(copy, len, len, MremapFlags::MAYMOVE, shared.as_ptr().cast()) };
        if moved.is_err() {
            // SAFETY: mapped above, and nothing else refers to it.
            let _ = unsafe { rustix::mm::munmap(copy, len) };
            self.keep_taken(range);
        }
        moved?;
        Ok(())
    }

    /// Reserves the range after a failed replacement. Kernels before 6.12 may have unmapped it, and no other memory may be mapped
    /// where a host call still writes. Memory without access rights is not accounted, so this succeeds without free memory.
    fn keep_taken(&self, range: &Range<usize>) {
        // SAFETY: `whole_pages` returns ranges within the mapping.
        let shared = unsafe { self.host.add(range.start) };
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: as in `replace_by_zeroes`.
        let _ = unsafe { rustix::mm::mmap_anonymous(shared.as_ptr().cast(), range.len(), ProtFlags::empty(), flags) };
    }
}

/// Has a core dump of the process not contain the `len` bytes that are mapped from `host` on: it would have the guest's memory, and the
/// next worker cannot begin before the dump is written. An error is ignored.
pub(super) fn leave_out_of_dumps(host: NonNull<u8>, len: usize) {
    // SAFETY: the advice does not change the contents.
    let _ = unsafe { rustix::mm::madvise(host.as_ptr().cast(), len, Advice::LinuxDontDump) };
}

/// The whole pages in `ranges` below `len`, merged and in ascending order.
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
        // SAFETY: `new` mapped the range, replaced pages are within it, and no address outlives the `GuestMap` that owns this.
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
