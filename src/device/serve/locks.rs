//! SETLKW: a request that waits for a lock is suspended, and answered when the lock is its owner's.

use crate::device::answer::answer_done;
use crate::device::in_flight::InFlight;
use crate::device::served::Served;
use crate::fuse::abi::LkIn;
use crate::host::{LockAnswer, LockWait, Locked};
use crate::types::Errno;

/// SETLKW; errors as in [`crate::host::Share::setlk`].
pub(in crate::device) fn wait(lk: &LkIn, request: InFlight) -> Served {
    let (node, unique) = (request.header().node, request.header().unique);
    let share = request.shared();
    // The request is either here, or waits with its answer.
    let (mut present, mut vacant) = (Some(request), None);
    let mut suspend = || -> Result<LockAnswer, Errno> {
        match present.take().map(InFlight::suspend) {
            Some(Ok((suspended, storage))) => {
                vacant = Some(storage);
                Ok(Box::new(move |result| suspended.answer(result)))
            }
            Some(Err((request, errno))) => {
                present = Some(request);
                Err(errno)
            }
            None => Err(Errno::EIO),
        }
    };
    let locked = share.setlk(node, lk, Some(LockWait { unique, suspend: &mut suspend }));
    match present {
        None => Served::Submitted(vacant),
        Some(request) => {
            share.forget_interrupt(unique);
            debug_assert_ne!(locked, Ok(Locked::Waits), "a request that waits is suspended");
            Served::Answered(answer_done(locked.map(|_| ()), request))
        }
    }
}
