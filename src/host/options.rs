//! What a share is asked to be: the options of the command line. They are never changed; `policy.rs` has what is in force.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::caching::{CachePolicy, Timeouts};
use crate::host::inodes::FileHandles;
use crate::host::rights::{Rights, Translation};

/// Whether TMPFILE is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TmpfilePolicy {
    /// To guests whose overlayfs supports it.
    Auto,
    /// To every guest.
    Always,
    /// To no guest.
    Never,
}

/// What the share is asked to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory or file that is the guest's root.
    pub shared_dir: PathBuf,
    /// What the guest may cache.
    pub cache: CachePolicy,
    /// How long the guest may cache lookups and attributes.
    pub timeouts: Timeouts,
    /// Let the guest map files whose data it does not cache.
    pub allow_mmap: bool,
    /// Refuse every change with EROFS.
    pub readonly: bool,
    /// Offer READDIRPLUS.
    pub readdirplus: bool,
    /// Announce mount points below the share to the guest.
    pub announce_submounts: bool,
    /// Open a file with O_NOATIME on the host when the guest does.
    pub preserve_noatime: bool,
    /// Serve STATX, the only request with birth times.
    pub birth_times: bool,
    /// Open a file with O_DIRECT on the host when the guest does.
    pub allow_direct_io: bool,
    /// Offer the writeback cache.
    pub writeback: bool,
    /// Serve extended attributes.
    pub xattr: bool,
    /// Let the guest change project ids and PROJINHERIT.
    pub allow_project_ids: bool,
    /// Ids between guest and host.
    pub translation: Translation,
    /// ACLs, labels, setuid bits and names of attributes.
    pub rights: Rights,
    /// The guest's locks are locks on the host; otherwise the guest's kernel holds them.
    pub host_locks: bool,
    /// Time limit of a wait for a lock on the host.
    pub lock_wait: Option<Duration>,
    /// Whether the guest may make files without a name.
    pub tmpfile: TmpfilePolicy,
    /// How inodes are kept.
    pub file_handles: FileHandles,
}
