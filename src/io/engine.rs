//! The interface of I/O engines: submit a transfer, reap what is finished.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use super::transfer::Transfer;
use crate::types::Errno;

/// A transfer that is done, with its owner.
#[derive(Debug)]
pub struct Finished<O> {
    /// The transfer as it was submitted.
    pub transfer: Transfer<O>,
    /// Bytes moved: fewer than asked at end of file or on a full disk. An error only if nothing moved before it.
    pub result: Result<usize, Errno>,
}

/// The outcome of submitting a transfer.
#[derive(Debug)]
pub enum Submission<O> {
    /// It was carried out by the calling thread.
    Finished(Finished<O>),
    /// The engine has taken it over: [`Engine::reap`] brings it back.
    Submitted,
    /// The engine has no room and gives it back. Only while other transfers are with it: the completion event tells when to
    /// submit again.
    Full(Transfer<O>),
}

/// Carries out the transfers of one queue.
pub trait Engine<O>: Debug + Send + Sync {
    /// Begins `transfer`. A transfer that must stay on the submitting thread is carried out before this returns; one that is
    /// taken over must not wait for anything after [`TransferOwner::note_submitted`]. Called without a lock of the queue's.
    ///
    /// [`TransferOwner::note_submitted`]: super::TransferOwner::note_submitted
    fn submit(&self, transfer: Transfer<O>) -> Submission<O>;

    /// Starts what was submitted, where the engine collects transfers to start several at once. To be called before the thread
    /// sleeps or carries out anything else that may wait. Called without a lock of the queue's.
    fn flush(&self);

    /// Whether [`Engine::flush`] has anything to start.
    fn has_collected(&self) -> bool;

    /// Whether there may be something to reap. No system call.
    fn has_finished(&self) -> bool;

    /// Transfers that it has taken over and that were not reaped.
    fn in_flight(&self) -> usize;

    /// Appends what is finished to `finished`, without waiting. Called without a lock of the queue's.
    fn reap(&self, finished: &mut Vec<Finished<O>>);

    /// Becomes readable when there is something to reap; `None` for an engine that never takes a transfer over.
    fn completion_event(&self) -> Option<BorrowedFd<'_>>;

    /// The queue has ended: drops the transfers that are finished, and each of the others when it is. Nobody reaps any more.
    fn end(&self);
}
