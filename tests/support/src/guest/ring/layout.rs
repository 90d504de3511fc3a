//! How a split virtqueue lies in guest memory, virtio 1.3 section 2.7: segments, descriptors, flags and
//! the places of the three parts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::memory::PAGE_SIZE;

/// Descriptor flag: the chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes this buffer.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

/// Flag of the available ring: the driver wants no calls.
pub(super) const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: the device wants no kicks.
pub(super) const USED_F_NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_SIZE: u64 = 16;

/// One buffer of a request as the driver offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// True when the device writes it, false when the device reads it.
    pub writable: bool,
}

impl Segment {
    /// A buffer the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// A buffer the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }
}

/// A descriptor table entry, virtio 1.3 section 2.7.5.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// The entry that follows, when `DESC_F_NEXT` is set.
    pub next: u16,
}

/// Byte offsets of the available and the used ring behind the table, and the length of all three.
pub(super) fn offsets(size: u64) -> (u64, u64, u64) {
    let avail = size * DESCRIPTOR_SIZE;
    let used = (avail + 6 + 2 * size).next_multiple_of(PAGE_SIZE);
    (avail, used, used + 6 + 8 * size)
}
