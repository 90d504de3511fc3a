//! The request that makes a change: its identity, its caller, whether it still waits for an answer, and how far a process that died
//! had come with it.

use crate::state::{Phase, RequestRecord, Unfinished};
use crate::sys::failpoint::crash_point;
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

/// What a process that died has left of the call of a request that cannot simply be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It was not made, or nobody died.
    Nothing,
    /// It may have been made. What the operation noted of the time before it.
    Begun(i64),
    /// It has returned.
    Made(Result<i64, Errno>),
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

    /// Makes `call`, which cannot simply be repeated, and records that it is begun and what it returned. `before` is what its
    /// repetition needs to know of the time before.
    pub fn once<R>(&self, before: i64, call: impl FnOnce() -> Result<R, Errno>) -> Result<R, Errno> {
        self.once_counted(before, call, |_| 0)
    }

    /// As [`RequestContext::once`], for a call that returns a count: `count` says which.
    pub fn once_counted<R>(&self, before: i64, call: impl FnOnce() -> Result<R, Errno>, count: impl FnOnce(&R) -> i64) -> Result<R, Errno> {
        self.record.begin(before);
        crash_point!("begun");
        let made = call();
        self.note_result(made.as_ref().map(count).map_err(|errno| *errno));
        crash_point!("made");
        made
    }

    /// As [`RequestContext::once`], for a call that fails where it was made before: `says_made` says with which error.
    pub fn once_or_made(&self, call: impl FnOnce() -> Result<(), Errno>, says_made: impl FnOnce(Errno) -> bool) -> Result<(), Errno> {
        match self.left() {
            Left::Nothing => self.once(0, call),
            Left::Made(made) => made.map(|_| ()),
            Left::Begun(_) => self.once(0, || call().or_else(|errno| if says_made(errno) { Ok(()) } else { Err(errno) })),
        }
    }

    /// Records the result of a call that was begun: a count, or the error. A later result replaces it, as where what was made is
    /// removed again.
    pub fn note_result(&self, result: Result<i64, Errno>) {
        self.record.note_made(result.unwrap_or_else(|errno| -i64::from(errno.raw())));
    }

    /// What a process that died has left of its call.
    #[inline]
    pub fn left(&self) -> Left {
        self.earlier.as_ref().map_or(Left::Nothing, Left::of)
    }

    /// Whether a process that died may have made its call.
    pub fn is_repeated(&self) -> bool {
        self.left() != Left::Nothing
    }
}

impl Left {
    /// What is left of the call of the request `earlier`.
    pub fn of(earlier: &Unfinished) -> Left {
        match earlier.phase {
            // What an engine had may have been made, too.
            Phase::Begun | Phase::Submitted => Left::Begun(earlier.before),
            Phase::Made if earlier.result >= 0 => Left::Made(Ok(earlier.result)),
            // The record may be damaged; then it is an error of some kind.
            Phase::Made => Left::Made(Err(Errno::from_raw(i32::try_from(earlier.result.unsigned_abs()).unwrap_or(libc::EIO)))),
            _ => Left::Nothing,
        }
    }
}
