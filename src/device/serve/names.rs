//! What the operations that change names get besides their arguments.

use crate::device::in_flight::InFlight;
use crate::fuse::Extensions;
use crate::host::{CreateContext, Label, RequestContext};
use crate::types::Errno;

/// Who asks for a change, and whether it is still wanted.
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

/// Creates something for the caller of `request`. EPERM where the caller may not create anything.
pub(super) fn create_with<R>(
    request: &InFlight,
    umask: u32,
    extensions: &Extensions<'_>,
    create: impl FnOnce(&CreateContext<'_>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let label = extensions.label.map(|label| Label { name: label.name, value: label.value });
    create(&request.share().create_context(context(request), umask, extensions.group, label)?)
}
