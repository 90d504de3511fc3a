//! The I/O engine of a queue: the synchronous one, which the compiler can see through, or another.

use std::os::fd::BorrowedFd;

use super::in_flight::InFlight;
use crate::io::{Engine, Finished, Submission, SyncEngine, Transfer};

/// An engine for the transfers of one queue.
#[derive(Debug)]
pub enum QueueEngine {
    /// Each transfer is carried out by the thread that submits it.
    Sync(SyncEngine),
    /// Any other engine.
    Other(Box<dyn Engine<InFlight>>),
}

impl Engine<InFlight> for QueueEngine {
    #[inline]
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        match self {
            QueueEngine::Sync(engine) => engine.submit(transfer),
            QueueEngine::Other(engine) => engine.submit(transfer),
        }
    }

    fn reap(&self, finished: &mut Vec<Finished<InFlight>>) {
        match self {
            QueueEngine::Sync(engine) => engine.reap(finished),
            QueueEngine::Other(engine) => engine.reap(finished),
        }
    }

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        match self {
            QueueEngine::Sync(_) => None,
            QueueEngine::Other(engine) => engine.completion_event(),
        }
    }

    fn end(&self) {
        if let QueueEngine::Other(engine) = self {
            engine.end();
        }
    }
}
