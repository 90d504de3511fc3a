//! The io_uring engine: transfers that wait for a disk are submitted to the kernel in batches and finished later, the others
//! are carried out at once (`docs/decisions/0009-io-uring.md`).

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::engine::{Engine, Finished, Submission};
use super::pinned::PinnedMemory;
use super::rings::Rings;
use super::sync::run;
use super::transfer::{Action, Thread, Transfer, TransferOwner};
use crate::metrics::Metrics;
use crate::sys::thread;
use crate::sys::uring::{Request, Rights, Ring};
use crate::sys::vectored::{APPEND, SEGMENTS_MAX};

/// Transfers that are started by one system call at most. The first one of a batch waits until the others are placed, about a
/// microsecond each; the disk takes tens of them for one.
const BATCH_MAX: usize = 16;
/// Direct transfers in a row that must have been alone before the next one is carried out at once.
const ALONE_MIN: u32 = 64;

/// Which transfers go to the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that wait for a disk, if others wait or are in flight.
    Overlapping,
    /// All.
    All,
}

/// An engine for one queue, on one ring.
#[derive(Debug)]
pub struct UringEngine<O: TransferOwner> {
    ring: Arc<Ring<Transfer<O>>>,
    which: Which,
    /// Direct transfers in a row that were alone.
    alone: AtomicU32,
    pinned: Option<Arc<PinnedMemory>>,
    metrics: Arc<Metrics>,
}

impl<O: TransferOwner> UringEngine<O> {
    /// An engine on a ring that is free. `None` where there is none.
    pub fn new(rings: &Rings, which: Which, metrics: Arc<Metrics>) -> Option<UringEngine<O>> {
        let ring = Arc::new(Ring::new(rings.take()?));
        Some(UringEngine { ring, which, alone: AtomicU32::new(0), pinned: rings.pinned(), metrics })
    }

    /// Whether the transfer is better finished later.
    fn is_for_ring(&self, transfer: &Transfer<O>) -> bool {
        // A thread that the kernel holds up inside the ring holds up every other one that enters it.
        if self.ring.is_entered() || transfer.owner.pages().len() > SEGMENTS_MAX || i64::try_from(transfer.offset).is_err() {
            return false;
        }
        match self.which {
            Which::All => true,
            Which::Overlapping => transfer.waits_for_disk && !self.has_been_alone(transfer),
        }
    }

    /// Whether the transfer, and those before it, had no company.
    fn has_been_alone(&self, transfer: &Transfer<O>) -> bool {
        let is_alone = transfer.is_alone && self.ring.in_flight() == 0;
        let before = self.alone.load(Ordering::Relaxed);
        let now = if is_alone { before.saturating_add(1) } else { 0 };
        if before != now {
            self.alone.store(now, Ordering::Relaxed);
        }
        now > ALONE_MIN
    }
}

/// The request of a transfer whose owner stays where it is. `buffer` is the registered memory that has its pages.
fn request_of<O: TransferOwner>(transfer: &Transfer<O>, buffer: Option<u16>) -> Request<'_> {
    let (file, pages, offset) = (transfer.owner.file(), transfer.owner.pages(), transfer.offset);
    match (transfer.action, buffer) {
        (Action::Read, None) => Request::read(file, pages, offset),
        (Action::Read, Some(buffer)) => Request::read_registered(file, pages, offset, buffer),
        (Action::Write { append }, buffer) => {
            let rights = if transfer.thread == Thread::Any { Rights::Own } else { Rights::WithoutFsetid };
            let how = (if append { APPEND } else { 0 }, rights);
            match buffer {
                None => Request::write(file, pages, offset, how),
                Some(buffer) => Request::write_registered(file, pages, offset, how, buffer),
            }
        }
        (Action::Sync { data_only }, _) => Request::sync(file, data_only),
    }
}

impl<O: TransferOwner + std::fmt::Debug + 'static> Engine<O> for UringEngine<O> {
    fn submit(&self, transfer: Transfer<O>) -> Submission<O> {
        if !self.is_for_ring(&transfer) {
            self.flush();
            let owner = &transfer.owner;
            let result = run(owner.file(), owner.pages(), transfer.offset, transfer.action, &self.metrics);
            return Submission::Finished(Finished { transfer, result });
        }
        let action = transfer.action;
        let placed = self.ring.place(transfer, |transfer| {
            transfer.owner.note_submitted();
            let buffer = self.pinned.as_ref().and_then(|pinned| pinned.buffer_of(transfer.owner.pages()));
            if buffer.is_some() {
                self.metrics.pinned_transfers.increment();
            }
            request_of(transfer, buffer)
        });
        match placed {
            Ok(placed) => {
                match action {
                    Action::Read => self.metrics.host_reads.increment(),
                    Action::Write { .. } => self.metrics.host_writes.increment(),
                    Action::Sync { .. } => {}
                }
                if placed >= BATCH_MAX {
                    self.flush();
                }
                Submission::Submitted
            }
            Err(transfer) => {
                self.flush();
                Submission::Full(transfer)
            }
        }
    }

    #[inline]
    fn flush(&self) {
        match self.ring.enter() {
            Ok(true) => self.metrics.ring_enters.increment(),
            Ok(false) => {}
            Err(e) => tracing::error!("io_uring does not take requests: {e}"),
        }
    }

    #[inline]
    fn has_collected(&self) -> bool {
        self.ring.placed() > 0
    }

    #[inline]
    fn has_finished(&self) -> bool {
        self.ring.has_completions()
    }

    fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }

    fn reap(&self, finished: &mut Vec<Finished<O>>) {
        self.ring.reap(|transfer, result| finished.push(Finished { transfer, result }));
    }

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.completion_event())
    }

    fn end(&self) {
        let drop_finished = |ring: &Ring<Transfer<O>>| {
            let mut finished = Vec::new();
            ring.reap(|transfer, _| finished.push(transfer));
        };
        drop_finished(&self.ring);
        if self.ring.in_flight() == 0 {
            return;
        }
        let ring = Arc::clone(&self.ring);
        let wait = move || {
            while ring.in_flight() > 0 && ring.wait().is_ok() {
                drop_finished(&ring);
            }
        };
        if let Err(e) = thread::start("uring", wait) {
            tracing::error!("cannot start a thread that waits for the disk: {e}; what a hanging disk has is never freed");
        }
    }
}
