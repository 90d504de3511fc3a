//! One open descriptor for each mount that the guest's inodes are on: open_by_handle_at(2) needs it. A mount's descriptor is
//! closed with its last inode, so that the host can unmount it; that of the share's own mount stays, as the root does, and is
//! found without a lock.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::state::{MountNote, MountRecords, MountSlot};

/// The mounts in use.
#[derive(Debug)]
pub(super) struct Mounts {
    /// The share's own mount.
    root_id: u64,
    root_fd: OwnedFd,
    /// The mounts below it.
    by_id: RwLock<FxHashMap<u64, Mount>>,
    /// Mounts whose inodes are kept as descriptors, although they have handles.
    by_descriptor: RwLock<FxHashSet<u64>>,
    /// The same for a process that goes on with the session.
    records: Arc<MountRecords>,
}

/// Mounts whose inodes are kept as descriptors and that are recorded; of others each new inode examines the mount again.
const BY_DESCRIPTOR_MAX: usize = 4096;

#[derive(Debug)]
struct Mount {
    fd: Arc<OwnedFd>,
    inodes: u64,
    slot: MountSlot,
}

/// The descriptor of a mount.
#[derive(Debug)]
pub(super) enum MountFd<'m> {
    /// That of the share's own.
    Root(&'m OwnedFd),
    /// That of a mount below it.
    Below(Arc<OwnedFd>),
}

impl AsFd for MountFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            MountFd::Root(fd) => fd.as_fd(),
            MountFd::Below(fd) => fd.as_fd(),
        }
    }
}

impl Mounts {
    /// The share's own mount, `root_id`, with its descriptor.
    pub fn new(root_id: u64, root_fd: OwnedFd, records: Arc<MountRecords>) -> Mounts {
        Mounts { root_id, root_fd, by_id: RwLock::default(), by_descriptor: RwLock::default(), records }
    }

    /// The same with a mount that a process which died had open for `inodes` inodes. Closed where there are none.
    pub fn with_open(mut self, id: u64, inodes: u64, fd: OwnedFd, slot: MountSlot) -> Mounts {
        let by_id = self.by_id.get_mut();
        if inodes > 0 && id != self.root_id && !by_id.contains_key(&id) {
            by_id.insert(id, Mount { fd: Arc::new(fd), inodes, slot });
        } else {
            self.records.remove(slot);
        }
        self
    }

    /// The same with mounts whose inodes are kept as descriptors.
    pub fn with_descriptors(mut self, ids: Vec<u64>) -> Mounts {
        self.by_descriptor.get_mut().extend(ids);
        self
    }

    /// The descriptor of the share's own mount.
    pub fn root_fd(&self) -> &OwnedFd {
        &self.root_fd
    }

    /// Adds the numbers of the descriptors to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.push(self.root_fd.as_raw_fd());
        named.extend(self.by_id.read().values().map(|mount| mount.fd.as_raw_fd()));
    }

    /// The descriptor of mount `id`.
    pub fn get(&self, id: u64) -> Option<MountFd<'_>> {
        if id == self.root_id {
            return Some(MountFd::Root(&self.root_fd));
        }
        self.by_id.read().get(&id).map(|m| MountFd::Below(Arc::clone(&m.fd)))
    }

    /// Whether inodes of mount `id`, below the share's own, can be kept as handles; `None` where it was not examined yet.
    pub fn keeps_handles(&self, id: u64) -> Option<bool> {
        if self.by_descriptor.read().contains(&id) {
            return Some(false);
        }
        self.by_id.read().contains_key(&id).then_some(true)
    }

    /// Records that inodes of mount `id` are kept as descriptors, until the session ends: the kernel may give its number to
    /// another mount later. False where that was recorded before, or there are too many.
    pub fn keep_descriptors(&self, id: u64) -> bool {
        let mut by_descriptor = self.by_descriptor.write();
        let is_new = by_descriptor.len() < BY_DESCRIPTOR_MAX && by_descriptor.insert(id);
        if is_new {
            self.records.add(MountNote::ByDescriptor { mount_id: id });
        }
        is_new
    }

    /// Counts one more inode on mount `id`, whose descriptor is `fd` if it had none. False, and nothing
    /// counted, where there is neither.
    pub fn add_inode(&self, id: u64, fd: Option<OwnedFd>) -> bool {
        if id == self.root_id {
            return true;
        }
        let mut by_id = self.by_id.write();
        if let Some(mount) = by_id.get_mut(&id) {
            mount.inodes += 1;
            return true;
        }
        let Some(fd) = fd else { return false };
        let slot = self.records.add(MountNote::Open { mount_id: id, fd: fd.as_raw_fd() });
        by_id.insert(id, Mount { fd: Arc::new(fd), inodes: 1, slot });
        true
    }

    /// Counts one inode less.
    pub fn remove_inode(&self, id: u64) {
        if id == self.root_id {
            return;
        }
        let mut by_id = self.by_id.write();
        let Some(mount) = by_id.get_mut(&id) else { return };
        mount.inodes -= 1;
        let unused = if mount.inodes == 0 { by_id.remove(&id) } else { None };
        if let Some(mount) = &unused {
            self.records.remove(mount.slot);
        }
        drop(by_id);
        // Closed outside the lock: a mount that the host has unmounted may go with it.
        drop(unused);
    }
}
