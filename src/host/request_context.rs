//! The request that makes a change: its identity, its caller, and whether it still waits for an answer.

use crate::state::{RequestRecord, Unfinished};
use crate::types::{Errno, GuestGid, GuestUid, RequestId};

/// Whether a request still waits for its answer.
pub trait Pending {
    /// False once the request was answered with an error, as its queue was stopped before the host had finished it.
    fn is_wanted(&self) -> bool;
}

/// The request that makes a change.
#[derive(Clone, Copy)]
pub struct RequestContext<'r> {
    /// The request.
    pub id: RequestId,
    /// The caller's user.
    pub uid: GuestUid,
    /// The caller's group.
    pub gid: GuestGid,
    /// Whether it waits for its answer.
    pub pending: &'r dyn Pending,
    /// Where it records what cannot be repeated.
    pub record: &'r RequestRecord,
    /// What a process that died has left of it, where it is executed again.
    pub earlier: Option<Unfinished>,
}

impl std::fmt::Debug for RequestContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestContext").field("id", &self.id).field("uid", &self.uid).field("gid", &self.gid).finish_non_exhaustive()
    }
}

impl RequestContext<'_> {
    /// To be called before a change, after any call that may have blocked on the host: EIO where the request was answered
    /// meanwhile, so that nothing changes after the guest got an error.
    pub fn check_wanted(&self) -> Result<(), Errno> {
        if self.pending.is_wanted() {
            return Ok(());
        }
        tracing::debug!("{} was withdrawn before it changed anything", self.id);
        Err(Errno::EIO)
    }
}
