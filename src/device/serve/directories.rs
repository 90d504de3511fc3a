//! READDIR and READDIRPLUS: the entries are written to the reply's pages one by one, behind the place of the header. As with a
//! READ, a request that is withdrawn meanwhile writes to pages that are no longer the guest's.

use zerocopy::{FromBytes, IntoBytes};

use crate::device::context::context;
use crate::device::in_flight::{Answered, InFlight};
use crate::device::wire::entry_out;
use crate::fuse::abi::EntryOut;
use crate::fuse::dirent::{Entry, dirent_len, direntplus_len, first_direntplus, put_dirent, put_direntplus};
use crate::guest::Writer;
use crate::host::{DirectoryEntry, Left, Listing, NodeEntry, Pending, Share};
use crate::state::RequestRecord;
use crate::sys::failpoint::crash_point;
use crate::types::{FileHandle, NodeId};

/// The longest part of a listing: the guest asks for the rest, and other requests of the directory wait no longer than for this.
const LISTING_LEN_MAX: usize = 1 << 20;
/// Bytes of a typical entry: on the host (name of 16 bytes), and as READDIRPLUS packs it.
const HOST_ENTRY_LEN: usize = 40;
const PLUS_ENTRY_LEN: usize = 168;

/// READDIR; errors as in [`crate::host::Share::readdir`].
pub(in crate::device) fn readdir(mut request: InFlight, handle: FileHandle, offset: u64, size: u32) -> Answered {
    let (share, node) = (request.shared(), request.header().node);
    let len_max = listing_len(size, &request);
    let (writer, pending, _) = request.reply_writer();
    let mut reply = Reply { writer, pending, len: 0, len_max };
    let listed = share.readdir(node, handle, offset, len_max, &mut Plain(&mut reply));
    let len = reply.len;
    match listed {
        Ok(()) => request.reply_filled(len),
        Err(errno) => request.error(errno),
    }
}

/// READDIRPLUS; errors as in [`crate::host::Share::readdirplus`]. `nodes` is room for the ids of the nodes that are looked up:
/// where the reply does not reach the guest, the lookups are taken back.
///
/// The request's record has the length of the reply so far: where the process dies, the entries in it name the nodes that were
/// looked up. A guest that changes them meanwhile takes lookups of its own nodes back, as by FORGET.
pub(in crate::device) fn readdirplus(mut request: InFlight, handle: FileHandle, offset: u64, size: u32, nodes: &mut Vec<u8>) -> Answered {
    let (share, node) = (request.shared(), request.header().node);
    let len_max = listing_len(size, &request);
    if let Left::Begun(len) = context(&request).left() {
        let len = usize::try_from(len).unwrap_or_default().min(len_max);
        nodes.resize(len, 0);
        request.copy_reply(nodes);
        request.record().begin(0);
        forget_entries(&share, nodes);
    }
    nodes.clear();
    let (writer, pending, record) = request.reply_writer();
    let mut reply = Reply { writer, pending, len: 0, len_max };
    let read_len = len_max / PLUS_ENTRY_LEN * HOST_ENTRY_LEN;
    let listed = share.readdirplus(node, handle, offset, read_len, &mut Plus { reply: &mut reply, nodes, record }, record);
    let len = reply.len;
    if let Err(errno) = listed {
        request.record().begin(0);
        forget_listed(&share, nodes);
        return request.error(errno);
    }
    let answered = request.reply_filled(len);
    if !answered.is_given {
        forget_listed(&share, nodes);
    }
    answered
}

/// Bytes of a listing for a guest that asks for `size`.
fn listing_len(size: u32, request: &InFlight) -> usize {
    (size as usize).min(LISTING_LEN_MAX).min(request.room())
}

/// The part of the reply that is written.
struct Reply<'r> {
    writer: Writer<'r>,
    pending: &'r dyn Pending,
    len: usize,
    len_max: usize,
}

impl Reply<'_> {
    /// Whether an entry of `len` bytes is wanted and has room.
    #[inline(always)]
    fn has_room(&self, len: usize) -> bool {
        self.len + len <= self.len_max && self.pending.is_wanted()
    }

    #[inline(always)]
    fn put(&mut self, piece: &[u8]) {
        self.len += piece.len();
        let fits = self.writer.write(piece);
        debug_assert!(fits, "the room was checked");
    }
}

#[inline(always)]
fn entry<'e>(of: &DirectoryEntry<'e>) -> Entry<'e> {
    Entry { ino: of.ino, next_offset: of.next_offset, kind: of.kind, name: of.name }
}

/// A reply of READDIR.
struct Plain<'l, 'r>(&'l mut Reply<'r>);

impl Listing for Plain<'_, '_> {
    #[inline(always)]
    fn has_room(&self, name_len: usize) -> bool {
        self.0.has_room(dirent_len(name_len))
    }

    #[inline(always)]
    fn push(&mut self, of: &DirectoryEntry<'_>, _: Option<&NodeEntry>) {
        put_dirent(&entry(of), |piece| self.0.put(piece));
    }

    fn is_empty(&self) -> bool {
        self.0.len == 0
    }
}

/// A reply of READDIRPLUS.
struct Plus<'l, 'r> {
    reply: &'l mut Reply<'r>,
    nodes: &'l mut Vec<u8>,
    record: &'r RequestRecord,
}

impl Listing for Plus<'_, '_> {
    #[inline(always)]
    fn has_room(&self, name_len: usize) -> bool {
        self.reply.has_room(direntplus_len(name_len))
    }

    #[inline(always)]
    fn push(&mut self, of: &DirectoryEntry<'_>, looked_up: Option<&NodeEntry>) {
        // Node 0 where the entry was not looked up.
        let looked_up = looked_up.map_or_else(EntryOut::default, entry_out);
        self.nodes.extend_from_slice(looked_up.nodeid.as_bytes());
        put_direntplus(&entry(of), &looked_up, |piece| self.reply.put(piece));
        self.record.begin(i64::try_from(self.reply.len).unwrap_or(i64::MAX));
        crash_point!("listed");
    }

    fn is_empty(&self) -> bool {
        self.reply.len == 0
    }
}

/// Takes back the lookups of the entries of a READDIRPLUS in `reply`.
fn forget_entries(share: &Share, mut reply: &[u8]) {
    while let Some((node, rest)) = first_direntplus(reply) {
        if node != 0 {
            share.forget(NodeId(node), 1);
        }
        reply = rest;
    }
}

/// Takes back the lookups of `nodes`, which did not reach the guest.
fn forget_listed(share: &Share, mut nodes: &[u8]) {
    while let Ok((node, rest)) = u64::read_from_prefix(nodes) {
        if node != 0 {
            share.forget(NodeId(node), 1);
        }
        nodes = rest;
    }
}
