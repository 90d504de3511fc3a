//! The synchronous engine: one vectored call a transfer, or the least number of calls where a transfer
//! has more pages than a call takes.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::engine::{Engine, Finished, Submission};
use super::transfer::{Action, Transfer, TransferOwner};
use crate::guest::PageDescriptor;
use crate::metrics::Metrics;
use crate::sys::descriptor;
use crate::sys::vectored::{self, SEGMENTS_MAX};
use crate::types::Errno;

/// Carries out each transfer on the thread that submits it.
#[derive(Debug)]
pub struct SyncEngine(Arc<Metrics>);

impl SyncEngine {
    /// An engine that counts its host calls in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> SyncEngine {
        SyncEngine(metrics)
    }
}

impl<O: TransferOwner> Engine<O> for SyncEngine {
    #[inline]
    fn submit(&self, transfer: Transfer<O>) -> Submission<O> {
        let owner = &transfer.owner;
        let result = run(owner.file(), owner.pages(), transfer.offset, transfer.action, &self.0);
        Submission::Finished(Finished { transfer, result })
    }

    #[inline]
    fn flush(&self) {}

    #[inline]
    fn has_collected(&self) -> bool {
        false
    }

    #[inline]
    fn has_finished(&self) -> bool {
        false
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn reap(&self, _finished: &mut Vec<Finished<O>>) {}

    fn completion_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn end(&self) {}
}

/// Moves `pages` between guest memory and `file` at `offset`, or syncs the file: how many bytes moved. Each host call is counted
/// in `metrics`.
///
/// A short transfer ends it: on a regular file that is the end of the file or a full disk, and both
/// are what the guest should hear. An error (man preadv2(2)) counts only if nothing moved before it.
pub fn run(file: BorrowedFd<'_>, pages: &[PageDescriptor], offset: u64, action: Action, metrics: &Metrics) -> Result<usize, Errno> {
    if let Action::Sync { data_only } = action {
        return descriptor::sync(file, data_only).map(|()| 0);
    }
    let mut done = 0;
    for pages in pages.chunks(SEGMENTS_MAX) {
        let wanted: usize = pages.iter().map(PageDescriptor::len).sum();
        let offset = offset + done as u64;
        let moved = if let Action::Write { append } = action {
            metrics.host_writes.increment();
            vectored::write(file, pages, offset, if append { vectored::APPEND } else { 0 })
        } else {
            metrics.host_reads.increment();
            vectored::read(file, pages, offset)
        };
        match moved {
            Ok(moved) => {
                done += moved;
                if moved < wanted {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}
