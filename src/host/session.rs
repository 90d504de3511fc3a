//! The FUSE session of a share: what INIT negotiated, and how far its end has come.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::features::{Feature, Features};
use crate::state::{Agreed, SessionRecord};
use crate::types::GuestUid;

/// The session's state; nothing is negotiated before it begins and after it ends.
#[derive(Debug)]
pub(super) struct FuseSession {
    /// For a process that goes on with the session.
    record: SessionRecord,
    /// [`Features::bits`] of the negotiated features.
    features: AtomicU32,
    has_ended: AtomicBool,
    is_closing: AtomicBool,
    is_closed: AtomicBool,
}

impl FuseSession {
    /// The session of `record`: one that has not begun, or that another process had begun, or ended.
    pub fn new(record: SessionRecord) -> FuseSession {
        let (features, has_ended) = (record.agreed().map_or(0, |agreed| agreed.features), record.has_ended());
        let closing = AtomicBool::new(false);
        FuseSession {
            features: features.into(),
            has_ended: has_ended.into(),
            is_closing: closing,
            is_closed: AtomicBool::new(false),
            record,
        }
    }

    /// Begins the session with the negotiated features. `negotiated` is for the caller, not 0.
    pub fn begin(&self, features: Features, negotiated: u64) {
        self.features.store(features.bits(), Ordering::Relaxed);
        self.record.begin(Agreed { features: features.bits(), negotiated });
    }

    /// What [`FuseSession::begin`] got; 0 before it and after the end.
    pub fn negotiated_word(&self) -> u64 {
        self.record.agreed().map_or(0, |agreed| agreed.negotiated)
    }

    /// Whether INIT negotiated `feature`.
    pub fn negotiated(&self, feature: Feature) -> bool {
        Features::from_bits(self.features.load(Ordering::Relaxed)).has(feature)
    }

    /// Ends the session: from here on no node is retained and no lock is taken.
    pub fn end(&self) {
        self.record.end();
        self.features.store(0, Ordering::Relaxed);
        self.has_ended.store(true, Ordering::SeqCst);
    }

    /// Whether the session has ended.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Whether the caller is the first that closes what the session held.
    pub fn begin_closing(&self) -> bool {
        !self.is_closing.swap(true, Ordering::Relaxed)
    }

    /// Records that what the session held is closed.
    pub fn mark_closed(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Whether what the session held is closed.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Whether the guest's POSIX locks or flock(2) locks were negotiated.
    pub fn has_locks(&self) -> bool {
        self.negotiated(Feature::PosixLocks) || self.negotiated(Feature::FlockLocks)
    }

    /// Whether the guest writes back from its page cache.
    pub fn has_writeback(&self) -> bool {
        self.negotiated(Feature::Writeback)
    }

    /// Whether the guest sends no OPEN for files. A lock on the host is held by an open file, so not with locks.
    pub fn has_no_open(&self) -> bool {
        self.negotiated(Feature::NoOpen) && !self.has_locks()
    }

    /// Whether the guest sends no OPENDIR.
    pub fn has_no_opendir(&self) -> bool {
        self.negotiated(Feature::NoOpendir)
    }

    /// Whether the guest enforces POSIX ACLs and leaves the umask to the daemon.
    pub fn has_acls(&self) -> bool {
        self.negotiated(Feature::PosixAcl)
    }

    /// Whether a write or truncation clears setuid and setgid: always with the first version of killpriv, otherwise where the
    /// request says so.
    pub fn clears_suidgid(&self, requested: bool) -> bool {
        requested || self.negotiated(Feature::ClearAlways)
    }

    /// As [`FuseSession::clears_suidgid`], for requests without a flag for it: for every caller but root. A guest whose mounts may
    /// map ids (Linux 6.12) sends no caller; it sends a SETATTR before such a request instead.
    pub fn clears_suidgid_for(&self, caller: GuestUid) -> bool {
        self.clears_suidgid(self.requests_clearing() && caller != GuestUid(0) && caller != GuestUid(u32::MAX))
    }

    /// Whether the guest requests that the daemon clears setuid and setgid (second version of killpriv).
    pub fn requests_clearing(&self) -> bool {
        self.negotiated(Feature::ClearOnRequest)
    }
}
