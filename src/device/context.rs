//! What an operation gets besides its arguments: who asks, whether it is still wanted, and where it records what cannot be repeated.

use super::in_flight::InFlight;
use crate::host::RequestContext;

/// The context of `request`.
pub(super) fn context(request: &InFlight) -> RequestContext<'_> {
    let header = request.header();
    RequestContext {
        id: request.id(),
        uid: header.uid,
        gid: header.gid,
        pending: request,
        record: request.record(),
        earlier: request.earlier(),
    }
}
