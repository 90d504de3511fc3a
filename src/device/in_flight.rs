//! A request in flight: the object that owns what a request needs from the pop of its chain until it is answered. It can be
//! served by the thread that popped it, handed to an I/O engine, or suspended, and is finished on any thread. Dropped without
//! an answer it answers EIO, so that a forgotten request cannot hang the guest.
//!
//! Its storage is used again for the next request. Does not know the queue's state, only the trait [`Origin`].

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::claim::Claim;
use super::recorded::Popped;
use crate::fuse::RequestHeader;
use crate::fuse::abi::OUT_HEADER_LEN;
use crate::guest::{PageDescriptor, Writer};
use crate::host::{FileInUse, Pending, Share};
use crate::io::TransferOwner;
use crate::state::{RequestRecord, Unfinished};
use crate::types::{Errno, QueueIndex, RequestId, Unique};
use crate::virtqueue::{Chain, ChainFault};

/// The number of a [`Storage`]'s place in its queue's table of requests in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotIndex(pub usize);

/// The number of a suspended request in its queue's table; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SuspendedKey(pub u64);

/// The queue that a request came from. No method may be called by a thread that holds the queue's lock.
pub(super) trait Origin: Debug + Send + Sync {
    /// Puts a chain that no serving thread answers any more into the used ring.
    fn complete(&self, slot: SlotIndex, head: u16, used_len: u32);

    /// Notes that the request `id` waits for something that is no host call, and that a stop of the queue does not wait for it.
    /// EIO where `claim` was withdrawn; ENOLCK where too many wait: `ring_descriptors` is what its chain takes of the ring.
    fn suspend(&self, slot: SlotIndex, claim: &Claim, id: RequestId, ring_descriptors: u16) -> Result<SuspendedKey, Errno>;

    /// Answers a suspended request: at once where the queue runs, else when it runs again.
    fn answer_suspended(&self, key: SuspendedKey, result: Result<(), Errno>);

    /// The storage at `slot` is gone.
    fn leave(&self, slot: SlotIndex);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Without a request.
    Vacant,
    /// With a request that is not answered.
    InFlight,
    /// With one whose answer lies in guest memory, or that somebody else answers.
    Answered,
}

/// What requests are stored in, one after the other. Its stage is changed by the types around it only.
#[derive(Debug)]
struct Storage {
    origin: Arc<dyn Origin>,
    queue: QueueIndex,
    slot: SlotIndex,
    claim: Arc<Claim>,
    chain: Chain,
    share: Arc<Share>,
    share_generation: u64,
    header: RequestHeader,
    file: Option<FileInUse>,
    extent: Extent,
    used_len: u32,
    is_alone: bool,
    record: RequestRecord,
    earlier: Option<Box<Unfinished>>,
    stage: Stage,
}

/// Which of a request's bytes a transfer moves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extent {
    /// Of those that the device may write, otherwise of those that it may read.
    pub writable: bool,
    /// Bytes before the first.
    pub skip: usize,
    /// Bytes.
    pub len: usize,
    /// Part of it is not enough.
    pub must_be_whole: bool,
}

/// Storage without a request.
#[derive(Debug)]
pub(super) struct Vacant(Box<Storage>);

/// A request that was popped and is not answered. Consumed by its answer (`reply.rs`).
#[derive(Debug)]
pub struct InFlight(Box<Storage>);

/// A request whose reply is in guest memory. Its used element is still to be pushed.
#[derive(Debug)]
#[must_use]
pub(super) struct Answered {
    storage: Box<Storage>,
    /// The caller's reply was written; false if the request was withdrawn, or got an error instead.
    pub is_given: bool,
}

/// A request that waits for something that is no host call, without its memory.
#[derive(Debug)]
pub(super) struct Suspended {
    origin: Arc<dyn Origin>,
    key: SuspendedKey,
    is_answered: bool,
}

impl Vacant {
    /// Storage at `slot` of the table of `origin`, which is queue number `queue`, for requests to `share`, which are recorded in `record`.
    pub fn new(
        origin: Arc<dyn Origin>,
        (queue, record): (QueueIndex, RequestRecord),
        (slot, claim): (SlotIndex, Arc<Claim>),
        (share, share_generation): (Arc<Share>, u64),
    ) -> Vacant {
        let (chain, header) = (Chain::new(), RequestHeader::NONE);
        let stage = Stage::Vacant;
        Vacant(Box::new(Storage {
            origin,
            queue,
            slot,
            claim,
            chain,
            share,
            share_generation,
            header,
            file: None,
            extent: Extent::default(),
            used_len: 0,
            is_alone: true,
            record,
            earlier: None,
            stage,
        }))
    }

    /// Its place in the queue's table.
    pub fn slot(&self) -> SlotIndex {
        self.0.slot
    }

    /// Bytes of the lists that it keeps for the next request.
    pub fn storage_bytes(&self) -> usize {
        self.0.chain.storage_bytes()
    }

    /// The generation of the share that its requests go to.
    pub fn share_generation(&self) -> u64 {
        self.0.share_generation
    }

    /// Its next requests go to another share. The old one is given back.
    pub fn set_share(&mut self, (share, generation): (Arc<Share>, u64)) -> Arc<Share> {
        self.0.share_generation = generation;
        std::mem::replace(&mut self.0.share, share)
    }

    /// Takes a chain in: walks it and copies the first `first_len` bytes that the guest sent. `is_alone`: no other chain waits
    /// behind it.
    pub fn begin(mut self, popped: Popped, first_len: usize, is_alone: bool) -> InFlight {
        let Popped { head, sequence, memory, earlier } = popped;
        let storage = &mut *self.0;
        storage.record.follow(head, sequence);
        storage.earlier = earlier;
        storage.is_alone = is_alone;
        storage.stage = Stage::InFlight;
        storage.used_len = 0;
        storage.header = RequestHeader::NONE;
        storage.chain.walk(head, memory);
        storage.chain.copy_arguments(first_len);
        InFlight(self.0)
    }
}

impl InFlight {
    /// Its place in the queue's table.
    pub(super) fn slot(&self) -> SlotIndex {
        self.0.slot
    }

    /// Whether no other request waited behind it when it was popped.
    pub(super) fn is_alone(&self) -> bool {
        self.0.is_alone
    }

    /// The share that it is to be served on.
    pub(super) fn share(&self) -> &Share {
        &self.0.share
    }

    /// The same, to be kept.
    pub(super) fn shared(&self) -> Arc<Share> {
        Arc::clone(&self.0.share)
    }

    /// Entries of its queue.
    pub(super) fn queue_size(&self) -> u16 {
        self.0.chain.ring_size()
    }

    /// Its identity.
    pub(super) fn id(&self) -> RequestId {
        RequestId { queue: self.0.queue, head: self.0.chain.head(), unique: self.0.header.unique }
    }

    /// Where it records what cannot be repeated.
    pub(super) fn record(&self) -> &RequestRecord {
        &self.0.record
    }

    /// What a process that died has left of it.
    pub(super) fn earlier(&self) -> Option<Unfinished> {
        self.0.earlier.as_deref().copied()
    }

    /// Its header; all zero until [`InFlight::set_header`].
    pub(super) fn header(&self) -> &RequestHeader {
        &self.0.header
    }

    /// The header that was decoded of its bytes.
    pub(super) fn set_header(&mut self, header: RequestHeader) {
        self.0.record.note_header(header.unique, header.node, header.opcode);
        self.0.header = header;
    }

    /// The first fault of its chain.
    pub(super) fn fault(&self) -> Option<ChainFault> {
        self.0.chain.fault()
    }

    /// Bytes that the guest sent.
    pub(super) fn readable_bytes(&self) -> u64 {
        self.0.chain.readable_bytes()
    }

    /// The copy of what the guest sent.
    pub(super) fn arguments(&self) -> &[u8] {
        self.0.chain.arguments()
    }

    /// Copies `len` bytes of what the guest sent.
    pub(super) fn copy_arguments(&mut self, len: usize) {
        self.0.chain.copy_arguments(len);
    }

    /// Bytes that a reply may have behind its header.
    pub(super) fn room(&self) -> usize {
        let room = self.0.chain.writable_bytes().saturating_sub(OUT_HEADER_LEN as u64);
        // The header's length has 32 bits.
        usize::try_from(room.min(u64::from(u32::MAX) - OUT_HEADER_LEN as u64)).unwrap_or(usize::MAX)
    }

    /// A writer to the reply's pages behind the header, for a reply that [`InFlight::reply_filled`] gives, whether the request is
    /// still wanted, and its record.
    pub(super) fn reply_writer(&mut self) -> (Writer<'_>, &dyn Pending, &RequestRecord) {
        let storage = &mut *self.0;
        (storage.chain.writable_from(OUT_HEADER_LEN as u64), &*storage.claim, &storage.record)
    }

    /// Copies what the reply's pages have behind the header to `to`.
    pub(super) fn copy_reply(&self, to: &mut [u8]) {
        self.0.chain.copy_written(OUT_HEADER_LEN as u64, to);
    }

    /// Copies what the guest sent to `to`, from byte `skip` on. Returns the bytes copied.
    pub(super) fn copy_readable(&self, skip: usize, to: &mut [u8]) -> usize {
        self.0.chain.copy_readable(skip as u64, to)
    }

    /// Whether the request still waits for this answer. An operation of several steps goes on only then.
    pub(super) fn is_wanted(&self) -> bool {
        !self.0.claim.is_withdrawn()
    }

    /// Sets the bytes of `extent` apart for a transfer with `file`.
    pub(super) fn begin_transfer(&mut self, file: FileInUse, extent: Extent) {
        (self.0.file, self.0.extent) = (Some(file), extent);
        self.0.chain.begin_transfer(extent.writable, extent.skip as u64, extent.len as u64);
    }

    /// What the transfer is to move.
    pub(super) fn extent(&self) -> Extent {
        self.0.extent
    }

    /// Sets the bytes behind the first `moved` ones of the transfer apart, to go on with it.
    pub(super) fn go_on_behind(&mut self, moved: usize) {
        let Extent { writable, skip, len, .. } = self.0.extent;
        self.0.chain.end_transfer();
        self.0.chain.begin_transfer(writable, (skip + moved) as u64, len.saturating_sub(moved) as u64);
    }

    /// The file of the transfer.
    pub(super) fn held_file(&self) -> Option<&FileInUse> {
        self.0.file.as_ref()
    }

    /// Ends a transfer, made or not, and releases its file.
    pub(super) fn end_transfer(&mut self) {
        self.0.chain.end_transfer();
        if let Some(file) = self.0.file.take() {
            self.0.share.let_go(file);
        }
    }

    /// The request leaves its thread: it waits to be served again.
    pub(super) fn leave_thread(&self) {
        self.0.claim.leave_thread();
    }

    /// Suspends the request: what answers it later, and its storage, to be finished without a lock, since that releases guest
    /// memory. On an error the request is as before: EIO where it was withdrawn, ENOLCK where too many are suspended.
    pub(super) fn suspend(mut self) -> Result<(Suspended, Answered), (InFlight, Errno)> {
        let (id, storage) = (self.id(), &mut *self.0);
        match storage.origin.suspend(storage.slot, &storage.claim, id, storage.chain.ring_descriptors()) {
            Ok(key) => {
                storage.stage = Stage::Answered;
                let suspended = Suspended { origin: Arc::clone(&storage.origin), key, is_answered: false };
                Ok((suspended, Answered { storage: self.0, is_given: true }))
            }
            Err(errno) => Err((self, errno)),
        }
    }

    /// Calls `write`, which writes the reply and returns its length, unless the request was withdrawn.
    pub(super) fn answer_with(mut self, write: impl FnOnce(&mut Chain, Unique) -> u32) -> Answered {
        let storage = &mut *self.0;
        let is_given = storage.claim.take();
        if is_given {
            storage.used_len = write(&mut storage.chain, storage.header.unique);
        }
        storage.stage = Stage::Answered;
        Answered { storage: self.0, is_given }
    }
}

impl Pending for InFlight {
    fn is_wanted(&self) -> bool {
        InFlight::is_wanted(self)
    }
}

impl Pending for Claim {
    fn is_wanted(&self) -> bool {
        !self.is_withdrawn()
    }
}

impl TransferOwner for InFlight {
    fn file(&self) -> BorrowedFd<'_> {
        // Without a file there is nothing that could be moved: the kernel answers EBADF.
        self.0.file.as_ref().map_or(rustix::fs::CWD, FileInUse::fd)
    }

    fn pages(&self) -> &[PageDescriptor] {
        self.0.chain.transfer_pages()
    }

    fn note_submitted(&self) {
        self.0.record.note_submitted();
        self.0.claim.leave_thread();
    }
}

/// The used element of an answered request.
#[derive(Debug, Clone, Copy)]
pub(super) struct UsedEntry {
    /// Where the queue's table has the request.
    pub slot: SlotIndex,
    /// The chain's first descriptor.
    pub head: u16,
    /// Bytes that the reply wrote.
    pub len: u32,
}

impl Answered {
    /// The reply is another one than the caller wanted to give.
    pub fn instead(self) -> Answered {
        Answered { is_given: false, ..self }
    }

    /// The share that it was served on.
    pub fn share(&self) -> &Share {
        &self.storage.share
    }

    /// The used element to push, and the storage for the next request. The chain's memory is released, so that idle threads
    /// keep no guest memory mapped.
    pub fn finish(self) -> (UsedEntry, Vacant) {
        let storage = self.storage;
        (UsedEntry { slot: storage.slot, head: storage.chain.head(), len: storage.used_len }, vacate(storage))
    }
}

fn vacate(mut storage: Box<Storage>) -> Vacant {
    storage.chain.release();
    storage.stage = Stage::Vacant;
    Vacant(storage)
}

impl Suspended {
    /// Answers the request with success or an error.
    pub fn answer(mut self, result: Result<(), Errno>) {
        self.is_answered = true;
        self.origin.answer_suspended(self.key, result);
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        if !self.is_answered {
            self.origin.answer_suspended(self.key, Err(Errno::EIO));
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.chain.end_transfer();
        if let Some(file) = self.file.take() {
            self.share.let_go(file);
        }
        if self.stage == Stage::InFlight {
            let used_len = if self.claim.take() { super::reply::write_error(&mut self.chain, self.header.unique, Errno::EIO) } else { 0 };
            self.origin.complete(self.slot, self.chain.head(), used_len);
        }
        self.origin.leave(self.slot);
    }
}
