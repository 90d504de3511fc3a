//! READDIR and READDIRPLUS: how much of a directory is put together for one reply.

use crate::device::in_flight::InFlight;
use crate::types::{Errno, FileHandle};

/// The longest part of a listing: it is put together in memory, and the guest asks for the rest.
const LISTING_LEN_MAX: usize = 1 << 20;

/// Bytes of a listing for a guest that asks for `size`.
fn listing_len(size: u32, request: &InFlight) -> usize {
    (size as usize).min(LISTING_LEN_MAX).min(request.room())
}

/// READDIR into `listing`; errors as in [`crate::host::Share::readdir`].
pub(super) fn readdir(request: &InFlight, handle: FileHandle, offset: u64, size: u32, listing: &mut Vec<u8>) -> Result<(), Errno> {
    listing.clear();
    request.share().readdir(request.header().node, handle, offset, listing_len(size, request), listing)
}

/// READDIRPLUS into `listing`; errors as in [`crate::host::Share::readdirplus`].
pub(super) fn readdirplus(request: &InFlight, handle: FileHandle, offset: u64, size: u32, listing: &mut Vec<u8>) -> Result<(), Errno> {
    listing.clear();
    request.share().readdirplus(request.header().node, handle, offset, listing_len(size, request), listing)
}
