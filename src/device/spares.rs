//! Storage that a thread keeps for the requests to come, so that none is allocated while requests are answered at once. Knows
//! nothing of what requests are.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::claim::Claim;
use super::in_flight::{Origin, SlotIndex, Vacant};
use super::queue::{Bound, Queue, State};
use crate::host::Share;
use crate::state::RequestRecord;

/// Storage that a thread keeps for requests to come, where an engine finishes some later.
const SPARES_MAX: usize = 64;
/// Bytes of lists in each of it but the first: those of a request of 1020 pages take 32 KiB.
const SPARE_LEN_MAX: usize = 64 << 10;

/// The storage that one thread keeps.
pub(super) struct Spares<'q> {
    queue: &'q Arc<Queue>,
    bound: &'q Bound,
    list: Vec<Vacant>,
}

impl Spares<'_> {
    /// Storage for one request, at a slot of the queue's table that was entered for it.
    pub fn new<'q>(queue: &'q Arc<Queue>, bound: &'q Bound, entered: (SlotIndex, Arc<Claim>), share: (Arc<Share>, u64)) -> Spares<'q> {
        let mut spares = Spares { queue, bound, list: Vec::new() };
        spares.list.push(spares.make(entered, share));
        spares
    }

    fn make(&self, entered: (SlotIndex, Arc<Claim>), share: (Arc<Share>, u64)) -> Vacant {
        let (index, records) = (self.bound.index, &self.bound.service.records);
        let record = records.queue(index).map(RequestRecord::of).unwrap_or_default();
        Vacant::new(Arc::clone(self.queue) as Arc<dyn Origin>, (index, record), entered, share)
    }

    /// Storage for a request that begins.
    pub fn take(&mut self, state: &mut State) -> Vacant {
        let service = &self.bound.service;
        let Some(mut spare) = self.list.pop() else { return self.make(state.in_flight.enter(), service.present_share()) };
        // After the pop: the request may be the first of a new session.
        if spare.share_generation() != service.export.generation() {
            drop(spare.set_share(service.present_share()));
        }
        spare
    }

    /// Keeps storage for the next request.
    pub fn keep(&mut self, state: &mut MutexGuard<'_, State>, vacant: Vacant) {
        let fits = self.list.len() < SPARES_MAX && vacant.storage_bytes() <= SPARE_LEN_MAX;
        if self.list.is_empty() || fits {
            self.list.push(vacant);
        } else {
            // Storage takes the lock when it is dropped.
            MutexGuard::unlocked(state, || drop(vacant));
        }
    }

    /// Releases the share of a FUSE session that ended.
    pub fn follow_share(&mut self, state: &mut MutexGuard<'_, State>) {
        let service = &self.bound.service;
        let generation = service.export.generation();
        if self.list.iter().all(|spare| spare.share_generation() == generation) {
            return;
        }
        let present = service.present_share();
        let mut old = Vec::new();
        for spare in &mut self.list {
            old.push(spare.set_share((Arc::clone(&present.0), present.1)));
        }
        MutexGuard::unlocked(state, || drop(old));
    }
}
