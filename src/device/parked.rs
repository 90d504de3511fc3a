//! Requests whose answer comes later: no thread holds them, and they are no hindrance to stopping their queue.
//! One is known by its head and unique alone; its chain is walked again for the answer, with the memory of that
//! time. An answer that comes while the queue is stopped is given when it runs again; one that comes after the
//! guest began anew is nobody's.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::answer::answer_done;
use super::queue::{Queue, State, publish_and_call};
use super::service::Service;
use crate::types::{Errno, Unique};
use crate::virtqueue::{Claim, Request};

/// Where a request that is being served lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'q> {
    pub queue: &'q Arc<Queue>,
    pub head: u16,
    /// The right to answer it.
    pub claim: &'q Claim,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Parked {
    queue: Arc<Queue>,
    life: u64,
    late: Late,
}

/// What is left of a parked request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Late {
    pub head: u16,
    pub ring_descriptors: u16,
    unique: Unique,
    result: Result<(), Errno>,
}

impl Place<'_> {
    /// Takes the request out of service. ENOLCK where so many wait that the ring has no room for the requests
    /// that end their waits, EIO where somebody else has answered it.
    pub fn park(&self, unique: Unique, ring_descriptors: u16) -> Result<Parked, Errno> {
        let mut state = self.queue.state.lock();
        // Nobody withdraws it while the state is locked. Taken last: what follows an error here may wait for the host.
        if self.claim.is_withdrawn() {
            return Err(Errno::EIO);
        }
        if !state.park(ring_descriptors) {
            return Err(Errno::ENOLCK);
        }
        self.claim.take();
        if let Some((_, service)) = self.queue.bound() {
            service.metrics.parked.increment();
        }
        let late = Late { head: self.head, ring_descriptors, unique, result: Ok(()) };
        Ok(Parked { queue: Arc::clone(self.queue), life: state.life, late })
    }
}

impl Parked {
    /// Answers the request.
    pub fn answer(self, result: Result<(), Errno>) {
        let Some((_, service)) = self.queue.bound() else { return };
        let mut state = self.queue.state.lock();
        if state.life == self.life {
            state.late.push_back(Late { result, ..self.late });
            answer_late(&self.queue, &mut state, service);
        }
    }
}

/// Gives the answers that came, where the queue runs.
pub(super) fn answer_late(queue: &Queue, state: &mut MutexGuard<'_, State>, service: &Service) {
    while let Some((late, popped)) = state.next_late(service) {
        let used_len = MutexGuard::unlocked(state, || {
            let mut request = Request::new();
            request.walk(popped.head, popped.memory);
            let (_, _, responder) = request.parts(late.unique.0);
            answer_done(responder, late.result);
            request.used_len()
        });
        state.answer(popped.head, used_len);
        publish_and_call(state, service);
        queue.answered(state);
    }
}
