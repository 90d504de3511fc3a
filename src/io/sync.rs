//! The synchronous engine: one vectored call a transfer, or the least number of calls where a transfer
//! has more pages than a call takes.

use super::transfer::{Direction, Transfer};
use crate::guest::PageDescriptor;
use crate::metrics::Counter;
use crate::sys::vectored::{self, SEGMENTS_MAX};
use crate::types::Errno;

/// Carries out `transfer` and tells how many bytes moved, counting each host call in `calls`.
///
/// A short transfer ends it: on a regular file that is the end of the file or a full disk, and both
/// are what the guest should hear. An error counts only if nothing moved before it.
pub fn run(transfer: &Transfer<'_>, calls: &Counter) -> Result<usize, Errno> {
    let mut done = 0;
    for pages in transfer.pages.chunks(SEGMENTS_MAX) {
        calls.increment();
        let wanted: usize = pages.iter().map(PageDescriptor::len).sum();
        let offset = transfer.offset + done as u64;
        let moved = match transfer.direction {
            Direction::Read => vectored::read(transfer.file, pages, offset),
            Direction::Write { append } => vectored::write(transfer.file, pages, offset, if append { vectored::APPEND } else { 0 }),
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
