//! The share: its options, its tables, and the ways from a node id to something the kernel can act on.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::attributes;
use super::directory::Directory;
use super::id_map::Translation;
use super::inodes::{FileKey, InodeTable, Inserted};
use super::locks::Locks;
use super::mounts::Mounts;
use super::path_fds::PathFds;
use super::rights::{self, Rights};
use super::share_error::ShareError;
use crate::fuse::Negotiated;
use crate::fuse::abi::{ATTR_SUBMOUNT, Attr, AttrOut, EntryOut, init_flags};
use crate::state::{Arena, ArenaError, HANDLES_LEN, HandleTable, INODES_LEN, InodeIdentity, InodeRecords, OpenFile};
use crate::sys::file_handle::{self, Handle};
use crate::sys::identity;
use crate::sys::stat::{self, Statx};
use crate::sys::working_dir::{DescriptorDir, DescriptorName};
use crate::types::{Errno, FileHandle, HostGid, HostUid, NodeId};

/// How long the guest may believe what it was told, and whether it caches data (virtiofsd's `--cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachePolicy {
    /// Names and attributes for a second; data until size or mtime change.
    Auto,
    /// Everything for a day: only the guest changes the share.
    Always,
    /// Nothing; reads and writes go to the host each time.
    Never,
    /// Names and attributes for a day, no data.
    Metadata,
}

impl CachePolicy {
    fn timeout_s(self) -> u64 {
        match self {
            CachePolicy::Auto => 1,
            CachePolicy::Always | CachePolicy::Metadata => 86_400,
            CachePolicy::Never => 0,
        }
    }
}

/// How inodes are kept while the guest knows them (virtiofsd's `--inode-file-handles`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileHandles {
    /// As open descriptors.
    Never,
    /// As file handles where the file system has them and this process may open them.
    Prefer,
    /// As file handles; without them the share is refused, and a file that has none is EOPNOTSUPP.
    Mandatory,
}

/// What the share is and how it behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that the guest sees as its root.
    pub shared_dir: PathBuf,
    /// What the guest may cache.
    pub cache: CachePolicy,
    /// Refuse every change with EROFS.
    pub readonly: bool,
    /// Offer READDIRPLUS.
    pub readdirplus: bool,
    /// Tell the guest which directories are mount points.
    pub announce_submounts: bool,
    /// Open a file with O_NOATIME on the host when the guest does.
    pub preserve_noatime: bool,
    /// Open a file with O_DIRECT on the host when the guest does.
    pub allow_direct_io: bool,
    /// Let the guest keep dirty pages.
    pub writeback: bool,
    /// Serve extended attributes.
    pub xattr: bool,
    /// Ids between guest and host.
    pub translation: Translation,
    /// ACLs, labels, setuid bits and names of attributes.
    pub rights: Rights,
    /// The guest's locks are locks on the host; else they are its own affair.
    pub host_locks: bool,
    /// How inodes are kept.
    pub file_handles: FileHandles,
    /// How the descriptors are shared out.
    pub descriptors: Descriptors,
}

/// How many descriptors each use may take: what the guest holds must not take the last ones, which the next
/// connection needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Open files and directories of the guest; ENFILE beyond.
    pub handles: u32,
    /// Inodes that are kept as descriptors; ENFILE beyond.
    pub pinned: usize,
    /// Recently used inodes; others are closed beyond.
    pub recent: usize,
    /// Files that an owner has locks on; ENOLCK beyond.
    pub locks: usize,
}

impl Descriptors {
    /// Shares out `open_files` (RLIMIT_NOFILE). Half for the guest's open files, a quarter for inodes that
    /// cannot be kept as handles, an eighth for locks, a sixteenth for recent inodes; the rest for queues and connections.
    pub fn of(open_files: u64) -> Descriptors {
        let part = |divisor: u64, max: u64| (open_files / divisor).clamp(16, max);
        Descriptors {
            handles: part(2, u64::from(u32::MAX)) as u32,
            pinned: part(4, 1 << 30) as usize,
            recent: part(16, 65_536) as usize,
            locks: part(8, 65_536) as usize,
        }
    }
}

/// A directory of the host, exported.
#[derive(Debug)]
pub struct Share {
    pub(super) options: Options,
    pub(super) handles: HandleTable,
    pub(super) directories: RwLock<HashMap<FileHandle, Arc<Mutex<Directory>>>>,
    /// The daemon's own ids: a caller with these needs no switch.
    pub(super) own_ids: (HostUid, HostGid),
    pub(super) locks: Arc<Locks>,
    inodes: InodeTable,
    path_fds: PathFds,
    mounts: Mounts,
    descriptor_dir: DescriptorDir,
    root: InodeIdentity,
    /// File handles work here and may be opened.
    by_handle: bool,
    agreed_flags: AtomicU64,
}

impl Share {
    /// Opens the directory that lies at `root` for this process: the shared directory, or "/" in a jail.
    /// `descriptor_dir` was opened by the process that serves, before its jail hid /proc.
    pub fn export(mut options: Options, root: &Path, descriptor_dir: DescriptorDir) -> Result<Share, ShareError> {
        let path = options.shared_dir.clone();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_fd =
            rustix::fs::open(root, flags, Mode::empty()).map_err(|e| ShareError::Open { path: path.clone(), source: e.into() })?;
        if !rights::fit(&mut options, root_fd.as_fd()) {
            return Err(ShareError::NoLabels { path });
        }
        Share::with_root(options, root_fd, descriptor_dir).map_err(|e| match e {
            RootError::Arena(e) => ShareError::Arena(e),
            RootError::NoFileHandles => ShareError::NoFileHandles { path },
            RootError::Root(errno) => ShareError::Root { path, errno },
        })
    }

    fn with_root(options: Options, root_fd: OwnedFd, descriptor_dir: DescriptorDir) -> Result<Share, RootError> {
        let st = stat::of(root_fd.as_fd())?;
        let handle = if options.file_handles == FileHandles::Never { None } else { openable_handle(root_fd.as_fd())? };
        if options.file_handles == FileHandles::Mandatory && handle.is_none() {
            return Err(RootError::NoFileHandles);
        }
        let root = InodeIdentity { handle, ..identity_of(&st, None) };
        let arena = Arena::new(INODES_LEN + HANDLES_LEN)?;
        let share = Share {
            handles: HandleTable::new(&arena, INODES_LEN, options.descriptors.handles),
            directories: RwLock::default(),
            own_ids: identity::effective(),
            locks: Arc::new(Locks::new(options.descriptors.locks)),
            inodes: InodeTable::new(InodeRecords::new(&arena, 0)),
            path_fds: PathFds::new(options.descriptors.recent, options.descriptors.pinned),
            mounts: Mounts::default(),
            descriptor_dir,
            root,
            by_handle: handle.is_some(),
            agreed_flags: AtomicU64::new(0),
            options,
        };
        let path_fd = rustix::fs::openat(&root_fd, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        share.mounts.add_inode(root.mount_id, Some(root_fd));
        let path_fd = share.path_fds.pinnable(path_fd)?;
        share.inodes.insert(&root, |node| share.path_fds.pin(node, path_fd))?;
        Ok(share)
    }

    /// The shared directory's path, for messages.
    pub fn path(&self) -> &Path {
        &self.options.shared_dir
    }

    /// Whether inodes are kept as file handles, so that their number is not bound by open descriptors.
    pub fn is_by_handle(&self) -> bool {
        self.by_handle
    }

    /// INIT flags that this share has logic for under its options.
    pub fn wanted_flags(&self) -> u64 {
        use init_flags as f;
        let mut flags = f::ASYNC_READ | f::ATOMIC_O_TRUNC | f::BIG_WRITES | f::ASYNC_DIO | f::PARALLEL_DIROPS | f::MAX_PAGES;
        flags |= f::INIT_EXT | f::CREATE_SUPP_GROUP | f::AUTO_INVAL_DATA;
        if self.options.readdirplus {
            flags |= f::DO_READDIRPLUS | f::READDIRPLUS_AUTO;
        }
        if self.options.announce_submounts {
            flags |= f::SUBMOUNTS;
        }
        if self.options.writeback {
            flags |= f::WRITEBACK_CACHE;
        }
        if self.options.host_locks {
            flags |= f::POSIX_LOCKS | f::FLOCK_LOCKS;
        }
        flags
    }

    /// Begins a FUSE session.
    pub fn begin_session(&self, agreed: &Negotiated) {
        self.agreed_flags.store(agreed.flags, Ordering::Relaxed);
    }

    /// Whether INIT settled on `flag`.
    pub(super) fn agreed(&self, flag: u64) -> bool {
        self.agreed_flags.load(Ordering::Relaxed) & flag != 0
    }

    /// Ends the FUSE session: every handle and every node but the root is gone.
    pub fn end_session(&self) {
        self.locks.clear();
        self.directories.write().clear();
        self.handles.clear();
        for node in self.inodes.nodes() {
            self.forget(node, u64::MAX);
        }
        self.agreed_flags.store(0, Ordering::Relaxed);
    }

    /// Prepares a thread to serve this share. Each serving thread calls it once.
    pub fn enter_thread(&self) -> std::io::Result<()> {
        self.descriptor_dir.enter()
    }

    /// Fails with EROFS on a read-only share.
    pub(super) fn writable(&self) -> Result<(), Errno> {
        if self.options.readonly { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// An O_PATH descriptor of `node`: kept, or opened by its handle. ESTALE where the node or its file is
    /// gone.
    pub(super) fn path_fd(&self, node: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.path_fds.get(node) {
            return Ok(fd);
        }
        let fd = Arc::new(self.open_node(node, libc::O_PATH | libc::O_NOFOLLOW)?);
        self.path_fds.insert(node, Arc::clone(&fd));
        Ok(fd)
    }

    /// Opens `node` anew. The caller has made sure that its type may be opened with `flags`.
    pub(super) fn open_node(&self, node: NodeId, flags: i32) -> Result<OwnedFd, Errno> {
        let identity = self.inodes.identity(node)?;
        if let (Some(handle), Some(mount)) = (identity.handle, self.mounts.get(identity.mount_id)) {
            match file_handle::open(mount.as_fd(), &handle, flags) {
                // Some file systems do not find a deleted file that is still open; an open handle does.
                Err(Errno::ESTALE) => {
                    let open = self.handles.find(node).ok_or(Errno::ESTALE)?;
                    return self.reopen(open.fd(), flags);
                }
                opened => return opened,
            }
        }
        let fd = self.path_fds.get(node).ok_or(Errno::ESTALE)?;
        self.reopen(fd.as_fd(), flags)
    }

    /// Opens the file behind `fd` once more, by its name in the thread's working directory.
    pub(super) fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
        let name = DescriptorName::of(fd);
        // The name is a magic link: it must be followed, and leads to the file itself and no further.
        let flags = OFlags::from_bits_retain((flags & !libc::O_NOFOLLOW | libc::O_CLOEXEC).cast_unsigned());
        Ok(rustix::fs::openat(rustix::fs::CWD, name.as_c_str(), flags, Mode::empty())?)
    }

    /// S_IFMT bits of `node`.
    pub(super) fn kind(&self, node: NodeId) -> Result<u32, Errno> {
        self.inodes.kind(node)
    }

    /// The open file behind `handle`, EBADF where there is none.
    pub(super) fn open_file(&self, handle: FileHandle) -> Result<OpenFile<'_>, Errno> {
        self.handles.get(handle).ok_or(Errno::EBADF)
    }

    /// Looks `name` up in the directory behind `parent` and counts the lookup: one system call for a file
    /// that the guest knows.
    pub(super) fn look_up_at(&self, parent: BorrowedFd<'_>, name: &CStr) -> Result<EntryOut, Errno> {
        let st = stat::at(parent, name)?;
        if let Some(node) = self.inodes.look_up(&key_of(&st), birth_ns(&st)) {
            return Ok(self.entry(node, &st));
        }
        self.look_up_new(parent, name, &st)
    }

    /// As `look_up_at`, for a file that was just opened: `fd` is the file itself.
    pub(super) fn look_up_open(&self, fd: BorrowedFd<'_>) -> Result<EntryOut, Errno> {
        let st = stat::of(fd)?;
        if let Some(node) = self.inodes.look_up(&key_of(&st), birth_ns(&st)) {
            return Ok(self.entry(node, &st));
        }
        let handle = if self.by_handle { file_handle::of(fd, c"")?.map(|(h, _)| h) } else { None };
        self.insert(&st, handle, || self.reopen(fd, libc::O_PATH))
    }

    fn look_up_new(&self, parent: BorrowedFd<'_>, name: &CStr, st: &Statx) -> Result<EntryOut, Errno> {
        if self.by_handle
            && let Some((handle, mount_id)) = file_handle::of(parent, name)?
            && mount_id == st.stx_mnt_id
            && self.is_same_file(&handle, parent, name, st)?
        {
            return self.insert(st, Some(handle), || open_path(parent, name));
        }
        // Without a handle the descriptor is what the node holds on to, so it is the one to look at.
        let fd = open_path(parent, name)?;
        let st = stat::of(fd.as_fd())?;
        self.insert(&st, None, || Ok(fd))
    }

    /// Whether `handle` is of the file that `st` describes: the name may have changed hands in between.
    fn is_same_file(&self, handle: &Handle, parent: BorrowedFd<'_>, name: &CStr, st: &Statx) -> Result<bool, Errno> {
        if let Some(ino) = ino_in_handle(handle) {
            return Ok(ino == st.stx_ino);
        }
        let again = stat::at(parent, name)?;
        Ok(key_of(&again) == key_of(st) && birth_ns(&again) == birth_ns(st))
    }

    /// Makes a node. `open` gives an O_PATH descriptor, for a node that cannot be opened by handle.
    fn insert(&self, st: &Statx, handle: Option<Handle>, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<EntryOut, Errno> {
        let mut identity = identity_of(st, handle);
        let mut pinned = None;
        if identity.handle.is_some() && !self.mounts.add_inode(st.stx_mnt_id, None) {
            // The first file of another mount: its handle opens with a descriptor on that mount.
            let fd = open()?;
            let kind = attributes::kind(st);
            let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
            let openable = kind == libc::S_IFDIR || kind == libc::S_IFREG;
            match if openable { self.reopen(fd.as_fd(), flags).ok() } else { None } {
                Some(mount) => _ = self.mounts.add_inode(st.stx_mnt_id, Some(mount)),
                None => (identity.handle, pinned) = (None, Some(fd)),
            }
        } else if identity.handle.is_none() {
            if self.options.file_handles == FileHandles::Mandatory {
                return Err(Errno::EOPNOTSUPP);
            }
            pinned = Some(open()?);
        }
        let pinned = pinned.map(|fd| self.path_fds.pinnable(fd)).transpose()?;
        let inserted = self.inodes.insert(&identity, |node| {
            if let Some(pinned) = pinned {
                self.path_fds.pin(node, pinned);
            }
        });
        if !matches!(inserted, Ok(Inserted::New(_))) && identity.handle.is_some() {
            self.mounts.remove_inode(identity.mount_id);
        }
        let (Inserted::New(node) | Inserted::Known(node)) = inserted?;
        Ok(self.entry(node, st))
    }

    /// Takes `count` lookups off `node`; an unknown node is passed over.
    pub fn forget(&self, node: NodeId, count: u64) {
        if let Some(identity) = self.inodes.forget(node, count) {
            self.path_fds.remove(node);
            self.locks.forget(node);
            if identity.handle.is_some() {
                self.mounts.remove_inode(identity.mount_id);
            }
        }
    }

    fn entry(&self, node: NodeId, st: &Statx) -> EntryOut {
        let timeout_s = self.options.cache.timeout_s();
        EntryOut { nodeid: node.0, entry_valid: timeout_s, attr_valid: timeout_s, attr: self.attr(st), ..EntryOut::default() }
    }

    fn attr(&self, st: &Statx) -> Attr {
        let mut attr = attributes::attr(st, &self.options.translation);
        let is_submount = st.stx_mnt_id != self.root.mount_id && st.stx_attributes.bits() & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0;
        if is_submount && attributes::kind(st) == libc::S_IFDIR && self.agreed(init_flags::SUBMOUNTS) {
            attr.flags |= ATTR_SUBMOUNT;
        }
        attr
    }

    /// The reply of GETATTR and SETATTR.
    pub(super) fn attr_out(&self, st: &Statx) -> AttrOut {
        AttrOut { attr_valid: self.attr_timeout_s(), attr: self.attr(st), ..AttrOut::default() }
    }

    /// Seconds for which attributes hold.
    pub(super) fn attr_timeout_s(&self) -> u64 {
        self.options.cache.timeout_s()
    }
}

/// Why the root failed; the path is added by who knows it.
enum RootError {
    Arena(ArenaError),
    NoFileHandles,
    Root(Errno),
}

impl<E: Into<Errno>> From<E> for RootError {
    fn from(e: E) -> RootError {
        RootError::Root(e.into())
    }
}

impl From<ArenaError> for RootError {
    fn from(e: ArenaError) -> RootError {
        RootError::Arena(e)
    }
}

fn key_of(st: &Statx) -> FileKey {
    FileKey { device: u64::from(st.stx_dev_major) << 32 | u64::from(st.stx_dev_minor), ino: st.stx_ino, mount_id: st.stx_mnt_id }
}

/// Birth time in nanoseconds; 0 where the file system does not tell.
fn birth_ns(st: &Statx) -> u64 {
    let t = &st.stx_btime;
    t.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(u64::from(t.tv_nsec))
}

fn identity_of(st: &Statx, handle: Option<Handle>) -> InodeIdentity {
    let key = key_of(st);
    let kind = attributes::kind(st);
    InodeIdentity { device: key.device, ino: key.ino, mount_id: key.mount_id, birth_ns: birth_ns(st), kind, handle }
}

/// An O_PATH descriptor of one component; a symbolic link is opened itself, never followed.
pub(super) fn open_path(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(parent, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)?)
}

/// The root's file handle, where the file system has them and this process may open them.
fn openable_handle(root: BorrowedFd<'_>) -> Result<Option<Handle>, Errno> {
    let Some((handle, _)) = file_handle::of(root, c"")? else { return Ok(None) };
    match file_handle::open(root, &handle, libc::O_PATH) {
        Ok(_) => Ok(Some(handle)),
        Err(errno) => {
            tracing::debug!("files are kept open instead of by handle: open_by_handle_at: {errno}");
            Ok(None)
        }
    }
}

/// The inode number in a handle, for the file systems whose encoding is known (linux/exportfs.h): with it,
/// a handle and a statx of one name can be told to be of one file without another system call.
fn ino_in_handle(handle: &Handle) -> Option<u64> {
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
