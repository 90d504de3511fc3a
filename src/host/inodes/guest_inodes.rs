//! The inodes that the guest knows: the table, their mounts and the inode numbers shown to the guest.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use super::holding::Holding;
use super::identity::{FileKey, ino_in_handle};
use super::mounts::Mounts;
use super::numbers::InodeNumbers;
use super::root::{Root, RootFault};
use super::table::{Forgotten, InodeTable};
use crate::host::files::OpenFiles;
use crate::state::{AttachedInodes, AttachedMounts, AttachedRoot, InodeIdentity, InodeRecords, MountRecords};
use crate::sys::file_handle::Handle;
use crate::sys::stat::Statx;
use crate::types::{Errno, NodeId};

/// The inodes that the guest knows.
#[derive(Debug)]
pub(in crate::host) struct Inodes {
    pub(super) table: InodeTable,
    pub(super) mounts: Mounts,
    numbers: InodeNumbers,
    pub(super) root: Root,
    pub(super) files: Arc<OpenFiles>,
    pub(super) holding: Holding,
    /// Generation of every inode but the root; random per session. An NFS client in the guest that uses a node id of an earlier
    /// session gets ESTALE.
    generation: u64,
}

/// What a process that died has left of its inodes.
#[derive(Debug)]
pub(in crate::host) struct Attached {
    /// Their records.
    pub inodes: AttachedInodes,
    /// Their mounts and devices.
    pub mounts: AttachedMounts,
    /// The root's descriptors.
    pub root: AttachedRoot,
}

impl Inodes {
    /// A table over `records` with the root only, which is open behind both descriptors; `path_fd` is an O_PATH one.
    ///
    /// # Errors
    /// ENFILE where the table has no room.
    pub fn new(
        root: Root,
        (records, mount_records): (InodeRecords, MountRecords),
        (root_fd, path_fd): (OwnedFd, OwnedFd),
        files: Arc<OpenFiles>,
    ) -> Result<Inodes, RootFault> {
        let table = InodeTable::new(records);
        let mount_records = Arc::new(mount_records);
        let mounts = Mounts::new(root.identity.mount_id, root_fd, Arc::clone(&mount_records));
        let numbers = InodeNumbers::new(mount_records, Vec::new(), Vec::new());
        let inodes = Inodes { table, mounts, numbers, root, files, holding: Holding::new(), generation: random_generation() };
        let identity = &inodes.root.identity;
        let path_fd = inodes.files.pinnable_open(path_fd);
        inodes.table.insert_pinned(identity, None, |node| inodes.files.pin_path_fd(node, path_fd))?;
        // Slots begin at a random generation, so that an id of an earlier session is valid here with a probability of 2^-31.
        // Not 0, which a slot has that was never used.
        let first = (u32::try_from(inodes.generation).unwrap_or(u32::MAX) >> 1).max(1);
        inodes.table.begin_at(first);
        inodes.files.begin_at(first);
        Ok(inodes)
    }

    /// The inodes of a process that died. Its damaged records are dropped, and so is each node with one of the descriptors that
    /// `is_contested` says are not its own.
    pub fn recovered(root: Root, attached: Attached, files: Arc<OpenFiles>, is_contested: impl Fn(RawFd) -> bool) -> Inodes {
        let Attached { inodes, mounts, root: AttachedRoot { root_fd, path_fd, generation } } = attached;
        let AttachedInodes { records, pinned, retained, by_mount } = inodes;
        let AttachedMounts { records: mount_records, open, announced, by_descriptor, devices } = mounts;
        let table = InodeTable::recovered(records, retained);
        let mount_records = Arc::new(mount_records);
        let mut mounts = Mounts::new(root.identity.mount_id, root_fd, Arc::clone(&mount_records)).with_descriptors(by_descriptor);
        for (id, fd, slot) in open {
            if is_contested(fd.number()) {
                mount_records.remove(slot);
            } else {
                mounts = mounts.with_open(id, by_mount.get(&id).copied().unwrap_or(0), fd.own(), slot);
            }
        }
        let numbers = InodeNumbers::new(mount_records, announced, devices);
        let inodes = Inodes { table, mounts, numbers, root, files, holding: Holding::new(), generation };
        inodes.files.pin_path_fd(NodeId::ROOT, inodes.files.pinnable_open(path_fd));
        for pinned in pinned {
            let node = pinned.node();
            if is_contested(pinned.number()) {
                inodes.table.drop_node(node);
            } else {
                inodes.files.pin_path_fd(node, inodes.files.pinnable_open(pinned.own()));
            }
        }
        inodes
    }

    /// Adds the numbers of the descriptors that inodes and their mounts keep to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        self.mounts.name_descriptors(named);
    }

    /// The generation of every inode but the root.
    pub fn session_generation(&self) -> u64 {
        self.generation
    }

    /// Descriptors of the root's mount and an O_PATH one of the root, for another table. ESTALE where they are gone.
    pub fn root_descriptors(&self) -> Result<(OwnedFd, OwnedFd), RootFault> {
        let path_fd = self.files.path_fd(NodeId::ROOT).ok_or(Errno::ESTALE)?;
        Ok((self.mounts.root_fd().try_clone()?, path_fd.try_clone()?))
    }

    /// The root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The key of the root.
    pub fn root_key(&self) -> FileKey {
        FileKey::of_record(&self.root.identity)
    }

    /// Which file `node` is; ESTALE where there is no such node.
    pub fn identity(&self, node: NodeId) -> Result<InodeIdentity, Errno> {
        self.table.identity(node)
    }

    /// S_IFMT bits of `node`; ESTALE where there is no such node.
    pub fn kind(&self, node: NodeId) -> Result<u32, Errno> {
        self.table.kind(node)
    }

    /// Whether `node` is on the root's mount; false where there is no such node.
    pub fn is_on_root_mount(&self, node: NodeId) -> bool {
        self.table.identity(node).is_ok_and(|identity| identity.mount_id == self.root.identity.mount_id)
    }

    /// Whether the guest has looked `node` up and not forgotten it.
    pub fn is_looked_up(&self, node: NodeId) -> bool {
        self.table.is_looked_up(node)
    }

    /// The generation that goes with the id of `node`.
    pub fn generation(&self, node: NodeId) -> u64 {
        if node == NodeId::ROOT { 0 } else { self.generation }
    }

    /// Whether the guest may know the file that has `handle` in the root's file system.
    pub fn may_know(&self, handle: &Handle) -> bool {
        let Some(ino) = ino_in_handle(handle) else { return true };
        self.table.knows(&FileKey { ino, ..self.root_key() })
    }

    /// The inode number shown to the guest for the file with `key`. `announces`: mounts are announced to the guest.
    pub fn number(&self, key: &FileKey, announces: bool) -> u64 {
        self.numbers.number(key, &self.root_key(), announces)
    }

    /// Whether `st` is the root directory of a mount below the share.
    pub fn is_submount(&self, st: &Statx) -> bool {
        let is_mount_root = st.stx_attributes.bits() & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0;
        let is_directory = u32::from(st.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        is_mount_root && is_directory && st.stx_mnt_id != self.root.identity.mount_id
    }

    /// Records that the mount whose root `st` describes is announced to the guest.
    pub fn announce(&self, st: &Statx) {
        self.numbers.announce(&FileKey::of(st));
    }

    /// Every node.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.table.nodes()
    }

    /// Lookups of `node` that were not forgotten.
    #[cfg(feature = "failpoints")]
    pub fn lookups(&self, node: NodeId) -> u64 {
        self.table.lookups(node)
    }

    /// Takes `count` lookups off `node`; an unknown node is ignored. `retain` is called with the last lookup, under the lock of
    /// the node: whether the node is kept for a later lookup by its id. To be followed by [`Inodes::close_forgotten`].
    pub fn forget(&self, node: NodeId, count: u64, retain: impl FnOnce(&InodeIdentity) -> bool) -> Forgotten {
        self.table.forget(node, count, retain)
    }

    /// Closes what a forgotten `node` and the freed one kept open.
    pub fn close_forgotten(&self, node: NodeId, forgotten: &Forgotten) {
        if forgotten.is_last {
            self.files.close_node(node);
        }
        let sparse = forgotten.sparse.clone().into_iter().flat_map(|slots| self.table.free_retained(slots));
        for (freed, identity) in forgotten.freed.into_iter().chain(sparse) {
            if freed != node {
                self.files.close_node(freed);
            }
            if identity.handle.is_some() {
                self.mounts.remove_inode(identity.mount_id);
            }
        }
    }
}

/// A random number of 32 bits, as the protocol's users keep it, not 0.
fn random_generation() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() & 0xffff_ffff | 1
}
