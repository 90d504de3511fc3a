//! The share: its options, its tables, and the ways from a node id to something the kernel can act on.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};

use crate::fuse::Negotiated;
use crate::fuse::abi::init_flags;
use crate::host::caching::policy::{CachePolicy, Timeouts};
use crate::host::caching::watch::{FileSystemWatch, Watch};
use crate::host::directories::stream::Directory;
use crate::host::files::by_node::{ByNode, Pinnable};
use crate::host::files::descriptors::Descriptors;
use crate::host::files::no_open::Handleless;
use crate::host::fs_limits::{self, Lack};
use crate::host::inodes::entries::identity_of;
use crate::host::inodes::mounts::Mounts;
use crate::host::inodes::numbers::InodeNumbers;
use crate::host::inodes::table::InodeTable;
use crate::host::locks::Locks;
use crate::host::rights::caller::keep_suidgid;
use crate::host::rights::id_map::Translation;
use crate::host::rights::policy::{self as rights, Rights};
use crate::host::share_error::ShareError;
use crate::state::{Arena, ArenaError, Budget, HANDLES_LEN, HandleTable, InodeIdentity, InodeRecords, OpenFile, inodes_len, inodes_max};
use crate::sys::file_handle::{self, Handle};
use crate::sys::identity;
use crate::sys::stat;
use crate::sys::working_dir::DescriptorDir;
use crate::types::{Errno, FileHandle, HostGid, HostUid, NodeId};

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

/// Guests that speak this minor version (Linux 7.3) have an overlayfs that goes on when its upper layer has TMPFILE ("ovl: use
/// linked upper dentry in copy-up tmpfile", Linux 7.2). Before, it looks a nameless file's name up again and finds nothing:
/// ESTALE. Linux 7.2 speaks minor version 45 as older kernels do, so it cannot be told from them.
const TMPFILE_MINOR: u32 = 46;

/// Whether TMPFILE is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tmpfile {
    /// To guests whose overlayfs bears it.
    Auto,
    /// To every guest.
    Always,
    /// To none.
    Never,
}

/// What the share is and how it behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory or file that the guest sees as its root.
    pub shared_dir: PathBuf,
    /// What the guest may cache.
    pub cache: CachePolicy,
    /// For how long it may believe what it is told.
    pub timeouts: Timeouts,
    /// Let the guest map files whose data it does not cache.
    pub allow_mmap: bool,
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
    /// Let the guest change project ids and PROJINHERIT.
    pub allow_project_ids: bool,
    /// Ids between guest and host.
    pub translation: Translation,
    /// ACLs, labels, setuid bits and names of attributes.
    pub rights: Rights,
    /// The guest's locks are locks on the host; else they are its own affair.
    pub host_locks: bool,
    /// How long a wait for a lock on the host may take.
    pub lock_wait: Option<Duration>,
    /// Whether the guest may make files without a name.
    pub tmpfile: Tmpfile,
    /// How inodes are kept.
    pub file_handles: FileHandles,
    /// How the descriptors are shared out.
    pub descriptors: Descriptors,
}

/// A directory or file of the host, exported.
#[derive(Debug)]
pub struct Share {
    pub(super) options: Options,
    pub(super) handles: HandleTable,
    /// The descriptors that the guest's objects may hold.
    pub(super) budget: Arc<Budget>,
    pub(super) directories: RwLock<HashMap<FileHandle, Arc<Mutex<Directory>>>>,
    /// The daemon's own ids: a caller with these needs no switch.
    pub(super) own_ids: (HostUid, HostGid),
    pub(super) locks: Locks,
    pub(super) inodes: InodeTable,
    pub(super) path_fds: ByNode<OwnedFd>,
    pub(super) handleless: Handleless,
    pub(super) mounts: Mounts,
    pub(super) numbers: InodeNumbers,
    descriptor_dir: Arc<DescriptorDir>,
    pub(super) root: InodeIdentity,
    /// This process may open file handles, and uses them on each mount that has lasting ones.
    pub(super) by_handle: bool,
    /// The share's file system is the host's own, not a server's that must hear of a close.
    pub(super) is_local: bool,
    lacks: Vec<Lack>,
    /// Of every node but the root, and another in each daemon: an NFS client that named a node of an earlier one by
    /// its id is told that it is stale.
    pub(super) generation: u64,
    /// The watch over what the guest knows, once it began.
    watch: OnceLock<Arc<Watch>>,
    /// The session ended: the watch is the next one's.
    has_ended: AtomicBool,
    /// A thread lets go of what the session held.
    is_closing: AtomicBool,
    /// And has done so.
    is_closed: AtomicBool,
    agreed_flags: AtomicU64,
    agreed_minor: AtomicU32,
}

/// What one session's share hands on to the next one's.
struct Known {
    options: Options,
    own_ids: (HostUid, HostGid),
    budget: Arc<Budget>,
    descriptor_dir: Arc<DescriptorDir>,
    root: InodeIdentity,
    by_handle: bool,
    is_local: bool,
    lacks: Vec<Lack>,
    watch: OnceLock<Arc<Watch>>,
}

impl Share {
    /// Exports what lies open behind `root`, for reading where it may be read: a directory, or a regular file which then is the
    /// guest's root itself. `descriptor_dir` was opened by the process that serves, before its jail hid /proc.
    pub fn export(mut options: Options, root: OwnedFd, descriptor_dir: DescriptorDir) -> Result<Share, ShareError> {
        let path = options.shared_dir.clone();
        if !rights::fit(&mut options, root.as_fd()) {
            return Err(ShareError::NoLabels { path });
        }
        Share::with_root(options, root, descriptor_dir).map_err(|e| e.at(&path))
    }

    fn with_root(options: Options, root_fd: OwnedFd, descriptor_dir: DescriptorDir) -> Result<Share, RootError> {
        let st = stat::of(root_fd.as_fd())?;
        let handle = if options.file_handles == FileHandles::Never { None } else { openable_handle(root_fd.as_fd())? };
        if options.file_handles == FileHandles::Mandatory && handle.is_none() {
            return Err(RootError::NoFileHandles);
        }
        let by_handle = handle.is_some();
        let is_forgetful = stat::forgets_handles(root_fd.as_fd())?;
        // Who says mandatory answers for the file system.
        let handle = handle.filter(|_| !is_forgetful || options.file_handles == FileHandles::Mandatory);
        let path_fd = descriptor_dir.reopen(root_fd.as_fd(), OFlags::PATH)?;
        let known = Known {
            own_ids: identity::effective(),
            budget: Arc::new(Budget::new(options.descriptors.all)),
            descriptor_dir: Arc::new(descriptor_dir),
            root: InodeIdentity { handle, ..identity_of(&st, None) },
            by_handle,
            is_local: stat::is_local(root_fd.as_fd())?,
            lacks: fs_limits::of(root_fd.as_fd(), &st, options.readonly)?,
            watch: OnceLock::new(),
            options,
        };
        Share::with_tables(known, root_fd, path_fd)
    }

    /// A share with nothing but the root, which lies open behind both descriptors; the second is an O_PATH one.
    fn with_tables(known: Known, root_fd: OwnedFd, path_fd: OwnedFd) -> Result<Share, RootError> {
        let Known { options, own_ids, budget, descriptor_dir, root, by_handle, is_local, lacks, watch } = known;
        let inodes_max = inodes_max(getrlimit(Resource::As).current);
        let inodes_len = inodes_len(inodes_max);
        let arena = Arena::new(inodes_len + HANDLES_LEN)?;
        let share = Share {
            handles: HandleTable::new(&arena, inodes_len, Arc::clone(&budget)),
            directories: RwLock::default(),
            own_ids,
            locks: Locks::new(options.lock_wait),
            inodes: InodeTable::new(InodeRecords::new(&arena, 0, inodes_max)),
            path_fds: ByNode::new(options.descriptors.recent, Arc::clone(&budget)),
            handleless: Handleless::new(options.descriptors.recent, &budget),
            budget,
            mounts: Mounts::default(),
            numbers: InodeNumbers::default(),
            descriptor_dir,
            root,
            by_handle,
            is_local,
            lacks,
            agreed_flags: AtomicU64::new(0),
            agreed_minor: AtomicU32::new(0),
            generation: random_generation(),
            watch,
            has_ended: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            options,
        };
        share.mounts.add_inode(root.mount_id, Some(root_fd));
        // Also where the session that ends has not given its descriptors back yet.
        let path_fd = Pinnable::new(path_fd, share.budget.take_one());
        share.inodes.insert(&root, |node| share.path_fds.pin(node, path_fd))?;
        // From here on, so that an id of an earlier session is none of this one's: one in 2^31 would be.
        let first = share.generation as u32 >> 1;
        share.inodes.begin_at(first);
        share.handles.begin_at(first);
        Ok(share)
    }

    /// The same directory for the next session: with tables of its own, and the same budget of descriptors. Asks the file
    /// system nothing, which may be one that does not answer. An error where there is no memory for the tables or no descriptor.
    pub(super) fn renewed(&self) -> Result<Share, ShareError> {
        let path = &self.options.shared_dir;
        let again = || -> Result<Share, RootError> {
            let mount = self.mounts.get(self.root.mount_id).ok_or(Errno::ESTALE)?;
            let path_fd = self.path_fds.get(NodeId::ROOT).ok_or(Errno::ESTALE)?;
            let known = Known {
                options: self.options.clone(),
                own_ids: self.own_ids,
                budget: Arc::clone(&self.budget),
                descriptor_dir: Arc::clone(&self.descriptor_dir),
                root: self.root,
                by_handle: self.by_handle,
                is_local: self.is_local,
                lacks: self.lacks.clone(),
                watch: self.watch.clone(),
            };
            Share::with_tables(known, mount.try_clone()?, path_fd.try_clone()?)
        };
        again().map_err(|e| e.at(path))
    }

    /// The shared directory's path, for messages.
    pub fn path(&self) -> &Path {
        &self.options.shared_dir
    }

    /// Whether file handles are opened, of the share or of mounts below it.
    pub fn opens_handles(&self) -> bool {
        self.by_handle
    }

    /// Whether inodes of the share itself are kept as file handles, so that their number is not bound by open descriptors.
    pub fn is_by_handle(&self) -> bool {
        self.root.handle.is_some()
    }

    /// Whether file handles were wanted, are there and may not be opened by this process.
    pub fn refuses_handles(&self) -> bool {
        self.options.file_handles != FileHandles::Never && !self.by_handle && !self.lacks.contains(&Lack::FileHandles)
    }

    /// What the share's file system does not have.
    pub fn lacks(&self) -> &[Lack] {
        &self.lacks
    }

    /// INIT flags that this share has logic for under its options.
    pub fn wanted_flags(&self) -> u64 {
        use init_flags as f;
        let mut flags = f::ASYNC_READ | f::ATOMIC_O_TRUNC | f::BIG_WRITES | f::ASYNC_DIO | f::PARALLEL_DIROPS | f::MAX_PAGES;
        flags |= f::HAS_IOCTL_DIR | f::INIT_EXT | f::CREATE_SUPP_GROUP;
        if self.options.readdirplus {
            flags |= f::DO_READDIRPLUS | f::READDIRPLUS_AUTO;
        }
        if self.options.announce_submounts {
            flags |= f::SUBMOUNTS;
        }
        // A symbolic link's target never changes: another target is another inode.
        flags |= f::CACHE_SYMLINKS | self.options.cache.init_flags(self.options.allow_mmap);
        flags |= self.handleless_flags();
        if flags & f::NO_OPEN_SUPPORT != 0 {
            // A guest that does not open would take O_TRUNC as done; this has it send SETATTR, which is refused.
            flags &= !f::ATOMIC_O_TRUNC;
        }
        if self.is_by_handle() {
            flags |= f::EXPORT_SUPPORT;
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
        self.agreed_minor.store(agreed.minor, Ordering::Relaxed);
    }

    /// Begins to watch the root, where there is a watch; to be called once the session has begun.
    pub fn watch_root(&self) {
        self.watch_directory(NodeId::ROOT);
    }

    /// Begins to watch for changes that other processes of the host make: by `whole`, or by marks on directories. To be called
    /// when the process is confined, for it starts a thread. An error where the kernel cannot.
    pub fn start_watch(self: &Arc<Share>, whole: Option<FileSystemWatch>) -> std::io::Result<()> {
        let watch = Arc::new(Watch::new(whole, self.root.device)?);
        watch.start()?;
        let _ = self.watch.set(watch);
        self.take_over_watch();
        Ok(())
    }

    /// From now on the watch, if there is one, is this share's.
    pub(super) fn take_over_watch(self: &Arc<Share>) {
        if let Some(watch) = self.watch() {
            let share = Arc::downgrade(self);
            watch.begin_anew(move |file| share.upgrade().is_none_or(|share| share.may_know(file)));
        }
    }

    /// What the watch sees, for the log.
    pub fn watch_sees(&self) -> &'static str {
        let root = self.path_fd(NodeId::ROOT);
        if !root.and_then(|root| stat::is_changed_here_only(root.as_fd())).unwrap_or(false) {
            "nothing: the share is on a network or FUSE file system, which other hosts change unseen; the timeouts of --cache hold"
        } else if self.watch().is_some_and(Watch::sees_everything) {
            "every change in the share's file system, but through mmap"
        } else if self.by_handle {
            "changes by name in directories that the guest knows; files, which others may open by handle unseen, keep the timeouts of --cache"
        } else {
            "changes by name in directories that the guest knows"
        }
    }

    pub(super) fn watch(&self) -> Option<&Watch> {
        self.watch.get().map(Arc::as_ref).filter(|_| !self.has_ended.load(Ordering::Relaxed))
    }

    /// Whether INIT settled on `flag`.
    pub(super) fn agreed(&self, flag: u64) -> bool {
        self.agreed_flags.load(Ordering::Relaxed) & flag != 0
    }

    /// Whether the guest may make files without a name.
    pub(super) fn offers_tmpfile(&self) -> bool {
        match self.options.tmpfile {
            Tmpfile::Auto => self.agreed_minor.load(Ordering::Relaxed) >= TMPFILE_MINOR,
            Tmpfile::Always => true,
            Tmpfile::Never => false,
        }
    }

    /// Whether the guest's locks are held on the host, by its open files.
    pub(super) fn has_host_locks(&self) -> bool {
        self.options.host_locks && self.agreed(init_flags::POSIX_LOCKS | init_flags::FLOCK_LOCKS)
    }

    /// Whether a close(2) of `node`'s file in the guest means something here: locks end with it, or the host's
    /// file system may have an error to report.
    pub(super) fn needs_flush(&self, node: NodeId, host_flags: i32) -> bool {
        let is_here = || self.is_local && self.inodes.identity(node).is_ok_and(|i| i.mount_id == self.root.mount_id);
        let nothing_to_report = host_flags & libc::O_ACCMODE == libc::O_RDONLY || is_here();
        self.has_host_locks() || self.agreed(init_flags::WRITEBACK_CACHE) || !nothing_to_report
    }

    /// The session ends: no node is retained and no lock is taken any more, and the watch is the next one's.
    pub(super) fn mark_ended(&self) {
        self.agreed_flags.store(0, Ordering::Relaxed);
        self.has_ended.store(true, Ordering::SeqCst);
    }

    /// Whether the session has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Whether the caller is the first that closes what the session held.
    pub(super) fn begin_closing(&self) -> bool {
        !self.is_closing.swap(true, Ordering::Relaxed)
    }

    /// Whether what the session held is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Lets go of every handle and every node but the root; the session has ended. What a request that is still under way
    /// takes afterwards is let go with the share itself.
    pub(super) fn end_session(&self) {
        self.directories.write().clear();
        self.handles.clear();
        for node in self.inodes.nodes() {
            self.forget(node, u64::MAX);
        }
        self.locks.clear();
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Prepares a thread to serve this share. Each serving thread calls it once.
    pub fn enter_thread(&self) -> std::io::Result<()> {
        self.descriptor_dir.enter()
    }

    /// To be called before each change but a WRITE's: fails with EROFS on a read-only share. A WRITE that the thread served
    /// before may have had setuid and setgid bits cleared; what follows keeps them.
    pub(super) fn writable(&self) -> Result<(), Errno> {
        keep_suidgid(true);
        self.not_readonly()
    }

    /// Fails with EROFS on a read-only share.
    pub(super) fn not_readonly(&self) -> Result<(), Errno> {
        if self.options.readonly { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// S_IFMT bits of `node`.
    pub(super) fn kind(&self, node: NodeId) -> Result<u32, Errno> {
        self.inodes.kind(node)
    }

    /// The open file behind `handle`, EBADF where there is none.
    pub(super) fn open_file(&self, handle: FileHandle) -> Result<OpenFile<'_>, Errno> {
        self.handles.get(handle).ok_or(Errno::EBADF)
    }
}

/// A number of 32 bits as FUSE's guests keep it, not 0.
fn random_generation() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() & 0xffff_ffff | 1
}

/// Why the root failed; the path is added by who knows it.
enum RootError {
    Arena(ArenaError),
    NoFileHandles,
    Root(Errno),
}

impl RootError {
    fn at(self, path: &Path) -> ShareError {
        let path = path.to_owned();
        match self {
            RootError::Arena(e) => ShareError::Arena(e),
            RootError::NoFileHandles => ShareError::NoFileHandles { path },
            RootError::Root(errno) => ShareError::Root { path, errno },
        }
    }
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
