//! What the operations that make names get besides their arguments.

use crate::device::context::context;
use crate::device::in_flight::InFlight;
use crate::fuse::Extensions;
use crate::host::{CreateContext, Label};
use crate::types::Errno;

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
