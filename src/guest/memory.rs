//! The flat table of guest memory regions: a guest-physical range to a host address, checked.
//!
//! A [`GuestMap`] is one generation of the table and keeps its mappings alive: whoever holds an `Arc`
//! of it may touch what it translated, also after the frontend replaced the table.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::dirty::DirtyLog;

/// The mappings behind a map, as vhost-user-backend made them.
pub type MappedMemory = GuestMemoryMmap<DirtyLog>;

/// A contiguous stretch of host memory that belongs to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPiece {
    /// Where it begins.
    pub host: NonNull<u8>,
    /// Its length in bytes.
    pub len: usize,
}

/// A region of the table, by value: good for as long as the map it came from.
#[derive(Debug, Clone, Copy)]
pub struct GuestRegion {
    guest: u64,
    len: u64,
    host: NonNull<u8>,
}

impl GuestRegion {
    /// Whether `whole` would find these bytes.
    #[inline(always)]
    pub fn holds(&self, guest: u64, len: u32) -> bool {
        let offset = guest.wrapping_sub(self.guest);
        len != 0 && offset < self.len && u64::from(len) <= self.len - offset
    }

    /// `len` bytes at `guest`, at least one, if all of them lie in this region.
    #[inline(always)]
    pub fn whole(&self, guest: u64, len: u32) -> Option<GuestPiece> {
        if !self.holds(guest, len) {
            return None;
        }
        let offset = guest - self.guest;
        // SAFETY: `holds` saw that `offset` is below the region's length, which is the length of its mapping.
        let host = unsafe { self.host.add(offset as usize) };
        Some(GuestPiece { host, len: len as usize })
    }
}

#[derive(Debug)]
struct Region {
    guest: u64,
    len: u64,
    host: NonNull<u8>,
    dirty: DirtyLog,
}

/// One generation of the region table.
#[derive(Debug)]
pub struct GuestMap {
    regions: Vec<Region>,
    logging: Arc<AtomicBool>,
    // Dropped last: the regions above point into these mappings.
    _mappings: Option<MappedMemory>,
}

// SAFETY: the pointers lead into mappings that live as long as the map; the memory is shared with the
// guest anyway, so every access to it is a raw copy or an atomic and never a reference.
unsafe impl Send for GuestMap {}
// SAFETY: as above; the table itself never changes after `new`.
unsafe impl Sync for GuestMap {}

impl GuestMap {
    /// The table of `mappings`. While `logging` is set, writes are marked in the dirty log.
    pub fn new(mappings: MappedMemory, logging: Arc<AtomicBool>) -> GuestMap {
        let mut regions: Vec<Region> = mappings
            .iter()
            .filter_map(|region| {
                let host = NonNull::new(region.as_ptr())?;
                Some(Region { guest: region.start_addr().0, len: region.len(), host, dirty: (**region).bitmap().clone() })
            })
            .collect();
        regions.sort_by_key(|r| r.guest);
        GuestMap { regions, logging, _mappings: Some(mappings) }
    }

    /// A table without memory: every address is outside it.
    pub fn empty() -> GuestMap {
        GuestMap { regions: Vec::new(), logging: Arc::default(), _mappings: None }
    }

    /// Index of the region that holds `guest`.
    fn find(&self, guest: u64) -> Option<usize> {
        // A guest has a handful of regions: a scan beats a binary search.
        self.regions.iter().position(|r| guest.wrapping_sub(r.guest) < r.len)
    }

    /// The longest contiguous piece that begins at `guest` and is at most `len` bytes.
    /// `None` where `guest` lies outside memory.
    #[inline]
    pub fn piece(&self, guest: u64, len: u64) -> Option<GuestPiece> {
        let region = &self.regions[self.find(guest)?];
        let offset = guest - region.guest;
        let len = len.min(region.len - offset);
        // SAFETY: `offset` is below the region's length, which is the length of its mapping.
        let host = unsafe { region.host.add(offset as usize) };
        Some(GuestPiece { host, len: len as usize })
    }

    /// The region that holds `guest`, to be kept for the next buffers: they mostly lie in the same one.
    #[inline]
    pub fn region(&self, guest: u64) -> Option<GuestRegion> {
        let region = &self.regions[self.find(guest)?];
        Some(GuestRegion { guest: region.guest, len: region.len, host: region.host })
    }

    /// All of `len` bytes at `guest`, where one region holds them.
    pub fn whole(&self, guest: u64, len: u64) -> Option<NonNull<u8>> {
        let piece = self.piece(guest, len)?;
        (piece.len as u64 == len).then_some(piece.host)
    }

    /// Whether writes are to be marked in the dirty log.
    #[inline]
    pub fn is_logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// Marks `len` bytes at `host` as written by us, if the frontend logs.
    pub fn mark_dirty(&self, host: NonNull<u8>, len: usize) {
        if !self.is_logging() {
            return;
        }
        let address = host.as_ptr() as usize;
        for region in &self.regions {
            let offset = address.wrapping_sub(region.host.as_ptr() as usize);
            if (offset as u64) < region.len {
                region.dirty.mark_dirty(offset, len);
            }
        }
    }

    /// The log that any region of this table writes to.
    pub fn dirty_log(&self) -> Option<&DirtyLog> {
        self.regions.iter().map(|r| &r.dirty).find(|d| d.log().is_some())
    }
}

/// The three parts of a split virtqueue at their host addresses (virtio 1.3 section 2.7).
#[derive(Debug, Clone, Copy)]
pub struct RingView {
    /// Descriptor table: 16 bytes an entry, 16-byte aligned.
    pub descriptors: NonNull<u8>,
    /// Avail ring: 6 + 2 * size bytes, 2-byte aligned.
    pub avail: NonNull<u8>,
    /// Used ring: 6 + 8 * size bytes, 4-byte aligned.
    pub used: NonNull<u8>,
    /// Entries: a power of two, 1 to 32768.
    pub size: u16,
}

// SAFETY: plain addresses; who uses them holds the map that they came from.
unsafe impl Send for RingView {}

impl RingView {
    /// Translates a ring's guest addresses. `None` where a part lies outside one region or is misaligned.
    pub fn new(map: &GuestMap, size: u16, descriptors: u64, avail: u64, used: u64) -> Option<RingView> {
        if !size.is_power_of_two() {
            return None;
        }
        let n = u64::from(size);
        let view = RingView {
            descriptors: map.whole(descriptors, 16 * n)?,
            avail: map.whole(avail, 6 + 2 * n)?,
            used: map.whole(used, 6 + 8 * n)?,
            size,
        };
        let aligned = |p: NonNull<u8>, to: usize| (p.as_ptr() as usize).is_multiple_of(to);
        (aligned(view.descriptors, 16) && aligned(view.avail, 2) && aligned(view.used, 4)).then_some(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    fn map(ranges: &[(u64, usize)]) -> GuestMap {
        let ranges: Vec<_> = ranges.iter().map(|&(at, len)| (GuestAddress(at), len)).collect();
        GuestMap::new(MappedMemory::from_ranges(&ranges).unwrap(), Arc::default())
    }

    #[test]
    fn pieces_end_at_their_region_and_outside_there_is_nothing() {
        let map = map(&[(0x1000, 0x1000), (0x2000, 0x1000), (0x1_0000, 0x1000)]);
        assert_eq!(map.piece(0x1f00, 0x200).unwrap().len, 0x100);
        assert_eq!(map.piece(0x2000, 0x200).unwrap().len, 0x200);
        assert!(map.piece(0x3000, 1).is_none());
        assert!(map.piece(0xfff, 1).is_none());
        assert!(map.piece(u64::MAX, 8).is_none());
        assert_eq!(map.piece(0x1_0fff, u64::MAX).unwrap().len, 1);
        assert!(map.whole(0x1f00, 0x200).is_none());
        assert!(map.whole(0x1f00, 0x100).is_some());
    }

    #[test]
    fn a_ring_must_lie_in_one_region_aligned_and_of_a_power_of_two() {
        let map = map(&[(0, 0x1_0000)]);
        assert!(RingView::new(&map, 128, 0, 0x1000, 0x2000).is_some());
        assert!(RingView::new(&map, 100, 0, 0x1000, 0x2000).is_none());
        assert!(RingView::new(&map, 128, 8, 0x1000, 0x2000).is_none());
        assert!(RingView::new(&map, 128, 0, 0x1001, 0x2000).is_none());
        assert!(RingView::new(&map, 128, 0, 0x1000, 0x2002).is_none());
        assert!(RingView::new(&map, 32768, 0, 0x1000, 0x2000).is_none());
    }
}
