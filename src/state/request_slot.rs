//! The record of one request in flight, in one cache line, and what a later process reads of it. Which phases an operation goes
//! through, and what each field means for it, is in docs/RECOVERY.md, sections 3.5, 4 and 5. Knows no ring and no operation.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::arena::Record;
use crate::types::{FileHandle, NodeId, QueueIndex, Unique};

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// There is no request.
    Free = 0,
    /// It was popped. No call of it has changed anything that cannot simply be changed again.
    Taken = 1,
    /// A call that cannot simply be repeated may have been made.
    Begun = 2,
    /// That call has returned.
    Made = 3,
    /// The reply is in guest memory, and the used element goes to its place in the ring.
    Publishing = 4,
    /// It waits for a lock.
    Suspended = 5,
    /// An I/O engine has it. What was recorded before, and is needed to repeat it, is still there.
    Submitted = 6,
    /// The stop of its queue answers it with EIO.
    Withdrawn = 7,
}

impl Phase {
    pub(super) fn from_word(word: u64) -> Phase {
        match word & 0xff {
            1 => Phase::Taken,
            2 => Phase::Begun,
            3 => Phase::Made,
            4 => Phase::Publishing,
            5 => Phase::Suspended,
            6 => Phase::Submitted,
            7 => Phase::Withdrawn,
            _ => Phase::Free,
        }
    }
}

/// A word of a record: the request's number in its queue in the upper 48 bits, 8 bits of zero, and the phase.
pub(super) fn word_of(sequence: u64, phase: Phase) -> u64 {
    sequence << 16 | phase as u64
}

/// Bits of a sequence in a word.
const SEQUENCE_BITS: u32 = 48;

/// Which request of a device: its number in its queue, which no other request of that queue has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestName {
    /// Its queue.
    pub queue: QueueIndex,
    /// Its number there.
    pub sequence: u64,
}

impl RequestName {
    /// As a word, which is not 0.
    pub(super) fn to_word(self) -> u64 {
        (u64::from(self.queue.0) + 1) << SEQUENCE_BITS | self.sequence & ((1 << SEQUENCE_BITS) - 1)
    }

    /// Of a word; `None` for 0, and for one that names no queue.
    pub(super) fn from_word(word: u64) -> Option<RequestName> {
        let queue = QueueIndex(u16::try_from(word >> SEQUENCE_BITS).ok()?.checked_sub(1)?);
        Some(RequestName { queue, sequence: word & ((1 << SEQUENCE_BITS) - 1) })
    }
}

/// One request in flight.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct RequestSlot {
    /// As [`word_of`]. What is in the other fields belongs to this request.
    pub word: AtomicU64,
    pub unique: AtomicU64,
    pub node: AtomicU64,
    pub handle: AtomicU64,
    pub counted: AtomicU64,
    pub before: AtomicI64,
    pub result: AtomicI64,
    /// Until it is published, the opcode's number plus 1 in the upper 16 bits. From then on the place of the used element in bits
    /// 32 to 47, and its length below.
    pub used: AtomicU64,
}

const _: () = assert!(size_of::<RequestSlot>() == 64);

// SAFETY: every field is an atomic integer.
unsafe impl Record for RequestSlot {
    const KIND: u32 = 10;
}

/// A used element, with its place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedElement {
    /// Its used index.
    pub at: u16,
    /// The chain's first descriptor.
    pub head: u16,
    /// Bytes that the reply wrote.
    pub len: u32,
}

/// What a process that died has left of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// How far it had come.
    pub phase: Phase,
    /// Its number in its queue: requests are popped in this order.
    pub sequence: u64,
    /// The guest's number of it; 0 where its header was not read yet.
    pub unique: Unique,
    /// The number of its opcode; `None` where its header was not read yet, or where the number has more than 16 bits.
    pub opcode: Option<u16>,
    /// The node that its header names.
    pub node: NodeId,
    /// The handle that it made; [`FileHandle::NONE`] for none.
    pub handle: FileHandle,
    /// The node whose lookup it counted; 0 for none.
    pub counted: NodeId,
    /// What was there before: the operation says what.
    pub before: i64,
    /// What its call returned, a count or a negative errno, from Made on.
    pub result: i64,
}

impl RequestSlot {
    /// What is recorded; `None` without a request.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let word = self.word.load(Ordering::Acquire);
        let get = |field: &AtomicU64| field.load(Ordering::Acquire);
        let phase = Phase::from_word(word);
        (phase != Phase::Free).then(|| Unfinished {
            phase,
            sequence: word >> 16,
            unique: Unique(get(&self.unique)),
            opcode: u16::try_from(get(&self.used) >> 48).ok().and_then(|plus_1| plus_1.checked_sub(1)),
            node: NodeId(get(&self.node)),
            handle: FileHandle(get(&self.handle)),
            counted: NodeId(get(&self.counted)),
            before: self.before.load(Ordering::Acquire),
            result: self.result.load(Ordering::Acquire),
        })
    }

    /// Where its used element goes; of use in Publishing.
    #[expect(clippy::cast_possible_truncation, reason = "the fields of the word")]
    pub fn used_element(&self, head: u16) -> UsedElement {
        let used = self.used.load(Ordering::Acquire);
        UsedElement { at: (used >> 32) as u16, head, len: used as u32 }
    }

    /// Changes the phase. Called with the lock of the queue.
    pub fn set_phase(&self, phase: Phase) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !0xff | phase as u64, Ordering::Release);
    }
}
