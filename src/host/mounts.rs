//! One open descriptor for each mount that the guest's inodes lie on: open_by_handle_at(2) needs it. A
//! mount's descriptor is closed with its last inode, so that the host can unmount it then.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;

/// The mounts in use.
#[derive(Debug, Default)]
pub struct Mounts {
    by_id: RwLock<FxHashMap<u64, Mount>>,
}

#[derive(Debug)]
struct Mount {
    fd: Arc<OwnedFd>,
    inodes: u64,
}

impl Mounts {
    /// The descriptor of mount `id`.
    pub fn get(&self, id: u64) -> Option<Arc<OwnedFd>> {
        self.by_id.read().get(&id).map(|m| Arc::clone(&m.fd))
    }

    /// Counts one more inode on mount `id`, whose descriptor is `fd` if it had none. False, and nothing
    /// counted, where there is neither.
    pub fn add_inode(&self, id: u64, fd: Option<OwnedFd>) -> bool {
        let mut by_id = self.by_id.write();
        if let Some(mount) = by_id.get_mut(&id) {
            mount.inodes += 1;
            return true;
        }
        let Some(fd) = fd else { return false };
        by_id.insert(id, Mount { fd: Arc::new(fd), inodes: 1 });
        true
    }

    /// Counts one inode less.
    pub fn remove_inode(&self, id: u64) {
        let mut by_id = self.by_id.write();
        if let Some(mount) = by_id.get_mut(&id) {
            mount.inodes -= 1;
            if mount.inodes == 0 {
                by_id.remove(&id);
            }
        }
    }
}
