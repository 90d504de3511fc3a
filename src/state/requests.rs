//! Records of requests in flight: one for each head of each queue, and one of each queue's position. They are what another process
//! needs to go on where this one died. Which phases an operation goes through, and what each field means for it, is in
//! docs/RECOVERY.md, sections 3.5, 4 and 5. Knows no ring and no operation.
//!
//! Each store is a Release: another process reads the records after this one's end, and then has a prefix of each thread's stores.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::arena::Record;
use crate::types::{FileHandle, NodeId, Unique};

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
    /// An io_uring has it.
    Submitted = 6,
    /// The stop of its queue answers it with EIO.
    Withdrawn = 7,
}

impl Phase {
    fn from_word(word: u64) -> Phase {
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

/// One request in flight, in one cache line.
#[repr(C)]
#[derive(Debug, Default)]
pub struct RequestRecord {
    /// The request's number in its queue in the upper 48 bits, then 8 bits of zero, and the phase.
    word: AtomicU64,
    unique: AtomicU64,
    node: AtomicU64,
    handle: AtomicU64,
    counted: AtomicU64,
    before: AtomicI64,
    result: AtomicI64,
    /// Length and place of the used element, valid in Publishing.
    used: AtomicU64,
}

const _: () = assert!(size_of::<RequestRecord>() == 64);

// SAFETY: every field is an atomic integer.
unsafe impl Record for RequestRecord {}

/// What a process that died has left of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// How far it had come.
    pub phase: Phase,
    /// Its number in its queue: requests are popped in this order.
    pub sequence: u64,
    /// The guest's number of it; 0 where its header was not read yet.
    pub unique: Unique,
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

impl RequestRecord {
    /// The phase.
    pub fn phase(&self) -> Phase {
        Phase::from_word(self.word.load(Ordering::Acquire))
    }

    /// A call that cannot simply be repeated comes next; `before` is what its repetition needs to know of the time before.
    pub fn begin(&self, before: i64) {
        self.before.store(before, Ordering::Release);
        self.set_phase(Phase::Begun);
    }

    /// The call has returned `result`, a count or a negative errno.
    pub fn note_made(&self, result: i64) {
        self.result.store(result, Ordering::Release);
        self.set_phase(Phase::Made);
    }

    /// The request has counted a lookup of `node`. To be called directly after the count was raised.
    pub fn note_counted(&self, node: NodeId) {
        self.counted.store(node.0, Ordering::Release);
    }

    /// The request has made `handle`.
    pub fn note_handle(&self, handle: FileHandle) {
        self.handle.store(handle.0, Ordering::Release);
    }

    /// What is recorded.
    pub fn unfinished(&self) -> Unfinished {
        let word = self.word.load(Ordering::Acquire);
        let get = |field: &AtomicU64| field.load(Ordering::Acquire);
        Unfinished {
            phase: Phase::from_word(word),
            sequence: word >> 16,
            unique: Unique(get(&self.unique)),
            node: NodeId(get(&self.node)),
            handle: FileHandle(get(&self.handle)),
            counted: NodeId(get(&self.counted)),
            before: self.before.load(Ordering::Acquire),
            result: self.result.load(Ordering::Acquire),
        }
    }

    /// Changes the phase of the request. One thread has the request at a time.
    pub fn set_phase(&self, phase: Phase) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !0xff | phase as u64, Ordering::Release);
    }
}
