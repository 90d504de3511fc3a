//! Page descriptors `<address, length>`: the memory of a descriptor chain as a flat list in the layout of `struct iovec`.
//!
//! Adjacent buffers in one region are merged. A page descriptor never extends over two regions, even where their host mappings
//! are adjacent, so that each is in one dirty log. The storage of a list grows with the largest request and is reused: 16 bytes
//! for each page descriptor.

use std::ptr::NonNull;

use super::memory::GuestMap;
use super::region::{Bounds, Part, RegionIndex};
use crate::sys::vectored::Segments;

/// One contiguous range of guest memory in the layout of `struct iovec` (man readv(2)). Only the walk of a chain and the blocks of
/// a map make one, and only what keeps the memory mapped lends it. It cannot be copied.
#[repr(C)]
#[derive(Debug, PartialEq, Eq)]
pub struct PageDescriptor {
    address: NonNull<u8>,
    len: usize,
}

const _: () = assert!(size_of::<PageDescriptor>() == size_of::<libc::iovec>());

// SAFETY: the address leads to guest memory, which is accessed only by volatile copies and by the kernel.
unsafe impl Send for PageDescriptor {}
// SAFETY: as above.
unsafe impl Sync for PageDescriptor {}

impl PageDescriptor {
    /// The value of an unused slot.
    const UNUSED: PageDescriptor = PageDescriptor { address: NonNull::dangling(), len: 0 };

    /// The `len` bytes at `host`, which the map that lends it keeps mapped.
    pub(super) fn of_block(host: NonNull<u8>, len: usize) -> PageDescriptor {
        PageDescriptor { address: host, len }
    }

    /// Whether all of `other` is in this one.
    pub(super) fn contains(&self, other: &PageDescriptor) -> bool {
        let offset = other.address().wrapping_sub(self.address());
        offset < self.len && other.len <= self.len - offset
    }

    /// Host address, for checks of its alignment.
    pub fn address(&self) -> usize {
        self.address.addr().get()
    }

    /// Bytes, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a page descriptor is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

// SAFETY: page descriptors have the layout of iovecs (asserted above). They are borrowed from buffers that keep the map, and with
// it the mapping. No Rust reference to guest memory exists.
unsafe impl Segments for [PageDescriptor] {
    fn raw(&self) -> (*const libc::iovec, usize) {
        (self.as_ptr().cast(), self.len())
    }
}

/// The totals of a list.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    count: usize,
    bytes: u64,
    /// Host address of the end of the last descriptor; 0 where the next one is in another region.
    end: usize,
}

/// Consecutive descriptors of a list in one region.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: usize,
    region: RegionIndex,
}

/// Page descriptors of one map, in the order of the chain.
#[derive(Debug, Default)]
pub(super) struct PageList {
    /// The storage. The first `totals.count` slots are the list.
    slots: Vec<PageDescriptor>,
    totals: Totals,
    /// In ascending order of `first`. Each ends where the next one begins.
    runs: Vec<Run>,
    window: Option<Window>,
}

/// The part that a list is narrowed to, and the original descriptors at its ends.
#[derive(Debug)]
struct Window {
    first: usize,
    end: usize,
    head: PageDescriptor,
    tail: PageDescriptor,
}

/// A place in a list, from which one part after the other is taken.
#[derive(Debug)]
pub(super) struct Cursor<'l> {
    pages: std::slice::Iter<'l, PageDescriptor>,
    /// What is left of the descriptor that was entered last.
    host: NonNull<u8>,
    left: usize,
}

impl Cursor<'_> {
    /// Takes the next bytes, at most `len`, which lie in one descriptor: their host address and how many they are. `None` at the
    /// end of the list.
    #[inline(always)]
    pub fn part(&mut self, len: usize) -> Option<(NonNull<u8>, usize)> {
        if self.left == 0 {
            let page = self.pages.next()?;
            (self.host, self.left) = (page.address, page.len);
        }
        let (host, len) = (self.host, len.min(self.left));
        // SAFETY: `len` is at most what is left of the descriptor, so the address is within it or at its end.
        self.host = unsafe { host.add(len) };
        self.left -= len;
        Some((host, len))
    }
}

/// The first size of a list's storage.
const SLOTS_MIN: usize = 4;

/// Appends to a list in one region. A value of its own, so that the compiler keeps the fields in registers between two buffers.
#[derive(Debug)]
pub struct Appender<'l> {
    slots: &'l mut [PageDescriptor],
    list: &'l mut Totals,
    totals: Totals,
    bounds: Bounds,
}

impl Appender<'_> {
    /// Appends the `len` bytes at `guest`, merged with the last descriptor where they are adjacent. False, and nothing appended,
    /// where not all of them are in the region, or where the storage is full.
    #[inline(always)]
    pub fn push(&mut self, guest: u64, len: u32) -> bool {
        let Some(address) = self.bounds.host_of(guest, u64::from(len)) else { return false };
        let (begin, len) = (address.addr().get(), len as usize);
        if begin == self.totals.end && self.totals.count > 0 {
            self.slots[self.totals.count - 1].len += len;
        } else if let Some(slot) = self.slots.get_mut(self.totals.count) {
            *slot = PageDescriptor { address, len };
            self.totals.count += 1;
        } else {
            return false;
        }
        self.totals.bytes += len as u64;
        self.totals.end = begin + len;
        true
    }

    /// Writes the new totals to the list.
    #[inline(always)]
    pub fn finish(self) {
        *self.list = self.totals;
    }
}

impl PageList {
    /// Removes the descriptors and keeps the storage.
    pub fn clear(&mut self) {
        self.window = None;
        self.totals = Totals::default();
        self.runs.clear();
    }

    /// Opens the list for buffers in a region, with storage for at least one.
    #[inline]
    pub fn open(&mut self, (region, bounds): (RegionIndex, Bounds)) -> Appender<'_> {
        if self.totals.count == self.slots.len() {
            self.grow();
        }
        if self.runs.last().is_none_or(|run| run.region != region) {
            self.runs.push(Run { first: self.totals.count, region });
            self.totals.end = 0;
        }
        Appender { totals: self.totals, slots: &mut self.slots, list: &mut self.totals, bounds }
    }

    /// Appends `len` bytes at `guest` of `map`, one piece for each region. `map` must be that of all other descriptors. False where
    /// a part of them is not in guest memory; the part before is appended.
    #[cold]
    pub fn append_across(&mut self, map: &GuestMap, guest: u64, len: u32) -> bool {
        let (mut at, mut left) = (guest, len);
        while left > 0 {
            let Some(piece) = map.piece(at, u64::from(left)) else { return false };
            let Ok(piece_len) = u32::try_from(piece.len()) else { return false };
            let Some(place) = map.region_of(at, u64::from(piece_len)) else { return false };
            let mut appender = self.open(place);
            let is_appended = appender.push(at, piece_len);
            appender.finish();
            if !is_appended {
                return false;
            }
            left -= piece_len;
            at = at.wrapping_add(u64::from(piece_len));
        }
        true
    }

    #[cold]
    fn grow(&mut self) {
        self.slots.resize_with((2 * self.slots.len()).max(SLOTS_MIN), || PageDescriptor::UNUSED);
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.totals.bytes
    }

    /// The descriptors.
    pub fn pages(&self) -> &[PageDescriptor] {
        &self.slots[..self.totals.count]
    }

    /// Bytes of the storage of page descriptors.
    pub fn storage_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<PageDescriptor>()
    }

    /// Narrows the list to the `len` bytes from byte `skip` on, or fewer where the list ends before. Both ends are shortened in
    /// place. Until [`PageList::widen`], only [`PageList::narrowed`] may be called.
    pub fn narrow(&mut self, skip: u64, len: u64) {
        self.widen();
        let count = self.totals.count;
        let mut first = 0;
        let (Ok(mut offset), len) = (usize::try_from(skip), usize::try_from(len).unwrap_or(usize::MAX)) else { return };
        while first < count && offset >= self.slots[first].len {
            offset -= self.slots[first].len;
            first += 1;
        }
        if len == 0 || first == count {
            return;
        }
        let mut end = first;
        let mut surplus = 0;
        let mut wanted = len.saturating_add(offset);
        while end < count && wanted > 0 {
            let held = self.slots[end].len;
            surplus = held.saturating_sub(wanted);
            wanted = wanted.saturating_sub(held);
            end += 1;
        }
        let saved = |page: &PageDescriptor| PageDescriptor { ..*page };
        let (head, tail) = (saved(&self.slots[first]), saved(&self.slots[end - 1]));
        self.slots[end - 1].len -= surplus;
        // SAFETY: `offset` is below the descriptor's length, so the address is within it.
        self.slots[first].address = unsafe { head.address.add(offset) };
        self.slots[first].len -= offset;
        self.window = Some(Window { first, end, head, tail });
    }

    /// The descriptors of the narrowed list; none where the list is not narrowed, or narrowed to no bytes.
    pub fn narrowed(&self) -> &[PageDescriptor] {
        self.window.as_ref().map_or(&[], |window| &self.slots[window.first..window.end])
    }

    /// Restores the whole list.
    pub fn widen(&mut self) {
        if let Some(Window { first, end, head, tail }) = self.window.take() {
            self.slots[end - 1] = tail;
            self.slots[first] = head;
        }
    }

    /// A cursor at byte `skip`.
    pub fn cursor(&self, skip: u64) -> Cursor<'_> {
        debug_assert!(self.window.is_none(), "the list is narrowed");
        let mut cursor = Cursor { pages: self.pages().iter(), host: NonNull::dangling(), left: 0 };
        let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
        while skip > 0 {
            let Some((_, len)) = cursor.part(skip) else { break };
            skip -= len;
        }
        cursor
    }

    /// Calls `visit` with each contiguous part of the at most `len` bytes from byte `skip` on.
    pub fn each(&self, skip: u64, len: usize, mut visit: impl FnMut(Part)) {
        debug_assert!(self.window.is_none(), "the list is narrowed");
        let Ok(mut offset) = usize::try_from(skip) else { return };
        let mut left = len;
        let mut runs = self.runs.iter().peekable();
        let mut region = None;
        for (number, page) in self.pages().iter().enumerate() {
            while let Some(run) = runs.next_if(|run| run.first <= number) {
                region = Some(run.region);
            }
            if left == 0 {
                return;
            }
            if offset >= page.len {
                offset -= page.len;
                continue;
            }
            let part_len = left.min(page.len - offset);
            // SAFETY: `offset` is below the descriptor's length, so the address is within it.
            let host = unsafe { page.address.add(offset) };
            // The first run begins with the first descriptor.
            let Some(region) = region else { return };
            visit(Part { host, len: part_len, region });
            left -= part_len;
            offset = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::MappedMemory;
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    /// A map of adjoining regions of these lengths, from address 0 on.
    fn map(lens: &[usize]) -> (MappedMemory, GuestMap) {
        let starts = lens.iter().scan(0, |at, len| Some(GuestAddress(std::mem::replace(at, *at + *len as u64))));
        let ranges: Vec<(GuestAddress, usize)> = starts.zip(lens.iter().copied()).collect();
        let memory = MappedMemory::from_ranges(&ranges).unwrap();
        (memory.clone(), GuestMap::new(memory, Arc::default()))
    }

    fn append(list: &mut PageList, map: &GuestMap, guest: u64, len: u32) {
        assert!(list.append_across(map, guest, len));
    }

    fn lens(list: &PageList) -> Vec<usize> {
        list.pages().iter().map(PageDescriptor::len).collect()
    }

    fn bytes_of(parts: &[Part]) -> Vec<u8> {
        let read = |part: &Part| {
            let mut bytes = vec![0; part.len];
            // SAFETY: the tests' maps outlive their lists.
            unsafe { super::super::copy::from_guest(part.host, &mut bytes) };
            bytes
        };
        parts.iter().flat_map(read).collect()
    }

    fn parts(list: &PageList, skip: u64, len: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        list.each(skip, len, |part| parts.push(part));
        parts
    }

    #[test]
    fn neighbours_merge_and_others_do_not() {
        let (_, map) = map(&[0x1000]);
        let mut list = PageList::default();
        for guest in [0, 8, 17] {
            append(&mut list, &map, guest, 8);
        }
        assert_eq!((lens(&list), list.bytes()), (vec![16, 8], 24));
    }

    #[test]
    fn nothing_merges_across_two_regions_whatever_their_host_addresses() {
        // One mapping that is two regions for the guest: their host addresses touch.
        let whole = vm_memory::MmapRegion::<super::super::DirtyLog>::new(0x2000).unwrap();
        let part = |offset: usize, guest: u64| {
            // SAFETY: the part lies in the mapping, which outlives the map below.
            let address = unsafe { whole.as_ptr().add(offset) };
            // SAFETY: as above.
            let region = unsafe { vm_memory::MmapRegion::build_raw(address, 0x1000, whole.prot(), whole.flags()) };
            vm_memory::GuestRegionMmap::new(region.unwrap(), GuestAddress(guest)).unwrap()
        };
        let memory = MappedMemory::from_regions(vec![part(0, 0), part(0x1000, 0x1000)]).unwrap();
        let map = GuestMap::new(memory, Arc::default());
        let mut list = PageList::default();
        append(&mut list, &map, 0xf00, 0x100);
        append(&mut list, &map, 0x1000, 0x100);
        assert_eq!(list.pages()[0].address() + 0x100, list.pages()[1].address(), "they touch");
        append(&mut list, &map, 0x1f00, 0x100);
        append(&mut list, &map, 0xf80, 0x100);
        assert_eq!(lens(&list), [0x100, 0x100, 0x100, 0x80, 0x80], "a buffer that crosses the border is split");
        let region_at = |guest| map.region_of(guest, 1).unwrap().0;
        let (first, second) = (region_at(0), region_at(0x1000));
        let regions: Vec<RegionIndex> = parts(&list, 0, usize::MAX).iter().map(|part| part.region).collect();
        assert_eq!(regions, [first, second, second, first, second]);
    }

    proptest! {
        #[test]
        fn a_narrowed_list_shows_exactly_its_bytes_and_is_restored(
            lens in proptest::collection::vec(1u32..9, 1..9), skip in 0u64..40, len in 0u64..60,
        ) {
            let (memory, map) = map(&[0x40, 0x40]);
            memory.write_slice(&(0..0x80).collect::<Vec<u8>>(), GuestAddress(0)).unwrap();
            let mut list = PageList::default();
            let mut at = 0x20;
            for len in lens {
                append(&mut list, &map, at, len);
                at += u64::from(len) + 1; // a gap, so that neighbours do not merge
            }
            let before: Vec<_> = list.pages().iter().map(|p| (p.address(), p.len())).collect();
            let flat = bytes_of(&parts(&list, 0, usize::MAX));
            let want: Vec<u8> = flat.iter().copied().skip(skip as usize).take(len as usize).collect();
            let mut got = Vec::new();
            list.narrow(skip, len);
            for page in list.narrowed() {
                assert!(page.len > 0);
                got.extend(bytes_of(&[Part { host: page.address, len: page.len, region: map.region_of(0, 1).unwrap().0 }]));
            }
            list.widen();
            prop_assert_eq!(&got, &want);
            let after: Vec<_> = list.pages().iter().map(|p| (p.address(), p.len())).collect();
            prop_assert_eq!(after, before);
            prop_assert_eq!(bytes_of(&parts(&list, skip, len as usize)), want);
        }
    }
}
