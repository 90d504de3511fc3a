//! The I/O engine of a queue: the synchronous one, which the compiler can see through, or another.

use std::os::fd::BorrowedFd;

use super::in_flight::InFlight;
use crate::io::{Engine, Finished, Submission, SyncEngine, Transfer, UringEngine};

/// An engine for the transfers of one queue.
#[derive(Debug)]
pub enum QueueEngine {
    /// Each transfer is carried out by the thread that submits it.
    Sync(SyncEngine),
    /// Transfers that wait for a disk are submitted to io_uring.
    Uring(UringEngine<InFlight>),
    /// Any other engine.
    Other(Box<dyn Engine<InFlight>>),
}

impl Engine<InFlight> for QueueEngine {
    #[inline]
    fn submit(&self, transfer: Transfer<InFlight>) -> Submission<InFlight> {
        match self {
            QueueEngine::Sync(engine) => engine.submit(transfer),
            QueueEngine::Uring(engine) => engine.submit(transfer),
            QueueEngine::Other(engine) => engine.submit(transfer),
        }
    }

    #[inline]
    fn flush(&self) {
        match self {
            QueueEngine::Sync(_) => {}
            QueueEngine::Uring(engine) => engine.flush(),
            QueueEngine::Other(engine) => engine.flush(),
        }
    }

    #[inline]
    fn has_collected(&self) -> bool {
        match self {
            QueueEngine::Sync(_) => false,
            QueueEngine::Uring(engine) => engine.has_collected(),
            QueueEngine::Other(engine) => engine.has_collected(),
        }
    }

    #[inline]
    fn has_finished(&self) -> bool {
        match self {
            QueueEngine::Sync(_) => false,
            QueueEngine::Uring(engine) => engine.has_finished(),
            QueueEngine::Other(engine) => engine.has_finished(),
        }
    }

    fn in_flight(&self) -> usize {
        match self {
            QueueEngine::Sync(_) => 0,
            QueueEngine::Uring(engine) => engine.in_flight(),
            QueueEngine::Other(engine) => engine.in_flight(),
        }
    }

    fn reap(&self, finished: &mut Vec<Finished<InFlight>>) {
        match self {
            QueueEngine::Sync(engine) => engine.reap(finished),
            QueueEngine::Uring(engine) => engine.reap(finished),
            QueueEngine::Other(engine) => engine.reap(finished),
        }
    }

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        match self {
            QueueEngine::Sync(_) => None,
            QueueEngine::Uring(engine) => engine.completion_event(),
            QueueEngine::Other(engine) => engine.completion_event(),
        }
    }

    fn end(&self) {
        match self {
            QueueEngine::Sync(_) => {}
            QueueEngine::Uring(engine) => engine.end(),
            QueueEngine::Other(engine) => engine.end(),
        }
    }
}
