//! The flat table of guest memory regions, which translates a guest-physical range to a checked host address.
//!
//! A [`GuestMap`] is one generation of the table and keeps its mappings: what it translated may be accessed as long as the map
//! is held, also after the frontend has replaced the table.

use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::copy;
use super::dirty::DirtyLog;
use super::mapping::{Mapping, leave_out_of_dumps};
use super::region::{Bounds, Part, RegionIndex};

/// The mappings that vhost-user-backend made.
pub type MappedMemory = GuestMemoryMmap<DirtyLog>;

/// A contiguous range of guest memory. Made by a [`GuestMap`], which it borrows.
#[derive(Debug, Clone, Copy)]
pub struct GuestPiece<'m> {
    host: NonNull<u8>,
    len: usize,
    map: PhantomData<&'m GuestMap>,
}

impl GuestPiece<'_> {
    /// Host address, for comparisons.
    pub fn address(&self) -> usize {
        self.host.addr().get()
    }

    pub(super) fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// Bytes, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a piece is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies the piece, or as much of it as `to` has room for. Returns the bytes copied.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        // SAFETY: `len` bytes at `host` are in a region of the map, which keeps it mapped and is borrowed.
        unsafe { copy::from_guest(self.host, &mut to[..len]) };
        len
    }
}

#[derive(Debug)]
struct Region {
    bounds: Bounds,
    dirty: DirtyLog,
    /// The mapping of `bounds`. `None` for memory without a file, which only the mapping of vhost-user-backend has.
    own: Option<Mapping>,
    /// Device and inode number of its file, and where it begins there.
    file: Option<(u64, u64, u64)>,
}

/// One generation of the region table.
#[derive(Debug)]
pub struct GuestMap {
    regions: Vec<Region>,
    logging: Arc<AtomicBool>,
    // Last, so that it is dropped after the regions: a region without a mapping of its own points into these.
    mappings: Option<MappedMemory>,
}

// SAFETY: the pointers lead into mappings that the map keeps. The guest shares the memory, so every access to it is volatile or
// atomic, and never through a reference to plain data.
unsafe impl Send for GuestMap {}
// SAFETY: as above. The table does not change after `new`.
unsafe impl Sync for GuestMap {}

impl GuestMap {
    /// The table of `mappings`. While `logging` is set, writes are marked in the dirty log. Each region with a file is mapped
    /// again, so that its pages can be withdrawn; where that fails, the region is served from `mappings` and cannot be withdrawn.
    pub fn new(mappings: MappedMemory, logging: Arc<AtomicBool>) -> GuestMap {
        let mut regions: Vec<Region> = mappings
            .iter()
            .filter_map(|region| {
                let len = usize::try_from(region.len()).ok()?;
                leave_out_of_dumps(NonNull::new(region.as_ptr())?, len);
                let own = region.file_offset().map(|file| Mapping::new(file, len)).transpose();
                let own = own.inspect_err(|e| tracing::warn!("guest memory cannot be mapped twice: {e}")).unwrap_or_default();
                let host = own.as_ref().map_or(NonNull::new(region.as_ptr())?, Mapping::host);
                let bounds = Bounds::new(region.start_addr().0, len, host);
                let file = region.file_offset().and_then(|file| {
                    let of_file = file.file().metadata().ok()?;
                    Some((of_file.dev(), of_file.ino(), file.start()))
                });
                Some(Region { bounds, dirty: (**region).bitmap().clone(), own, file })
            })
            .collect();
        regions.sort_by_key(|r| r.bounds.guest());
        GuestMap { regions, logging, mappings: Some(mappings) }
    }

    /// A table without memory.
    pub fn empty() -> GuestMap {
        GuestMap { regions: Vec::new(), logging: Arc::default(), mappings: None }
    }

    /// The same table with new mappings, in which what was withdrawn from this one is the guest's memory again.
    pub fn renewed(&self) -> GuestMap {
        self.mappings.clone().map_or_else(GuestMap::empty, |mappings| GuestMap::new(mappings, Arc::clone(&self.logging)))
    }

    /// Whether `new` has region `index` of this table, too: the same memory at the same guest addresses.
    pub(super) fn is_kept(&self, RegionIndex(index): RegionIndex, new: &GuestMap) -> bool {
        let region = &self.regions[index];
        let is_same = |other: &Region| other.bounds.is_as(&region.bounds) && other.file == region.file;
        region.file.is_some() && new.regions.iter().any(is_same)
    }

    /// Replaces the whole pages of `parts` in this map by private memory: copies of them with `keeps_content`, else zeroes. A host
    /// call that still uses this map no longer reaches the guest's memory there. An error where not all of them can be replaced:
    /// Unsupported for a region without a file, and those of [`Mapping::withdraw`].
    pub(super) fn withdraw(&self, parts: &[Part], keeps_content: bool) -> io::Result<()> {
        let mut result = Ok(());
        for (index, Region { bounds, own, .. }) in self.regions.iter().enumerate() {
            let of_region = parts.iter().filter(|part| part.region == RegionIndex(index));
            let mut ranges = of_region
                .map(|part| {
                    let offset = bounds.host_offset(part.host);
                    offset..offset.saturating_add(part.len)
                })
                .peekable();
            if ranges.peek().is_none() {
                continue;
            }
            result = result.and(match own {
                Some(own) => own.withdraw(ranges, keeps_content),
                None => Err(io::ErrorKind::Unsupported.into()),
            });
        }
        result
    }

    /// The region that holds all of the `len` bytes at `guest`, at least one.
    #[inline]
    pub(super) fn region_of(&self, guest: u64, len: u64) -> Option<(RegionIndex, Bounds)> {
        // A guest has a few regions: a linear search is faster than a binary one.
        let index = self.regions.iter().position(|region| region.bounds.holds(guest, len))?;
        Some((RegionIndex(index), self.regions[index].bounds))
    }

    /// The longest contiguous piece at `guest` of at most `len` bytes. `None` where `guest` is not in guest memory, or `len` is 0.
    pub fn piece(&self, guest: u64, len: u64) -> Option<GuestPiece<'_>> {
        let (_, bounds) = self.region_of(guest, 1)?;
        let left = bounds.left_at(guest);
        let len = usize::try_from(len).map_or(left, |len| len.min(left));
        let host = bounds.host_of(guest, len as u64)?;
        Some(GuestPiece { host, len, map: PhantomData })
    }

    /// The regions' addresses. Valid as long as the map.
    pub(super) fn bounds(&self) -> impl Iterator<Item = Bounds> + '_ {
        self.regions.iter().map(|region| region.bounds)
    }

    /// Whether writes are to be marked in the dirty log.
    #[inline]
    pub fn is_logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// Marks `len` bytes at `host`, in region `index`, in the dirty log, if the frontend wants one. Bytes beyond the region are
    /// ignored.
    pub(super) fn mark_dirty(&self, index: RegionIndex, host: NonNull<u8>, len: usize) {
        if !self.is_logging() {
            return;
        }
        let Some(Region { bounds, dirty, .. }) = self.regions.get(index.0) else { return };
        let offset = bounds.host_offset(host);
        let left = bounds.bytes_from(offset);
        if left > 0 {
            dirty.mark_dirty(offset, len.min(left));
        }
    }

    /// The dirty log of a region of this table, if one has it.
    pub fn dirty_log(&self) -> Option<&DirtyLog> {
        self.regions.iter().map(|r| &r.dirty).find(|d| d.log().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::{FileOffset, GuestAddress};

    const PAGE: u64 = 4096;

    #[test]
    fn withdrawn_pages_are_copies_in_the_old_map_and_the_guests_own_in_the_new_one() {
        let file = rustix::fs::memfd_create(c"guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 8 * PAGE).unwrap();
        let file = std::fs::File::from(file);
        let guest = file.try_clone().unwrap();
        let offset = FileOffset::new(file, 0);
        let memory = MappedMemory::from_ranges_with_files(&[(GuestAddress(0), 8 * PAGE as usize, Some(offset))]).unwrap();
        let old = GuestMap::new(memory, Arc::default());
        let read = |map: &GuestMap, at| {
            let mut byte = [0];
            map.piece(at, 1).unwrap().copy_to(&mut byte);
            byte[0]
        };
        let part = |region, bounds: Bounds, at, len| Part { region, host: bounds.host_of(at, 1).unwrap(), len };
        guest.write_all_at(&[7; 8 * PAGE as usize], 0).unwrap();
        let new = old.renewed();
        let (region, bounds) = old.region_of(0, 1).unwrap();
        // From the middle of page 1 to the middle of page 4: two whole pages.
        old.withdraw(&[part(region, bounds, PAGE + PAGE / 2, 3 * PAGE as usize)], true).unwrap();
        guest.write_all_at(&[9; 8 * PAGE as usize], 0).unwrap();
        let seen = |map| [1, 2, 3, 4].map(|page| read(map, page * PAGE + PAGE - 1));
        assert_eq!((seen(&old), seen(&new)), ([9, 7, 7, 9], [9; 4]));
        // A write to a withdrawn page does not reach the guest.
        let (region, bounds) = old.region_of(2 * PAGE, 1).unwrap();
        // SAFETY: one byte at an address that the map has just given.
        unsafe { copy::to_guest(&[1], bounds.host_of(2 * PAGE, 1).unwrap()) };
        assert_eq!((read(&old, 2 * PAGE), read(&new, 2 * PAGE)), (1, 9));
        assert!(old.withdraw(&[part(region, bounds, 0, usize::MAX)], false).is_ok(), "no more than there is");
        assert_eq!((seen(&old), seen(&new)), ([0; 4], [9; 4]));
        drop(old);
        assert_eq!(read(&new, 2 * PAGE), 9, "the old map has no part of it");
    }

    #[test]
    fn a_region_is_kept_where_the_new_table_has_the_same_memory_at_the_same_addresses() {
        let file = |_| std::fs::File::from(rustix::fs::memfd_create(c"guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let [one, other] = [0, 1].map(file);
        one.set_len(4 * PAGE).unwrap();
        other.set_len(4 * PAGE).unwrap();
        let table = |regions: &[(u64, u64, &std::fs::File, u64)]| {
            let region = |(at, pages, file, start): &(u64, u64, &std::fs::File, u64)| {
                let len = usize::try_from(pages * PAGE).unwrap();
                (GuestAddress(*at), len, Some(FileOffset::new(file.try_clone().unwrap(), *start)))
            };
            let regions: Vec<_> = regions.iter().map(region).collect();
            GuestMap::new(MappedMemory::from_ranges_with_files(regions).unwrap(), Arc::default())
        };
        let old = table(&[(0, 2, &one, 0), (4 * PAGE, 2, &one, 2 * PAGE)]);
        let kept = |new: &GuestMap| [0, 1].map(|index| old.is_kept(RegionIndex(index), new));
        assert_eq!(kept(&old.renewed()), [true; 2]);
        assert_eq!(
            kept(&table(&[(4 * PAGE, 2, &one, 2 * PAGE), (8 * PAGE, 2, &other, 0)])),
            [false, true],
            "removed, and another one added"
        );
        assert_eq!(kept(&table(&[(0, 2, &other, 0), (4 * PAGE, 2, &one, 0)])), [false; 2], "another file, another place in the file");
        assert_eq!(kept(&table(&[(0, 1, &one, 0), (5 * PAGE, 2, &one, 2 * PAGE)])), [false; 2], "shorter, elsewhere");
        // Memory without a file is not known again.
        let nameless = GuestMap::new(MappedMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap(), Arc::default());
        assert!(!nameless.is_kept(RegionIndex(0), &nameless));
    }

    #[test]
    fn pieces_end_at_their_region_and_outside_there_is_nothing() {
        let ranges = [(0x1000, 0x1000), (0x2000, 0x1000), (0x1_0000, 0x1000)].map(|(at, len)| (GuestAddress(at), len));
        let map = GuestMap::new(MappedMemory::from_ranges(&ranges).unwrap(), Arc::default());
        assert_eq!(map.piece(0x1f00, 0x200).unwrap().len(), 0x100);
        assert_eq!(map.piece(0x2000, 0x200).unwrap().len(), 0x200);
        assert!(map.piece(0x3000, 1).is_none());
        assert!(map.piece(0xfff, 1).is_none());
        assert!(map.piece(u64::MAX, 8).is_none());
        assert_eq!(map.piece(0x1_0fff, u64::MAX).unwrap().len(), 1);
        assert!(map.piece(0x1000, 0).is_none());
        assert!(map.region_of(0x1f00, 0x200).is_none());
        assert!(map.region_of(0x1f00, 0x100).is_some());
    }
}
