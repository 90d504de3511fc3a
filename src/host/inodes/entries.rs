//! From a name on the host to the guest's node: LOOKUP's way, and what the answer says of the file.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::fuse::abi::{ATTR_SUBMOUNT, Attr, AttrOut, EntryOut, init_flags};
use crate::host::attributes;
use crate::host::inodes::table::{FileKey, Inserted};
use crate::host::share::{FileHandles, Share};
use crate::state::InodeIdentity;
use crate::sys::file_handle::{self, Handle};
use crate::sys::stat::{self, Statx};
use crate::types::{Errno, NodeId};

/// Directories above one another that LOOKUP of ".." goes through: as many as a path can name (PATH_MAX).
const DEPTH_MAX: usize = 2048;

impl Share {
    /// Looks `name` up in the directory `within`, which is behind `parent`, and counts the lookup: one system call for a file
    /// that the guest knows.
    pub(in crate::host) fn look_up_at(&self, within: NodeId, parent: BorrowedFd<'_>, name: &CStr) -> Result<EntryOut, Errno> {
        let st = stat::at(parent, name)?;
        if let Some(node) = self.inodes.look_up(&key_of(&st), birth_ns(&st)) {
            return Ok(self.entry(within, node, &st));
        }
        self.look_up_new(within, parent, name, &st)
    }

    /// As `look_up_at`, for a file that was just opened: `fd` is the file itself.
    pub(in crate::host) fn look_up_open(&self, within: NodeId, fd: BorrowedFd<'_>) -> Result<EntryOut, Errno> {
        let st = stat::of(fd)?;
        if let Some(node) = self.inodes.look_up(&key_of(&st), birth_ns(&st)) {
            return Ok(self.entry(within, node, &st));
        }
        let keeps_handles = self.keeps_handles(&st, || Ok(fd))?;
        let handle = if keeps_handles { file_handle::of(fd, c"")?.map(|(h, _)| h) } else { None };
        let found = Found { st: &st, handle, type_seen: true };
        self.insert(within, &found, || self.reopen(fd, libc::O_PATH))
    }

    fn look_up_new(&self, within: NodeId, parent: BorrowedFd<'_>, name: &CStr, st: &Statx) -> Result<EntryOut, Errno> {
        if self.keeps_handles(st, || open_path(parent, name))?
            && let Some((handle, mount_id)) = file_handle::of(parent, name)?
            && mount_id == st.stx_mnt_id
            && self.is_same_file(&handle, parent, name, st)?
        {
            // Two looks at one name: the type is not known of the object behind the handle (`open_node` looks at it).
            let found = Found { st, handle: Some(handle), type_seen: false };
            return self.insert(within, &found, || open_path(parent, name));
        }
        let fd = open_path(parent, name)?;
        let st = stat::of(fd.as_fd())?;
        self.insert(within, &Found { st: &st, handle: None, type_seen: true }, || Ok(fd))
    }

    /// Whether the new inode that `st` describes is to be kept as a handle, where it has one. Each mount decides for itself:
    /// for the first inode of one, `open` gives a descriptor on it.
    fn keeps_handles<F: AsFd>(&self, st: &Statx, open: impl FnOnce() -> Result<F, Errno>) -> Result<bool, Errno> {
        if !self.by_handle || self.options.file_handles == FileHandles::Mandatory {
            return Ok(self.by_handle);
        }
        let mount_id = st.stx_mnt_id;
        if mount_id == self.root.mount_id {
            return Ok(self.is_by_handle());
        }
        if let Some(known) = self.mounts.keeps_handles(mount_id) {
            return Ok(known);
        }
        let fd = open()?;
        // Another mount may lie there by now: nothing is known of this one then, and a descriptor will do.
        if stat::of(fd.as_fd())?.stx_mnt_id != mount_id {
            return Ok(false);
        }
        if !stat::forgets_handles(fd.as_fd())? {
            return Ok(true);
        }
        if self.mounts.keep_descriptors(mount_id) {
            tracing::info!(
                "a FUSE file system is mounted below {}: each inode of it that the guest knows keeps a descriptor open, for its handles \
                 do not outlast the host's cache",
                self.path().display()
            );
        }
        Ok(false)
    }

    /// Whether `handle` seems to be of the file that `st` describes: the name may have changed hands in between. This keeps
    /// most mistaken pairs out of the table; a number that was freed and used again in between passes.
    fn is_same_file(&self, handle: &Handle, parent: BorrowedFd<'_>, name: &CStr, st: &Statx) -> Result<bool, Errno> {
        if let Some(ino) = ino_in_handle(handle) {
            return Ok(ino == st.stx_ino);
        }
        let again = stat::at(parent, name)?;
        Ok(key_of(&again) == key_of(st) && birth_ns(&again) == birth_ns(st))
    }

    /// Makes a node. `open` gives an O_PATH descriptor, for a node that cannot be opened by handle.
    fn insert(&self, within: NodeId, found: &Found<'_>, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<EntryOut, Errno> {
        let identity = InodeIdentity { type_seen: found.type_seen, ..identity_of(found.st, found.handle) };
        if let Some(node) = self.look_up_reborn(&identity) {
            return Ok(self.entry(within, node, found.st));
        }
        if identity.handle.is_none() {
            return self.insert_pinned(within, found.st, open()?);
        }
        if !self.mounts.add_inode(identity.mount_id, None) {
            // The first file of another mount: its handle opens with a descriptor on that mount.
            let fd = open()?;
            match self.open_on_mount(fd.as_fd(), identity.mount_id)? {
                Some(mount) => _ = self.mounts.add_inode(identity.mount_id, Some(mount)),
                None => {
                    let st = stat::of(fd.as_fd())?;
                    return self.insert_pinned(within, &st, fd);
                }
            }
        }
        let inserted = self.inodes.insert(&identity, |_| ());
        if !matches!(inserted, Ok(Inserted::New(_))) {
            self.mounts.remove_inode(identity.mount_id);
        }
        let (Inserted::New(node) | Inserted::Known(node)) = inserted?;
        Ok(self.entry(within, node, found.st))
    }

    /// Makes a node that keeps the O_PATH descriptor `fd`, of which `st` was taken.
    fn insert_pinned(&self, within: NodeId, st: &Statx, fd: OwnedFd) -> Result<EntryOut, Errno> {
        if self.options.file_handles == FileHandles::Mandatory {
            return Err(Errno::EOPNOTSUPP);
        }
        let pinned = self.pinnable(fd)?;
        let inserted = self.inodes.insert(&identity_of(st, None), |node| self.path_fds.pin(node, pinned))?;
        let (Inserted::New(node) | Inserted::Known(node)) = inserted;
        Ok(self.entry(within, node, st))
    }

    /// The file behind the O_PATH descriptor `fd`, open for reading, as open_by_handle_at(2) wants one of its mount.
    /// `None` where it cannot be opened, or is on another mount than `mount_id`.
    fn open_on_mount(&self, fd: BorrowedFd<'_>, mount_id: u64) -> Result<Option<OwnedFd>, Errno> {
        // The name may lead elsewhere by now: what counts is the object that is opened.
        let st = stat::of(fd)?;
        let openable = [libc::S_IFDIR, libc::S_IFREG].contains(&attributes::kind(&st));
        if !openable || st.stx_mnt_id != mount_id {
            return Ok(None);
        }
        Ok(self.reopen(fd, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY).ok())
    }

    /// The node of a file whose birth time changed, counted once more: overlayfs tells that of the copy once it has copied a file
    /// up. Its handle says that it is that file; without one, the descriptor that the node holds on to does.
    fn look_up_reborn(&self, identity: &InodeIdentity) -> Option<NodeId> {
        let (key, birth) = (FileKey::of(identity), identity.birth_ns);
        let node = self.inodes.born_before(identity)?;
        if identity.handle.is_none() {
            let now = stat::of(self.path_fds.get(node)?.as_fd()).ok()?;
            if key_of(&now) != key || birth_ns(&now) != birth {
                return None;
            }
        }
        self.inodes.look_up_reborn(&key, node, birth)
    }

    /// Takes `count` lookups off `node`; an unknown node is passed over.
    pub fn forget(&self, node: NodeId, count: u64) {
        let watched = self.watched(node);
        let mut locks = None;
        let forgotten = self.inodes.forget(node, count, |identity| {
            // In one go with the last lookup: a node that is kept in mind may be looked up and locked again at once.
            // Ended later: the host may take long to close a file.
            locks = self.locks.detach(node);
            self.retains(identity)
        });
        if let Some(locks) = locks {
            self.locks.end(locks, Errno::ESTALE);
        }
        if forgotten.is_last {
            self.close_node(node);
            self.unwatch(watched);
        }
        if let Some((freed, identity)) = forgotten.freed {
            self.close_node(freed);
            if identity.handle.is_some() {
                self.mounts.remove_inode(identity.mount_id);
            }
        }
    }

    /// Whether a forgotten file is kept in mind: where the guest may name it by its id later, and its handle finds
    /// it then. Not on other mounts than the share's, which the host must be able to unmount.
    fn retains(&self, identity: &InodeIdentity) -> bool {
        self.agreed(init_flags::EXPORT_SUPPORT) && identity.handle.is_some() && identity.mount_id == self.root.mount_id
    }

    /// Closes what is open of `node` beside the guest's own open files, so that a deleted file's space is free.
    pub(in crate::host) fn close_node(&self, node: NodeId) {
        self.path_fds.remove(node);
        self.handleless.remove(node);
    }

    /// LOOKUP of ".": the node itself, also one that the guest forgot. ESTALE where it or its file is gone.
    pub(in crate::host) fn look_up_self(&self, node: NodeId) -> Result<EntryOut, Errno> {
        let st = stat::of(self.path_fd(node)?.as_fd())?;
        self.inodes.look_up_node(node)?;
        Ok(self.entry(node, node, &st))
    }

    /// LOOKUP of "..": a directory's parent; the root is its own. ENOTDIR for other files, ESTALE for a
    /// directory that the host moved out of the share.
    pub(in crate::host) fn look_up_parent(&self, node: NodeId) -> Result<EntryOut, Errno> {
        if node == NodeId::ROOT {
            return self.look_up_self(node);
        }
        if self.kind(node)? != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        let parent = open_parent(self.path_fd(node)?.as_fd())?;
        self.check_below_root(parent.as_fd())?;
        let entry = self.look_up_open(NodeId::ROOT, parent.as_fd())?;
        // Linux gives the root of an announced mount no generation (fs/fuse/inode.c, fuse_fill_super_submount). With another
        // one it would take the root for stale, and with it the whole mount.
        let is_root = entry.attr.flags & ATTR_SUBMOUNT != 0;
        Ok(EntryOut { generation: if is_root { 0 } else { entry.generation }, ..entry })
    }

    /// Goes up from `directory` to the share's root; ESTALE where it is not there.
    fn check_below_root(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let root = FileKey::of(&self.root);
        let mut key = key_of(&stat::of(directory)?);
        let mut above = None;
        for _ in 0..DEPTH_MAX {
            if key == root {
                return Ok(());
            }
            let next = open_parent(above.as_ref().map_or(directory, OwnedFd::as_fd))?;
            let next_key = key_of(&stat::of(next.as_fd())?);
            if next_key == key {
                return Err(Errno::ESTALE);
            }
            (above, key) = (Some(next), next_key);
        }
        Err(Errno::ESTALE)
    }

    /// What the guest is told of `node`, found in the directory `within`.
    fn entry(&self, within: NodeId, node: NodeId, st: &Statx) -> EntryOut {
        let attr = self.attr(st);
        if attributes::kind(st) == libc::S_IFDIR {
            self.watch_directory(node);
        }
        let (names, attributes) = (self.names_hold(within), self.attributes_hold(node, &attr));
        EntryOut {
            nodeid: node.0,
            generation: if node == NodeId::ROOT { 0 } else { self.generation },
            entry_valid: names.entry.as_secs(),
            entry_valid_nsec: names.entry.subsec_nanos(),
            attr_valid: attributes.as_secs(),
            attr_valid_nsec: attributes.subsec_nanos(),
            attr,
        }
    }

    /// Whether the guest is told of mounts below the share.
    fn announces_submounts(&self) -> bool {
        self.options.announce_submounts && self.agreed(init_flags::SUBMOUNTS)
    }

    fn attr(&self, st: &Statx) -> Attr {
        let is_submount = st.stx_mnt_id != self.root.mount_id && st.stx_attributes.bits() & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0;
        let announced = is_submount && attributes::kind(st) == libc::S_IFDIR && self.announces_submounts();
        if announced {
            self.numbers.announce(&key_of(st));
        }
        let mut attr = attributes::attr(st, self.inode_number(st), &self.options.translation);
        if announced {
            attr.flags |= ATTR_SUBMOUNT;
        }
        attr
    }

    /// The inode number by which the guest knows the file.
    pub(in crate::host) fn inode_number(&self, st: &Statx) -> u64 {
        self.number_of(&key_of(st))
    }

    /// As [`Share::inode_number`], of the file with `key`.
    pub(in crate::host) fn number_of(&self, key: &FileKey) -> u64 {
        self.numbers.number(key, &FileKey::of(&self.root), self.announces_submounts())
    }

    /// The reply of GETATTR and SETATTR of `node`.
    pub(in crate::host) fn attr_out(&self, node: NodeId, st: &Statx) -> AttrOut {
        let attr = self.attr(st);
        let valid = self.attributes_hold(node, &attr);
        AttrOut { attr_valid: valid.as_secs(), attr_valid_nsec: valid.subsec_nanos(), attr, ..AttrOut::default() }
    }
}

/// What was found behind a name or a descriptor.
struct Found<'f> {
    st: &'f Statx,
    handle: Option<Handle>,
    /// `st` and `handle` are of one object for certain: both were taken through one descriptor.
    type_seen: bool,
}

/// Device: major in the upper half, minor in the lower.
pub(in crate::host) fn device_of(st: &Statx) -> u64 {
    u64::from(st.stx_dev_major) << 32 | u64::from(st.stx_dev_minor)
}

fn key_of(st: &Statx) -> FileKey {
    FileKey { device: device_of(st), ino: st.stx_ino, mount_id: st.stx_mnt_id }
}

/// Birth time in nanoseconds; 0 where the file system does not tell.
fn birth_ns(st: &Statx) -> u64 {
    let t = &st.stx_btime;
    t.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(u64::from(t.tv_nsec))
}

/// The identity of a file of which `st` and `handle` were taken through one descriptor.
pub(in crate::host) fn identity_of(st: &Statx, handle: Option<Handle>) -> InodeIdentity {
    let key = key_of(st);
    let kind = attributes::kind(st);
    InodeIdentity { device: key.device, ino: key.ino, mount_id: key.mount_id, birth_ns: birth_ns(st), kind, type_seen: true, handle }
}

/// An O_PATH descriptor of the directory above `directory`.
fn open_parent(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    Ok(rustix::fs::openat(directory, c"..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// An O_PATH descriptor of one component; a symbolic link is opened itself, never followed.
pub(in crate::host) fn open_path(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(parent, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)?)
}

/// The inode number in a handle, for the file systems whose encoding is known (linux/exportfs.h): with it,
/// a handle and a statx of one name can be told to be of one file without another system call.
pub(in crate::host) fn ino_in_handle(handle: &Handle) -> Option<u64> {
    let u32_at = |at: usize| handle.bytes[at..at + 4].try_into().ok().map(u32::from_ne_bytes).map(u64::from);
    let u64_at = |at: usize| handle.bytes[at..at + 8].try_into().ok().map(u64::from_ne_bytes);
    match (handle.kind, handle.len) {
        // FILEID_INO32_GEN: ext4 and others.
        (1, 8) => u32_at(0),
        // tmpfs: generation, then the number in two halves.
        (1, 12) => Some(u32_at(4)? | u32_at(8)? << 32),
        // XFS with 64-bit numbers.
        (0x81, 12..) => u64_at(0),
        // btrfs: FILEID_BTRFS_WITHOUT_PARENT.
        (0x4d, 20) => u64_at(0),
        _ => None,
    }
}
