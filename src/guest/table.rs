//! Descriptor tables: that of a ring, or an indirect one (virtio 1.3 section 2.7.5.3). A table borrows its map, and an indirect
//! table is looked up in the map of the table that refers to it.

use std::ptr::NonNull;

use super::memory::GuestMap;

/// Bytes of an entry.
const ENTRY_LEN: usize = 16;

/// A descriptor table in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorTable<'m> {
    map: &'m GuestMap,
    /// Host address of the `count` entries; `None` where they are not all in one region.
    host: Option<NonNull<u8>>,
    count: usize,
    /// The guest address of an indirect table.
    indirect: Option<u64>,
}

impl<'m> DescriptorTable<'m> {
    /// The table of a ring.
    ///
    /// # Safety
    /// `count` entries at `host` must be in one region of `map`.
    #[inline]
    pub(super) unsafe fn of_ring(map: &'m GuestMap, host: NonNull<u8>, count: usize) -> DescriptorTable<'m> {
        DescriptorTable { map, host: Some(host), count, indirect: None }
    }

    /// The indirect table of `count` entries at guest address `address`. `None` where it is empty, or where its first byte is not
    /// in guest memory.
    pub fn indirect(&self, address: u64, count: usize) -> Option<DescriptorTable<'m>> {
        let len = count.checked_mul(ENTRY_LEN)?;
        let piece = self.map.piece(address, len as u64)?;
        let host = (piece.len() == len).then(|| piece.host());
        Some(DescriptorTable { map: self.map, host, count, indirect: Some(address) })
    }

    /// Entries.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether it is an indirect table.
    pub fn is_indirect(&self) -> bool {
        self.indirect.is_some()
    }

    /// The two words of entry `index`, read once. `None` for an index beyond the table, or where the entry is not in guest memory.
    pub fn read(&self, index: usize) -> Option<[u64; 2]> {
        self.read_whole(index).or_else(|| self.read_across(index))
    }

    /// As `read`, for a table in one region; `None` for another table.
    #[inline(always)]
    pub fn read_whole(&self, index: usize) -> Option<[u64; 2]> {
        let host = self.host?;
        if index >= self.count {
            return None;
        }
        // SAFETY: `index` is below `count`, and `of_ring` and `indirect` set `host` only where `count` entries are in one region
        // of the map, which keeps it mapped.
        let at = unsafe { host.add(index * ENTRY_LEN) };
        // SAFETY: as above. Unaligned, because an indirect table may begin anywhere; volatile, because the guest may write to it.
        let first = unsafe { at.cast::<Unaligned>().read_volatile() }.0;
        // SAFETY: as above. An entry has two words.
        let rest = unsafe { at.add(8) };
        // SAFETY: as above.
        let second = unsafe { rest.cast::<Unaligned>().read_volatile() }.0;
        Some([first, second])
    }

    /// As `read`, for a table in more than one region.
    #[cold]
    fn read_across(&self, index: usize) -> Option<[u64; 2]> {
        let start = self.indirect.filter(|_| index < self.count)?;
        let mut raw = [0u8; ENTRY_LEN];
        let mut done = 0;
        while done < ENTRY_LEN {
            let at = start.checked_add((index * ENTRY_LEN + done) as u64)?;
            done += self.map.piece(at, (ENTRY_LEN - done) as u64)?.copy_to(&mut raw[done..]);
        }
        let (words, _) = raw.as_chunks::<8>();
        Some([u64::from_ne_bytes(*words.first()?), u64::from_ne_bytes(*words.get(1)?)])
    }
}

/// A word at any alignment.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned(u64);
