//! How a file of the host gets a node: as a file handle where its mount has lasting ones, otherwise with an O_PATH descriptor
//! that is kept open.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::guest_inodes::Inodes;
use super::identity::{FileKey, birth_ns, identity_of, ino_in_handle, kind_of};
use super::root::FileHandles;
use super::table::Inserted;
use crate::state::InodeIdentity;
use crate::sys::file_handle::{self, Handle};
use crate::sys::open;
use crate::sys::stat::{self, Statx};
use crate::types::{Errno, NodeId};

/// What was found behind a name or a descriptor.
#[derive(Clone, Copy)]
struct Found {
    st: Statx,
    handle: Option<Handle>,
    /// `st` and `handle` are of one object for certain: both were taken through one descriptor.
    type_seen: bool,
}

impl Inodes {
    /// The node of the file that `st` describes, counted once more. `None` where it has none, or may be another file with the
    /// same inode number.
    pub fn count_lookup(&self, st: &Statx) -> Option<NodeId> {
        self.table.look_up(&FileKey::of(st), birth_ns(st))
    }

    /// Counts a lookup of `node` itself, which may be a retained one. ESTALE where there is no such node or its file is gone.
    pub fn look_up_node(&self, node: NodeId) -> Result<Statx, Errno> {
        let st = stat::of(self.path_fd(node)?.as_fd())?;
        self.table.look_up_node(node)?;
        Ok(st)
    }

    /// A node for the file `name` in `parent`, which `st` describes and [`Inodes::count_lookup`] did not find; counted once. With
    /// the attributes of the file that it is for: the name may lead to another one by now.
    ///
    /// # Errors
    /// ENOENT where the name is gone; ENFILE where the table is full or too many descriptors are open; EOPNOTSUPP where file
    /// handles are mandatory and the file has none.
    pub fn add_named(&self, parent: BorrowedFd<'_>, name: &CStr, st: Statx) -> Result<(NodeId, Statx), Errno> {
        if self.keeps_handles(&st, || open_path(parent, name))?
            && let Some((handle, mount_id)) = file_handle::of(parent, name)?
            && mount_id == st.stx_mnt_id
            && self.is_same_file(&handle, parent, name, &st)?
        {
            // The handle and the statx are of one name, not of one object: `open_node` checks the type.
            let found = Found { st, handle: Some(handle), type_seen: false };
            return self.insert(found, || open_path(parent, name));
        }
        let fd = open_path(parent, name)?;
        let st = stat::of(fd.as_fd())?;
        self.insert(Found { st, handle: None, type_seen: true }, || Ok(fd))
    }

    /// As [`Inodes::add_named`], for the open file `fd`, which `st` describes.
    pub fn add_open(&self, fd: BorrowedFd<'_>, st: Statx) -> Result<(NodeId, Statx), Errno> {
        let keeps_handles = self.keeps_handles(&st, || Ok(fd))?;
        let handle = if keeps_handles { file_handle::of(fd, c"")?.map(|(h, _)| h) } else { None };
        self.insert(Found { st, handle, type_seen: true }, || open::again(fd, libc::O_PATH))
    }

    /// Whether the new inode that `st` describes is kept as a handle, where it has one. Each mount decides for itself: for the
    /// first inode of one, `open` gives a descriptor on it.
    fn keeps_handles<F: AsFd>(&self, st: &Statx, open: impl FnOnce() -> Result<F, Errno>) -> Result<bool, Errno> {
        if !self.root.by_handle || self.root.file_handles == FileHandles::Mandatory {
            return Ok(self.root.by_handle);
        }
        let mount_id = st.stx_mnt_id;
        if mount_id == self.root.identity.mount_id {
            return Ok(self.root.is_by_handle());
        }
        if let Some(known) = self.mounts.keeps_handles(mount_id) {
            return Ok(known);
        }
        let fd = open()?;
        // Another mount may be there by now. Nothing is recorded then, and the inode keeps a descriptor.
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
                self.root.path.display()
            );
        }
        Ok(false)
    }

    /// Whether `handle` seems to be of the file that `st` describes: the name may have been replaced in between. This keeps
    /// most mismatches out of the table; an inode number that was freed and reused in between is not detected.
    fn is_same_file(&self, handle: &Handle, parent: BorrowedFd<'_>, name: &CStr, st: &Statx) -> Result<bool, Errno> {
        if let Some(ino) = ino_in_handle(handle) {
            return Ok(ino == st.stx_ino);
        }
        let again = stat::at(parent, name)?;
        Ok(FileKey::of(&again) == FileKey::of(st) && birth_ns(&again) == birth_ns(st))
    }

    /// Makes a node for what was found. `open` gives an O_PATH descriptor, for a node that cannot be opened by handle.
    fn insert(&self, found: Found, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<(NodeId, Statx), Errno> {
        let Found { st, handle, type_seen } = found;
        let identity = InodeIdentity { type_seen, ..identity_of(&st, handle) };
        if let Some(node) = self.look_up_reborn(&identity) {
            return Ok((node, st));
        }
        if identity.handle.is_none() {
            return self.insert_pinned(st, open()?);
        }
        if !self.mounts.add_inode(identity.mount_id, None) {
            // The first file of another mount: its handle opens with a descriptor on that mount.
            let fd = open()?;
            match open_on_mount(fd.as_fd(), identity.mount_id)? {
                Some(mount) => _ = self.mounts.add_inode(identity.mount_id, Some(mount)),
                None => {
                    return self.insert_pinned(stat::of(fd.as_fd())?, fd);
                }
            }
        }
        let inserted = self.table.insert(&identity);
        if !matches!(inserted, Ok(Inserted::New(_))) {
            self.mounts.remove_inode(identity.mount_id);
        }
        let (Inserted::New(node) | Inserted::Known(node)) = inserted?;
        Ok((node, st))
    }

    /// Makes a node that keeps the O_PATH descriptor `fd`, of which `st` was taken.
    fn insert_pinned(&self, st: Statx, fd: OwnedFd) -> Result<(NodeId, Statx), Errno> {
        if self.root.file_handles == FileHandles::Mandatory {
            return Err(Errno::EOPNOTSUPP);
        }
        let number = fd.as_raw_fd();
        let pinned = self.files.pinnable(fd)?;
        let identity = identity_of(&st, None);
        let inserted = self.table.insert_pinned(&identity, Some(number), |node| self.files.pin_path_fd(node, pinned))?;
        let (Inserted::New(node) | Inserted::Known(node)) = inserted;
        Ok((node, st))
    }

    /// The node of a file whose birth time changed, counted once more: overlayfs reports that of the copy once it has copied a
    /// file up. The handle shows that it is that file; without one, the descriptor that the node keeps does.
    fn look_up_reborn(&self, identity: &InodeIdentity) -> Option<NodeId> {
        let (key, birth) = (FileKey::of_record(identity), identity.birth_ns);
        let node = self.table.born_before(identity)?;
        if identity.handle.is_none() {
            let now = stat::of(self.files.path_fd(node)?.as_fd()).ok()?;
            if FileKey::of(&now) != key || birth_ns(&now) != birth {
                return None;
            }
        }
        self.table.look_up_reborn(&key, node, birth)
    }
}

/// The file behind the O_PATH descriptor `fd`, open for reading, as open_by_handle_at(2) takes one of its mount. `None` where
/// it cannot be opened, or is on another mount than `mount_id`.
fn open_on_mount(fd: BorrowedFd<'_>, mount_id: u64) -> Result<Option<OwnedFd>, Errno> {
    // The name may lead elsewhere by now: the object that is opened counts.
    let st = stat::of(fd)?;
    let openable = [libc::S_IFDIR, libc::S_IFREG].contains(&kind_of(&st));
    if !openable || st.stx_mnt_id != mount_id {
        return Ok(None);
    }
    Ok(open::again(fd, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY).ok())
}

/// An O_PATH descriptor of one component; a symbolic link is opened itself, never followed. The errno of openat2(2).
pub(in crate::host) fn open_path(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    open::openat2(parent, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
}
