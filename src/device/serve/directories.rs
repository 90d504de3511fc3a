//! READDIR and READDIRPLUS: how much of a directory is put together for one reply.

use crate::device::in_flight::InFlight;
use crate::device::wire::DirentListing;
use crate::types::{Errno, FileHandle};

/// The longest part of a listing: it is put together in memory, and the guest asks for the rest.
const LISTING_LEN_MAX: usize = 1 << 20;
/// Bytes of a typical entry: on the host (name of 16 bytes), and as READDIRPLUS packs it.
const HOST_ENTRY_LEN: usize = 40;
const PLUS_ENTRY_LEN: usize = 168;

/// Bytes of a listing for a guest that asks for `size`.
fn listing_len(size: u32, request: &InFlight) -> usize {
    (size as usize).min(LISTING_LEN_MAX).min(request.room())
}

/// READDIR into `listing`; errors as in [`crate::host::Share::readdir`].
pub(super) fn readdir(request: &InFlight, handle: FileHandle, offset: u64, size: u32, listing: &mut Vec<u8>) -> Result<(), Errno> {
    listing.clear();
    let len_max = listing_len(size, request);
    let mut listing = DirentListing { reply: listing, len_max, plus: false };
    request.share().readdir(request.header().node, handle, offset, len_max, &mut listing)
}

/// READDIRPLUS into `listing`; errors as in [`crate::host::Share::readdirplus`].
pub(super) fn readdirplus(request: &InFlight, handle: FileHandle, offset: u64, size: u32, listing: &mut Vec<u8>) -> Result<(), Errno> {
    listing.clear();
    let len_max = listing_len(size, request);
    let mut listing = DirentListing { reply: listing, len_max, plus: true };
    request.share().readdirplus(request.header().node, handle, offset, len_max / PLUS_ENTRY_LEN * HOST_ENTRY_LEN, &mut listing)
}
