//! The requests of a queue that are in flight: those that a thread or an engine has, and those that are suspended. Kept under
//! the queue's lock. A popped chain is in here until its answer is in the used ring.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;

use super::claim::{Claim, Holder};
use super::in_flight::{SlotIndex, SuspendedKey};
use crate::guest::RingMemory;
use crate::types::{Errno, RequestId};

/// A chain in flight, with the memory that it was popped from.
#[derive(Debug)]
pub(super) struct ChainAt {
    pub head: u16,
    pub memory: Arc<RingMemory>,
}

#[derive(Debug)]
struct Record {
    head: u16,
    /// The memory that it was popped from, once the ring has left it.
    left_memory: Option<Arc<RingMemory>>,
    since: Instant,
    /// The thread that began to serve it.
    thread: ThreadId,
}

/// A place for the requests of one storage, one after the other.
#[derive(Debug)]
struct Slot {
    claim: Arc<Claim>,
    request: Option<Record>,
    /// The thread whose request was withdrawn and that has not come back from the host.
    stuck: Option<ThreadId>,
}

#[derive(Debug, Clone, Copy)]
struct SuspendedRecord {
    id: RequestId,
    ring_descriptors: u16,
}

/// A request that was taken away from its holder.
#[derive(Debug)]
pub(super) struct Withdrawn {
    pub head: u16,
    /// The memory that it was popped from; `None` for that of the ring.
    pub memory: Option<Arc<RingMemory>>,
    pub holder: Holder,
}

/// The requests in flight.
#[derive(Debug, Default)]
pub(super) struct InFlightTable {
    slots: Vec<Option<Slot>>,
    /// Slots with a request.
    in_service: u32,
    suspended: BTreeMap<SuspendedKey, SuspendedRecord>,
    /// Descriptors of the ring that the suspended ones take.
    suspended_descriptors: u32,
    keys_used: u64,
}

impl InFlightTable {
    /// A place for the requests of a new storage, and the right to answer them.
    pub fn enter(&mut self) -> (SlotIndex, Arc<Claim>) {
        let claim = Arc::new(Claim::default());
        let slot = Some(Slot { claim: Arc::clone(&claim), request: None, stuck: None });
        let free = self.slots.iter().position(Option::is_none);
        match free {
            Some(index) => self.slots[index] = slot,
            None => self.slots.push(slot),
        }
        (SlotIndex(free.unwrap_or(self.slots.len() - 1)), claim)
    }

    /// The storage at `index` is gone. Its request was ended before.
    pub fn leave(&mut self, index: SlotIndex) {
        let is_there = self.end(index);
        debug_assert!(!is_there, "a request in service loses its storage");
        self.slots[index.0] = None;
    }

    /// Notes that the chain at `head` is served from `since` on, by `thread`.
    pub fn begin(&mut self, index: SlotIndex, head: u16, since: Instant, thread: ThreadId) {
        if let Some(slot) = &mut self.slots[index.0] {
            slot.claim.begin();
            slot.request = Some(Record { head, left_memory: None, since, thread });
            self.in_service += 1;
        }
    }

    /// The ring leaves `memory`: what was popped from it is still there.
    pub fn note_left(&mut self, memory: &Arc<RingMemory>) {
        for request in self.slots.iter_mut().flatten().filter_map(|slot| slot.request.as_mut()) {
            request.left_memory.get_or_insert_with(|| Arc::clone(memory));
        }
    }

    /// `thread` serves the request at `index` again, or finishes its transfer. False if it was withdrawn meanwhile.
    pub fn resume(&mut self, index: SlotIndex, thread: ThreadId) -> bool {
        let Some(slot) = &mut self.slots[index.0] else { return false };
        let Some(request) = &mut slot.request else { return false };
        request.thread = thread;
        slot.claim.enter_thread();
        true
    }

    /// The request at `index` is answered. False where it was withdrawn meanwhile: somebody else has answered it.
    pub fn end(&mut self, index: SlotIndex) -> bool {
        let Some(slot) = &mut self.slots[index.0] else { return false };
        let is_there = slot.request.take().is_some();
        self.in_service -= u32::from(is_there);
        is_there
    }

    /// Requests that a thread or an engine has.
    pub fn in_service(&self) -> u32 {
        self.in_service
    }

    /// Their chains; `present` is the memory of the ring.
    pub fn chains(&self, present: Option<&Arc<RingMemory>>) -> impl Iterator<Item = ChainAt> {
        let requests = self.slots.iter().flatten().filter_map(|slot| slot.request.as_ref());
        requests.filter_map(move |request| {
            let memory = request.left_memory.as_ref().or(present)?;
            Some(ChainAt { head: request.head, memory: Arc::clone(memory) })
        })
    }

    /// When the last of them began.
    pub fn last_began(&self) -> Option<Instant> {
        self.slots.iter().flatten().filter_map(|slot| slot.request.as_ref()).map(|request| request.since).max()
    }

    /// `thread` has come back from the host with the request at `index`. True where that was withdrawn from it.
    pub fn note_returned(&mut self, index: SlotIndex, thread: ThreadId) -> bool {
        let slot = self.slots[index.0].as_mut().filter(|slot| slot.stuck == Some(thread));
        slot.is_some_and(|slot| slot.stuck.take().is_some())
    }

    /// Whether `thread` has not come back from the host since its request was withdrawn.
    pub fn is_stuck(&self, thread: ThreadId) -> bool {
        self.slots.iter().flatten().any(|slot| slot.stuck == Some(thread))
    }

    /// Withdraws the requests whose reply is not being written.
    pub fn withdraw(&mut self) -> Vec<Withdrawn> {
        let mut withdrawn = Vec::new();
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.request.is_some()) {
            let Some(holder) = slot.claim.withdraw() else { continue };
            if let Some(Record { head, left_memory: memory, thread, .. }) = slot.request.take() {
                slot.stuck = (holder == Holder::Thread).then_some(thread);
                self.in_service -= 1;
                withdrawn.push(Withdrawn { head, memory, holder });
            }
        }
        withdrawn
    }

    /// Suspends the request `id` at `index`: it is no longer in service. ENOLCK if suspended requests would take more than half
    /// of a ring of `ring_len` descriptors: the requests that end their waits need the rest.
    pub fn suspend(&mut self, index: SlotIndex, id: RequestId, ring_descriptors: u16, ring_len: u16) -> Result<SuspendedKey, Errno> {
        let sum = self.suspended_descriptors + u32::from(ring_descriptors);
        if sum > u32::from(ring_len / 2) {
            return Err(Errno::ENOLCK);
        }
        self.suspended_descriptors = sum;
        self.end(index);
        self.keys_used += 1;
        let key = SuspendedKey(self.keys_used);
        self.suspended.insert(key, SuspendedRecord { id, ring_descriptors });
        Ok(key)
    }

    /// A suspended request is to be answered. `None` where the guest has reset the queue since.
    pub fn take_suspended(&mut self, key: SuspendedKey) -> Option<RequestId> {
        let SuspendedRecord { id, ring_descriptors } = self.suspended.remove(&key)?;
        self.suspended_descriptors -= u32::from(ring_descriptors);
        Some(id)
    }

    /// Forgets the suspended requests, because the guest has reset the queue.
    pub fn clear_suspended(&mut self) {
        self.suspended.clear();
        self.suspended_descriptors = 0;
    }
}
