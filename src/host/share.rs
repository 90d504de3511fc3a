//! The share: a directory or file of the host, exported for one FUSE session. Only puts the groups together; the operations are
//! methods in `ops/`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};

use super::caching::{FileSystemWatch, Freshness, Watch};
use super::directories::OpenDirectories;
use super::files::{Descriptors, FileInUse, OpenFiles};
use super::fs_limits::FsLimit;
use super::inodes::{Attached, FileHandles, Inodes, Root, RootFault};
use super::locks::GuestLocks;
use super::options::Options;
use super::policy::Policy;
use super::session::FuseSession;
use super::share_error::ShareError;
use crate::state::{
    Arena, ArenaError, AttachedLocks, AttachedOwner, Budget, HANDLES_LEN, HandleTable, InodeRecords, LOCKS_LEN, LockRecords, MOUNTS_LEN,
    MountRecords, Pinned, SessionRecord, inodes_len, inodes_max, named_twice,
};
use crate::sys::failpoint::crash_point;
use crate::sys::fsetid::keep_suidgid;
use crate::sys::stat;
use crate::sys::working_dir::DescriptorDir;
use crate::types::{Errno, NodeId};

/// A directory or file of the host, exported for one session.
#[derive(Debug)]
pub struct Share {
    pub(super) policy: Arc<Policy>,
    pub(super) session: FuseSession,
    pub(super) inodes: Arc<Inodes>,
    pub(super) files: Arc<OpenFiles>,
    pub(super) directories: OpenDirectories,
    pub(super) locks: GuestLocks,
    pub(super) freshness: Freshness,
    descriptor_dir: Arc<DescriptorDir>,
    arena: Arc<Arena>,
}

/// What all sessions' shares of one directory have in common.
struct Common {
    policy: Arc<Policy>,
    root: Root,
    budget: Arc<Budget>,
    descriptor_dir: Arc<DescriptorDir>,
    watch: OnceLock<Arc<Watch>>,
}

impl Share {
    /// Exports the directory or regular file that is open behind `root`, for reading where it may be read. The guest's objects
    /// may hold `descriptors`. `descriptor_dir` was opened by the serving process before its sandbox hid /proc.
    ///
    /// # Errors
    /// File handles or security labels are required and not supported, the root cannot be examined, or there is no memory for
    /// the tables.
    pub fn export(options: Options, descriptors: Descriptors, root: OwnedFd, descriptor_dir: DescriptorDir) -> Result<Share, ShareError> {
        let path = options.shared_dir.clone();
        let at_path = |fault: RootFault| ShareError::of(fault, &path);
        let st = stat::of(root.as_fd()).map_err(|errno| at_path(errno.into()))?;
        let file_handles = options.file_handles;
        let identified = Root::new(path.clone(), root.as_fd(), &st, file_handles).map_err(at_path)?;
        let policy = Policy::new(options, descriptors, root.as_fd(), &st)?;
        let path_fd = descriptor_dir.reopen(root.as_fd(), OFlags::PATH).map_err(|e| at_path(e.into()))?;
        let common = Common {
            policy: Arc::new(policy),
            root: identified,
            budget: Arc::new(Budget::new(descriptors.all)),
            descriptor_dir: Arc::new(descriptor_dir),
            watch: OnceLock::new(),
        };
        Share::with_tables(common, root, path_fd).map_err(at_path)
    }

    /// A share with the root only, which is open behind both descriptors; the second is an O_PATH one.
    fn with_tables(common: Common, root_fd: OwnedFd, path_fd: OwnedFd) -> Result<Share, RootFault> {
        let (policy, budget) = (&common.policy, &common.budget);
        let inodes_max = inodes_max(getrlimit(Resource::As).current);
        let inodes_len = inodes_len(inodes_max);
        let arena = Arena::new(inodes_len + HANDLES_LEN + MOUNTS_LEN + LOCKS_LEN)?;
        let handles = HandleTable::new(&arena, inodes_len, Arc::clone(budget));
        let files = Arc::new(OpenFiles::new(handles, policy.descriptors, Arc::clone(budget)));
        let records = InodeRecords::new(&arena, 0, inodes_max);
        let (root_number, path_number) = (root_fd.as_raw_fd(), path_fd.as_raw_fd());
        let mounts = MountRecords::new(&arena, inodes_len + HANDLES_LEN);
        let inodes = Inodes::new(common.root.clone(), (records, mounts), (root_fd, path_fd), Arc::clone(&files))?;
        let session = SessionRecord::new(&arena, root_number, path_number, inodes.session_generation());
        let locks = GuestLocks::new(policy.lock_wait, LockRecords::new(&arena, inodes_len + HANDLES_LEN + MOUNTS_LEN));
        Ok(Share::of(common, arena, session, inodes, files, locks))
    }

    fn of(common: Common, arena: Arc<Arena>, session: SessionRecord, inodes: Inodes, files: Arc<OpenFiles>, locks: GuestLocks) -> Share {
        let Common { policy, descriptor_dir, watch, .. } = common;
        let inodes = Arc::new(inodes);
        Share {
            session: FuseSession::new(session),
            directories: OpenDirectories::default(),
            locks,
            freshness: Freshness::new(policy.timeouts, Arc::clone(&inodes), watch),
            inodes,
            files,
            descriptor_dir,
            policy,
            arena,
        }
    }

    /// The share that a process which has ended had of this directory, with all that its guest knows and has open; `arena` is its
    /// [`Share::arena`]. This share is as it was when that process began, and must not be dropped afterwards: its descriptors may be
    /// the other one's. Makes no call to the shared file system. `taken` are numbers that are somebody else's, whatever the records say.
    ///
    /// # Errors
    /// The records cannot be used: [`ShareError::Arena`].
    pub fn recovered(&self, arena: OwnedFd, taken: &[RawFd]) -> Result<Share, ShareError> {
        let arena = Arena::attach(arena)?;
        let budget = Arc::new(Budget::new(self.policy.descriptors.all));
        let inodes = InodeRecords::attach(&arena)?;
        let mounts = MountRecords::attach(&arena)?;
        let handles = HandleTable::attach(&arena, Arc::clone(&budget))?;
        let AttachedLocks { records: lock_records, owners } = LockRecords::attach(&arena)?;
        let (session, root) = SessionRecord::attach(&arena)?;
        crash_point!("attached");
        let of_root = [root.root_fd.as_raw_fd(), root.path_fd.as_raw_fd()];
        // A number may be in `taken` more than once. It is contested where a record names it as well.
        let mut named = taken.to_vec();
        named.sort_unstable();
        named.dedup();
        named.extend(of_root);
        handles.name_descriptors(&mut named);
        named.extend(inodes.pinned.iter().map(Pinned::number));
        named.extend(mounts.open.iter().map(|(_, fd, _)| fd.number()));
        named.extend(owners.iter().map(AttachedOwner::number));
        let contested = named_twice(named);
        if of_root.iter().any(|fd| contested.contains(fd)) {
            std::mem::forget(root);
            return Err(ArenaError::Unusable("the root's descriptors are somebody else's").into());
        }
        handles.give_up(&contested);
        let common = Common {
            policy: Arc::clone(&self.policy),
            root: self.inodes.root().clone(),
            budget: Arc::clone(&budget),
            descriptor_dir: Arc::clone(&self.descriptor_dir),
            watch: OnceLock::new(),
        };
        let files = Arc::new(OpenFiles::new(handles, self.policy.descriptors, budget));
        let attached = Attached { inodes, mounts, root };
        let inodes = Inodes::recovered(common.root.clone(), attached, Arc::clone(&files), |fd| contested.contains(&fd));
        // FORGET ends locks after the lookups of their file, and the end of the session after itself.
        let is_known = |owner: &AttachedOwner| !session.has_ended() && inodes.is_looked_up(owner.node());
        let (owners, gone) = owners.into_iter().partition::<Vec<_>, _>(|owner| is_known(owner) && !contested.contains(&owner.number()));
        gone.into_iter().for_each(|owner| lock_records.drop_owner(owner));
        let opened = owners.into_iter().map(AttachedOwner::own).map(|(owner, file)| (owner, files.counted_open(file)));
        let locks = GuestLocks::recovered(self.policy.lock_wait, lock_records, opened);
        let share = Share::of(common, arena, session, inodes, files, locks);
        share.files.open_directories().for_each(|handle| share.directories.insert_read(handle));
        crash_point!("recovered");
        Ok(share)
    }

    /// The descriptor of the records, by which the next process goes on if this one dies ([`Share::recovered`]). `None` where there is
    /// none, as the limit of file sizes (RLIMIT_FSIZE) is too low.
    pub fn arena(&self) -> Option<BorrowedFd<'_>> {
        self.arena.descriptor()
    }

    /// Adds the number of every descriptor that the share has beyond a request to `named`: no other is its own.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.extend(self.arena().map(|fd| fd.as_raw_fd()));
        named.push(self.descriptor_dir.number());
        self.inodes.name_descriptors(named);
        self.files.name_descriptors(named);
        self.locks.name_descriptors(named);
    }

    /// The same directory for the next session: with tables of its own, and the same budget of descriptors. Makes no call to the
    /// shared file system, which may not respond.
    ///
    /// # Errors
    /// There is no memory for the tables, or no descriptor.
    pub fn renewed(&self) -> Result<Share, ShareError> {
        let again = || -> Result<Share, RootFault> {
            let (root_fd, path_fd) = self.inodes.root_descriptors()?;
            let common = Common {
                policy: Arc::clone(&self.policy),
                root: self.inodes.root().clone(),
                budget: Arc::clone(self.files.budget()),
                descriptor_dir: Arc::clone(&self.descriptor_dir),
                watch: self.freshness.hand_over_watch(),
            };
            Share::with_tables(common, root_fd, path_fd)
        };
        again().map_err(|fault| ShareError::of(fault, self.path()))
    }

    pub(super) fn inodes(&self) -> &Inodes {
        &self.inodes
    }

    pub(super) fn descriptor_dir(&self) -> &DescriptorDir {
        &self.descriptor_dir
    }

    /// Descriptors of the root for another table of records: of its mount, and an O_PATH one.
    pub(super) fn root_descriptors(&self) -> Result<(OwnedFd, OwnedFd), ShareError> {
        self.inodes.root_descriptors().map_err(|fault| ShareError::of(fault, self.path()))
    }

    /// The shared directory's path, for messages.
    pub fn path(&self) -> &Path {
        &self.policy.path
    }

    /// Whether file handles are opened, of the share or of mounts below it.
    pub fn opens_handles(&self) -> bool {
        self.inodes.root().by_handle
    }

    /// Whether inodes of the share itself are kept as file handles, so that their number is not limited by open descriptors.
    pub fn is_by_handle(&self) -> bool {
        self.inodes.root().is_by_handle()
    }

    /// Whether the file system has file handles that this process may not open, although the option asks for them.
    pub fn refuses_handles(&self) -> bool {
        let root = self.inodes.root();
        root.file_handles != FileHandles::Never && !root.by_handle && !self.fs_limits().contains(&FsLimit::FileHandles)
    }

    /// What the share's file system does not support.
    pub fn fs_limits(&self) -> &[FsLimit] {
        &self.policy.fs_limits
    }

    /// Watches for changes that other processes of the host make: by `whole`, or by marks on directories. To be called when the
    /// process is confined, as it starts a thread.
    ///
    /// # Errors
    /// The kernel has no fanotify(7) with file handles, or the thread cannot be started.
    pub fn start_watch(self: &Arc<Share>, whole: Option<FileSystemWatch>) -> std::io::Result<()> {
        let watch = Arc::new(Watch::new(whole, self.inodes.root_key().device)?);
        watch.start()?;
        let goes_on = self.session.negotiated_word() != 0;
        if goes_on {
            watch.all_has_changed();
        }
        self.freshness.set_watch(watch);
        self.take_over_watch();
        if goes_on {
            let is_directory = |node: &NodeId| self.inodes.kind(*node) == Ok(libc::S_IFDIR);
            self.inodes.nodes().into_iter().filter(is_directory).for_each(|node| self.freshness.watch_directory(node));
        }
        Ok(())
    }

    /// From now on the watch, if there is one, is for this share.
    pub(super) fn take_over_watch(self: &Arc<Share>) {
        if let Some(watch) = self.freshness.watch() {
            let share = Arc::downgrade(self);
            watch.restart(move |file| share.upgrade().is_none_or(|share| share.inodes.may_know(file)));
        }
    }

    /// What the watch sees, for the log.
    pub fn watch_sees(&self) -> &'static str {
        let root = self.inodes.path_fd(NodeId::ROOT);
        if !root.and_then(|root| stat::is_changed_here_only(root.as_fd())).unwrap_or(false) {
            "nothing: the share is on a network or FUSE file system, which other hosts change unseen; the timeouts of --cache hold"
        } else if self.freshness.watch().is_some_and(Watch::sees_everything) {
            "every change in the share's file system, but through mmap"
        } else if self.opens_handles() {
            "changes by name in directories that the guest knows; files, which others may open by handle unseen, keep the timeouts of --cache"
        } else {
            "changes by name in directories that the guest knows"
        }
    }

    /// Prepares a thread to serve this share. Each serving thread calls it once.
    ///
    /// # Errors
    /// The thread's working directory cannot be changed.
    pub fn enter_thread(&self) -> std::io::Result<()> {
        self.descriptor_dir.enter()
    }

    /// The request's I/O on `file` is complete; closes it if its RELEASE came meanwhile.
    pub fn let_go(&self, file: FileInUse) {
        self.files.let_go(file);
    }

    /// To be called before each change but a WRITE: EROFS on a read-only share. A WRITE that the thread served before may have
    /// had setuid and setgid bits cleared; the change keeps them.
    pub(super) fn writable(&self) -> Result<(), Errno> {
        keep_suidgid(true);
        self.not_readonly()
    }

    /// EROFS on a read-only share.
    pub(super) fn not_readonly(&self) -> Result<(), Errno> {
        if self.policy.readonly { Err(Errno::EROFS) } else { Ok(()) }
    }
}
