//! Requests that an earlier process has left unfinished: whether they are executed again. What an operation does of what that
//! process has recorded is with the operation.

use crate::device::in_flight::InFlight;
use crate::fuse::{Opcode, RequestHeader};
use crate::state::{Phase, Unfinished};
use crate::types::{FileHandle, NodeId};

/// Bytes of a request that is given up in the log.
const LOGGED_MAX: usize = 256;

/// Whether `request`, now with `header`, is to be answered with EIO instead: its queue was being stopped, or the driver has changed a
/// chain in flight, or it may be one of those that end processes (`gives_up`). What was made for it is given back then.
pub(super) fn refuses(request: &InFlight, earlier: &Unfinished, header: &RequestHeader, gives_up: bool) -> bool {
    let is_changed = earlier.unique.0 != 0
        && (earlier.unique != header.unique || earlier.opcode.is_some_and(|opcode| u32::from(opcode) != header.opcode));
    if !is_changed && !gives_up && earlier.phase != Phase::Withdrawn {
        return false;
    }
    if gives_up {
        let arguments = request.arguments();
        tracing::error!(
            "{} (opcode {}, node {}) is answered with EIO: workers died while such requests were in flight; it begins with {:02x?}",
            request.id(),
            header.opcode,
            header.node.0,
            &arguments[..arguments.len().min(LOGGED_MAX)]
        );
    }
    let share = request.share();
    // A READDIRPLUS records a number of nodes there.
    let counts_one = earlier.opcode != Some(Opcode::Readdirplus as u16);
    if earlier.counted != NodeId(0) && counts_one {
        share.uncount(earlier.counted, request.record());
    }
    if earlier.handle != FileHandle::NONE {
        share.release_unanswered(earlier.handle);
    }
    true
}
