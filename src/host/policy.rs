//! What is in force on a share: the options, as far as the host's file system and this process support them. Computed once and
//! never changed.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use super::caching::{CachePolicy, Timeouts};
use super::files::Descriptors;
use super::fs_limits::{self, FsLimit};
use super::options::{Options, TmpfilePolicy};
use super::rights::{RightsPolicy, Translation};
use super::share_error::ShareError;
use crate::sys::identity;
use crate::sys::stat::{self, Statx};
use crate::types::{HostGid, HostUid};

/// What is in force. See [`Options`] for fields without a comment.
#[derive(Debug)]
pub(super) struct Policy {
    pub path: PathBuf,
    pub cache: CachePolicy,
    pub timeouts: Timeouts,
    pub allow_mmap: bool,
    pub readonly: bool,
    pub readdirplus: bool,
    pub announce_submounts: bool,
    pub preserve_noatime: bool,
    pub birth_times: bool,
    pub allow_direct_io: bool,
    pub writeback: bool,
    pub xattr: bool,
    pub allow_project_ids: bool,
    pub translation: Translation,
    pub rights: RightsPolicy,
    pub host_locks: bool,
    pub lock_wait: Option<Duration>,
    pub tmpfile: TmpfilePolicy,
    /// How many descriptors the guest's objects may hold.
    pub descriptors: Descriptors,
    /// The share's file system is one of the host's own kernel and disks, where a close(2) has no error to report.
    pub is_local: bool,
    /// What the share's file system does not support.
    pub fs_limits: Vec<FsLimit>,
    /// The daemon's own ids: a caller with these needs no switch of credentials.
    pub own_ids: (HostUid, HostGid),
}

impl Policy {
    /// What is in force of `options` on the file system behind `root`, of which `st` was taken.
    ///
    /// # Errors
    /// [`ShareError::NoLabels`] where labels are required and not supported; [`ShareError::Root`] where a system call fails.
    pub fn new(options: Options, descriptors: Descriptors, root: BorrowedFd<'_>, st: &Statx) -> Result<Policy, ShareError> {
        let path = options.shared_dir;
        let failed = |errno| ShareError::Root { path: path.clone(), errno };
        let is_local = stat::is_local(root).map_err(failed)?;
        let rights = RightsPolicy::new(options.rights, options.xattr, root, &path, is_local);
        let rights = rights.ok_or_else(|| ShareError::NoLabels { path: path.clone() })?;
        let fs_limits = fs_limits::of(root, st, options.readonly).map_err(failed)?;
        Ok(Policy {
            cache: options.cache,
            timeouts: options.timeouts,
            allow_mmap: options.allow_mmap,
            readonly: options.readonly,
            readdirplus: options.readdirplus,
            announce_submounts: options.announce_submounts,
            preserve_noatime: options.preserve_noatime,
            birth_times: options.birth_times,
            allow_direct_io: options.allow_direct_io,
            writeback: options.writeback,
            xattr: options.xattr,
            allow_project_ids: options.allow_project_ids,
            translation: options.translation,
            rights,
            host_locks: options.host_locks,
            lock_wait: options.lock_wait,
            tmpfile: options.tmpfile,
            descriptors,
            is_local,
            fs_limits,
            own_ids: identity::effective(),
            path,
        })
    }
}
