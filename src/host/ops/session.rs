//! INIT, and the end of a session.

use crate::host::caching::CachePolicy;
use crate::host::features::{Feature, Features};
use crate::host::rights::UnsupportedGuest;
use crate::host::share::Share;
use crate::types::NodeId;

impl Share {
    /// Features to offer to a guest that supports `guest`. An error where it lacks one that an option requires.
    pub fn offered_features(&self, guest: Features) -> Result<Features, UnsupportedGuest> {
        let policy = &self.policy;
        let (no_open, no_opendir) = self.offers_no_open();
        let rights = policy.rights.offered(guest)?;
        let caching = policy.cache.features(policy.allow_mmap);
        Ok((rights | caching)
            .with(Feature::CreateGroup)
            .with_if(policy.readdirplus, Feature::Readdirplus)
            .with_if(policy.announce_submounts, Feature::Submounts)
            .with_if(no_opendir, Feature::NoOpendir)
            .with_if(no_open, Feature::NoOpen)
            // A guest that sends no OPEN would take O_TRUNC as done; without this it sends SETATTR, which is refused.
            .with_if(!no_open, Feature::AtomicTruncate)
            .with_if(self.is_by_handle(), Feature::Export)
            .with_if(policy.writeback, Feature::Writeback)
            .with_if(policy.host_locks, Feature::PosixLocks)
            .with_if(policy.host_locks, Feature::FlockLocks))
    }

    /// Whether the guest need not open files, and directories. Directories: where it may cache what it listed. Files: where in
    /// addition nothing removes or changes them, so that no handle must keep them alive, and O_DIRECT, which comes with OPEN, has
    /// no effect.
    fn offers_no_open(&self) -> (bool, bool) {
        let policy = &self.policy;
        let no_opendir = policy.cache == CachePolicy::Always;
        (no_opendir && policy.readonly && !policy.allow_direct_io, no_opendir)
    }

    /// Begins the FUSE session with the negotiated features. `word` says the same to the caller, who finds it again in
    /// [`Share::negotiated_word`] if this process dies; not 0.
    pub fn begin_session(&self, negotiated: Features, word: u64) {
        self.session.begin(negotiated, word);
    }

    /// What [`Share::begin_session`] got, also in the process that died; 0 where there is no session.
    pub fn negotiated_word(&self) -> u64 {
        self.session.negotiated_word()
    }

    /// Begins to watch the root, where there is a watch; to be called once the session has begun.
    pub fn watch_root(&self) {
        self.freshness.watch_directory(NodeId::ROOT);
    }

    /// The session ends: no node is retained and no lock is taken any more, and the watch is the next session's.
    pub(in crate::host) fn mark_ended(&self) {
        self.session.end();
        self.freshness.end();
    }

    /// Closes every handle and forgets every node but the root; the session has ended. What a request that is still in progress
    /// opens afterwards is closed with the share itself.
    pub(in crate::host) fn close_session(&self) {
        self.directories.clear();
        self.files.close_handles();
        for node in self.inodes.nodes() {
            self.forget(node, u64::MAX);
        }
        self.locks.clear();
        self.session.mark_closed();
    }
}
