//! Locks: GETLK, SETLK, and SETLKW, whose request is suspended and answered when the wait ends.

use super::arguments::{LockChange, lock_change};
use crate::device::answer::answer_done;
use crate::device::in_flight::InFlight;
use crate::device::served::Served;
use crate::device::wire;
use crate::fuse::abi::{LkIn, LkOut};
use crate::host::{LockAnswer, LockWait, Locked, Share};
use crate::types::{Errno, NodeId};

/// GETLK; EINVAL for F_UNLCK, other errors as in [`crate::host::Share::getlk`].
pub(super) fn get(lk: &LkIn, request: &InFlight) -> Result<LkOut, Errno> {
    match lock_change(request.header().node, lk)? {
        LockChange::Lock(wanted) => request.share().getlk(&wanted).map(|conflict| wire::lk_out(lk, conflict)),
        LockChange::Unlock(..) => Err(Errno::EINVAL),
    }
}

/// SETLK, and SETLKW with `wait`; errors as in [`crate::host::Share::setlk`] and [`crate::host::Share::unlock`].
fn set(lk: &LkIn, node: NodeId, share: &Share, wait: Option<LockWait<'_>>) -> Result<Locked, Errno> {
    match lock_change(node, lk)? {
        LockChange::Lock(wanted) => share.setlk(&wanted, wait),
        LockChange::Unlock(handle, owner, span) => share.unlock(node, handle, owner, span).map(|()| Locked::Done),
    }
}

/// SETLK.
pub(super) fn try_set(lk: &LkIn, request: &InFlight) -> Result<(), Errno> {
    set(lk, request.header().node, request.share(), None).map(|_| ())
}

/// SETLKW; errors as in [`crate::host::Share::setlk`].
pub(in crate::device) fn wait(lk: &LkIn, request: InFlight) -> Served {
    let (node, unique) = (request.header().node, request.header().unique);
    let share = request.shared();
    // The request is either here, or waits with its answer.
    let (mut present, mut spent) = (Some(request), None);
    let mut suspend = || -> Result<LockAnswer, Errno> {
        match present.take().map(InFlight::suspend) {
            Some(Ok((suspended, storage))) => {
                spent = Some(storage);
                Ok(Box::new(move |result| suspended.answer(result)))
            }
            Some(Err((request, errno))) => {
                present = Some(request);
                Err(errno)
            }
            None => Err(Errno::EIO),
        }
    };
    let locked = set(lk, node, &share, Some(LockWait { unique, suspend: &mut suspend }));
    match present {
        None => Served::Submitted(spent.map(|storage| storage.finish().1)),
        Some(request) => {
            share.forget_interrupt(unique);
            debug_assert_ne!(locked, Ok(Locked::Waits), "a request that waits is suspended");
            Served::Answered(answer_done(locked.map(|_| ()), request))
        }
    }
}
