//! Requests that an earlier process has left unfinished: whether they may be executed again. What an operation does of what that
//! process has recorded is with the operation.

use crate::device::in_flight::InFlight;
use crate::fuse::{Opcode, RequestHeader};
use crate::state::{Phase, Unfinished};
use crate::types::{FileHandle, NodeId};

/// Whether `request`, now with `header`, is to be answered with EIO instead: its queue was being stopped, or the driver has changed a
/// chain in flight. What was made for it is given back then.
pub(super) fn refuses(request: &InFlight, earlier: &Unfinished, header: &RequestHeader) -> bool {
    let is_changed = earlier.unique.0 != 0
        && (earlier.unique != header.unique || earlier.opcode.is_some_and(|opcode| u32::from(opcode) != header.opcode));
    if !is_changed && earlier.phase != Phase::Withdrawn {
        return false;
    }
    let share = request.share();
    // A READDIRPLUS records a number of nodes there.
    let counts_one = earlier.opcode != Some(Opcode::Readdirplus as u16);
    if earlier.counted != NodeId(0) && counts_one {
        share.forget(earlier.counted, 1);
    }
    if earlier.handle != FileHandle::NONE {
        share.release_unanswered(earlier.handle);
    }
    true
}
