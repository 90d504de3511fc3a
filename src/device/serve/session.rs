//! INIT: what the guest and the share agree on.

use crate::device::answer::answer;
use crate::device::features::{features_of, flags_of};
use crate::device::in_flight::{Answered, InFlight};
use crate::device::service::Service;
use crate::fuse::{InitError, InitRequest, Limits, negotiate};
use crate::info_limited;
use crate::types::Errno;

/// Descriptors of a chain that carry no page: the guest keeps four for headers and arguments
/// (FUSE_HEADER_OVERHEAD of `fs/fuse/virtio_fs.c`).
const HEADER_DESCRIPTORS: u16 = 4;

/// INIT. EPROTO for a guest that is too old, or lacks what the options require; EIO and ENOMEM as in [`Service::begin_fuse`].
pub(super) fn init(service: &Service, init: &InitRequest, request: InFlight) -> Answered {
    let share = request.share();
    let max_pages = request.queue_size().saturating_sub(HEADER_DESCRIPTORS).clamp(1, service.options.max_pages.max(1));
    let offered = match share.offered_features(features_of(init.flags)) {
        Ok(features) => features,
        Err(lacks) => {
            tracing::error!("{lacks}");
            return request.error(Errno::EPROTO);
        }
    };
    let limits = Limits { wanted: flags_of(offered), max_pages };
    match negotiate(init, &limits) {
        Ok((out, negotiated)) => {
            if let Err(errno) = service.begin_fuse(&negotiated, || request.is_wanted()) {
                return request.error(errno);
            }
            let queues = service.running_request_queues();
            info_limited!(service.limiter; "the guest mounted the share: FUSE {}.{} in its kernel, {queues} request queue(s)", init.major, init.minor);
            tracing::debug!("FUSE 7.{} session: flags {:#x}, {} pages a request", negotiated.minor, negotiated.flags, out.max_pages);
            answer(Ok(out), request)
        }
        Err(InitError::RetryWithOurs(out)) => answer(Ok(out), request),
        Err(InitError::TooOld) => {
            tracing::error!("the guest speaks FUSE {}.{}; 7.27 (Linux 4.20) or newer is needed", init.major, init.minor);
            request.error(Errno::EPROTO)
        }
    }
}
