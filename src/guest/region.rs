//! Ranges of guest memory within one region: what a map translates, and the parts of a page list.

use std::ptr::NonNull;

/// The guest addresses and the host addresses of a region. What it translates may be accessed while the map is held.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    guest: u64,
    len: usize,
    host: NonNull<u8>,
}

impl Bounds {
    /// A region of `len` bytes at guest address `guest`, mapped at `host`.
    pub fn new(guest: u64, len: usize, host: NonNull<u8>) -> Bounds {
        Bounds { guest, len, host }
    }

    /// The first guest address.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Whether `other` has the same guest addresses.
    pub fn is_as(&self, other: &Bounds) -> bool {
        (self.guest, self.len) == (other.guest, other.len)
    }

    /// The offset of `guest` in the region. Not below `len` where the address lies outside.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "offsets and lengths have 64 bits on the hosts of this daemon, as asserted below")]
    fn offset_of(&self, guest: u64) -> usize {
        guest.wrapping_sub(self.guest) as usize
    }

    /// The offset of host address `host` in the region. Not below `len` where the address lies outside.
    pub fn host_offset(&self, host: NonNull<u8>) -> usize {
        host.addr().get().wrapping_sub(self.host.addr().get())
    }

    /// Bytes from `offset` to the end of the region; 0 outside.
    pub fn bytes_from(&self, offset: usize) -> usize {
        self.len.saturating_sub(offset)
    }

    /// Bytes from `guest` to the end of the region; 0 outside.
    pub fn left_at(&self, guest: u64) -> usize {
        self.bytes_from(self.offset_of(guest))
    }

    /// Whether `len` bytes at `guest`, at least one, are all in this region.
    #[inline(always)]
    pub fn holds(&self, guest: u64, len: u64) -> bool {
        let offset = self.offset_of(guest);
        len != 0 && offset < self.len && len <= (self.len - offset) as u64
    }

    /// The host address of `len` bytes at `guest`, at least one, if all of them are in this region.
    #[inline(always)]
    pub fn host_of(&self, guest: u64, len: u64) -> Option<NonNull<u8>> {
        if !self.holds(guest, len) {
            return None;
        }
        // SAFETY: `holds` checked that the offset is below the region's length, which is the length of its mapping.
        Some(unsafe { self.host.add(self.offset_of(guest)) })
    }
}

// `offset_of` would cut off an offset elsewhere. vhost-user-backend needs 64 bits, too.
const _: () = assert!(usize::BITS == u64::BITS);

/// A region's position in its map's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionIndex(pub usize);

/// A part of a page list that is contiguous in host memory, in one region.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Host address of the first byte.
    pub host: NonNull<u8>,
    /// Bytes.
    pub len: usize,
    /// The region.
    pub region: RegionIndex,
}
