//! Requests that an earlier process has left unfinished: whether they are executed again. What an operation does of what that
//! process has recorded is with the operation.

use crate::device::in_flight::InFlight;
use crate::device::service::{Finishing, Service};
use crate::fuse::{Opcode, RequestHeader};
use crate::state::{Phase, RequestName};
use crate::types::{FileHandle, NodeId, RequestId};

/// Bytes of a request in the log: its header, and arguments as long as most names.
const LOGGED_MAX: usize = 256;

/// Whether `request`, now with `header`, is one that an earlier process has left and that is to be answered with EIO: its queue was
/// being stopped, or the driver has changed a chain in flight, or it has ended processes, or may have. What was made for it is given
/// back then.
pub(super) fn refuses(service: &Service, request: &mut InFlight, header: &RequestHeader) -> bool {
    let Some(earlier) = request.earlier() else { return false };
    let is_changed = earlier.unique.0 != 0
        && (earlier.unique != header.unique || earlier.opcode.is_some_and(|opcode| u32::from(opcode) != header.opcode));
    let is_quarantined = service.is_quarantined(RequestName { queue: request.id().queue, sequence: earlier.sequence });
    let is_given_up = service.finishing() == Finishing::GivenUp;
    if is_quarantined {
        service.metrics.quarantined.increment();
        log(request, header, "it has ended two workers, the second one while it was executed alone");
    } else if is_given_up {
        log(request, header, "workers died while such requests were in flight");
    } else if !is_changed && earlier.phase != Phase::Withdrawn {
        return false;
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

/// Logs what is known of a request that may be what ends processes.
fn log(request: &mut InFlight, header: &RequestHeader, why: &str) {
    let id = RequestId { unique: header.unique, ..request.id() };
    // The log has no data of files: of these it gets the bytes that are copied of every request.
    let has_data = matches!(Opcode::from_number(header.opcode), Some(Opcode::Write | Opcode::Setxattr));
    if !has_data {
        request.copy_arguments(LOGGED_MAX);
    }
    let begins_with = request.arguments();
    tracing::error!(
        "{id}, opcode {}, node {}, is answered with EIO: {why}; it begins with {begins_with:02x?}",
        header.opcode,
        header.node.0
    );
}
