//! Answers that no serving thread brings: to suspended requests, when their wait ends, and to requests that an engine loses.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;

use super::claim::Claim;
use super::in_flight::{Origin, SlotIndex, SuspendedKey};
use super::queue::{Bound, Late, Queue, State, signal_call};
use super::reply;
use super::service::Service;
use crate::guest::RingMemory;
use crate::state::Phase;
use crate::types::{Errno, RequestId};
use crate::virtqueue::{Chain, Ring};

impl State {
    /// The next answer to a suspended request, with the memory to give it in.
    fn next_late(&mut self, service: &Service) -> Option<(RequestId, Arc<RingMemory>, Result<(), Errno>)> {
        while !self.late.is_empty() && self.prepare(service) {
            let memory = Arc::clone(self.ring.as_ref()?.memory()?);
            let Late { key, result } = self.late.pop_front()?;
            if let Some(id) = self.in_flight.take_suspended(key) {
                return Some((id, memory, result));
            }
        }
        None
    }
}

impl Queue {
    /// Writes the answers to suspended requests that are ready, if the queue runs.
    pub fn answer_late(&self, state: &mut MutexGuard<'_, State>) {
        if state.late.is_empty() {
            return;
        }
        let Some(Bound { service, .. }) = self.bound() else { return };
        while let Some((id, memory, result)) = state.next_late(service) {
            // In service again, so that the queue is not stopped meanwhile, and not to be withdrawn: the lock is the guest's.
            let (slot, claim) = state.in_flight.enter();
            let head = id.head;
            state.in_flight.begin(slot, id.head, Instant::now(), std::thread::current().id());
            claim.take();
            let used_len = MutexGuard::unlocked(state, || {
                let mut chain = Chain::new();
                chain.walk(head, memory);
                match result {
                    Ok(()) => reply::write_parts(&mut chain, id.unique, &[], &[]),
                    Err(errno) => reply::write_error(&mut chain, id.unique, errno),
                }
            });
            if state.in_flight.end(slot) {
                state.push_used(id.head, used_len);
            }
            state.in_flight.leave(slot);
            signal_call(state, service, Instant::now());
            self.note_answered(state);
        }
    }
}

impl Origin for Queue {
    fn complete(&self, slot: SlotIndex, head: u16, used_len: u32) {
        let mut state = self.state.lock();
        if state.in_flight.end(slot) {
            state.push_used(head, used_len);
        }
        // An engine that loses a request has room for another one.
        state.note_engine_room();
        if let Some(bound) = self.bound() {
            state.follow_memory(&bound.service);
            signal_call(&mut state, &bound.service, Instant::now());
        }
        self.note_answered(&state);
        drop(state);
        Queue::wake(self);
    }

    fn suspend(&self, slot: SlotIndex, claim: &Claim, id: RequestId, ring_descriptors: u16) -> Result<SuspendedKey, Errno> {
        let mut state = self.state.lock();
        // It cannot be withdrawn while the state is locked. Taken last: after an error the caller may still wait for the host.
        if claim.is_withdrawn() {
            return Err(Errno::EIO);
        }
        let ring_len = state.ring.as_ref().map_or(0, Ring::size);
        let key = state.in_flight.suspend(slot, id, ring_descriptors, ring_len)?;
        claim.take();
        if let Some(records) = &state.records {
            records.set_phase(id.head, Phase::Suspended);
        }
        if let Some(bound) = self.bound() {
            bound.service.metrics.parked.increment();
        }
        self.note_answered(&state);
        Ok(key)
    }

    fn answer_suspended(&self, key: SuspendedKey, result: Result<(), Errno>) {
        let mut state = self.state.lock();
        state.late.push_back(Late { key, result });
        self.answer_late(&mut state);
    }

    fn leave(&self, slot: SlotIndex) {
        self.state.lock().in_flight.leave(slot);
    }
}
