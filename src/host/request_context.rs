//! Who asks for a change: the request, its caller, and whether the change is still wanted.

use crate::types::{Errno, GuestGid, GuestUid, RequestId};

/// Tells whether an answer is still waited for.
pub trait Pending {
    /// False once the request was answered by somebody else: its queue was stopped, and the host had not finished it.
    fn is_wanted(&self) -> bool;
}

/// What a request that changes names tells besides its arguments.
#[derive(Clone, Copy)]
pub struct RequestContext<'r> {
    /// The request.
    pub id: RequestId,
    /// The guest's user that asks.
    pub uid: GuestUid,
    /// And group.
    pub gid: GuestGid,
    /// Whether it waits for its answer.
    pub pending: &'r dyn Pending,
}

impl std::fmt::Debug for RequestContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestContext").field("id", &self.id).field("uid", &self.uid).field("gid", &self.gid).finish_non_exhaustive()
    }
}

impl RequestContext<'_> {
    /// To be called before a change, after what may have waited for the host: EIO where the request was answered meanwhile,
    /// so that nothing changes after the guest was told of a failure.
    pub fn check_wanted(&self) -> Result<(), Errno> {
        if self.pending.is_wanted() {
            return Ok(());
        }
        tracing::debug!("{} was given up before it changed anything", self.id);
        Err(Errno::EIO)
    }
}
