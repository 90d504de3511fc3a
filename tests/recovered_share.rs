//! A share whose process died is attached again by the next one: what the guest knows and has open is as it was.
//!
//! Both are in this process. The one that dies is forgotten: nothing of it is closed, freed or written. The next begins with a
//! share of the same directory that nothing was done with.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use gatherfs::fuse::Negotiated;
use gatherfs::host::{
    Descriptors, DirectoryEntry, Feature, Features, FileHandles, Listing, LockFamily, LockOwner, LockRequest, Locked, Lookup, NodeEntry,
    Options, Pending, RequestContext, Share, ShareError,
};
use gatherfs::state::{ArenaError, RequestRecord};
use gatherfs::sys::lock::{LockKind, Span};
use gatherfs::sys::working_dir::DescriptorDir;
use gatherfs::types::{Errno, FileHandle, GuestGid, GuestUid, NodeId, QueueIndex, RequestId, Unique};
use gatherfs_support::in_process::share_options;
use gatherfs_support::private_mounts::{self, Mount};
use gatherfs_support::share::Scratch;

/// More inodes than a block of records has, so that there are several.
const MANY: usize = 5000;

struct Wanted;

impl Pending for Wanted {
    fn is_wanted(&self) -> bool {
        true
    }
}

/// Runs `act` with the context of a request.
fn requested<R>(act: impl FnOnce(&RequestContext<'_>) -> R) -> R {
    let id = RequestId { queue: QueueIndex(1), head: 0, unique: Unique(1) };
    let (uid, gid) = (GuestUid(rustix::process::getuid().as_raw()), GuestGid(rustix::process::getgid().as_raw()));
    let record = RequestRecord::default();
    act(&RequestContext { id, uid, gid, pending: &Wanted, record: &record, earlier: None })
}

/// A share of one directory over the lives of its processes.
struct Lives {
    options: Options,
    descriptors: Descriptors,
    /// `None` between two lives.
    share: Option<Share>,
}

impl Lives {
    fn new(directory: &Path, options: Options) -> Lives {
        Lives::with(directory, options, Descriptors::of(4096, None))
    }

    fn with(directory: &Path, options: Options, descriptors: Descriptors) -> Lives {
        let mut lives = Lives { options: Options { shared_dir: directory.to_owned(), ..options }, descriptors, share: None };
        let share = lives.untouched();
        share.enter_thread().unwrap();
        share.begin_session(everything(), 77);
        lives.share = Some(share);
        lives
    }

    /// A share that nothing was done with, as the keeper has it.
    fn untouched(&self) -> Share {
        let root = std::fs::File::open(&self.options.shared_dir).unwrap().into();
        Share::export(self.options.clone(), self.descriptors, root, DescriptorDir::open().unwrap()).unwrap()
    }

    /// The process dies, and the next one goes on.
    fn restart(&mut self) {
        self.restart_with(|_| ()).unwrap();
    }

    /// As [`Lives::restart`]; `between` the two it does something to the records.
    fn restart_with(&mut self, between: impl FnOnce(BorrowedFd<'_>)) -> Result<(), ShareError> {
        self.restart_beside(&[], between)
    }

    /// As [`Lives::restart_with`], where the descriptors `taken` are somebody else's.
    fn restart_beside(&mut self, taken: &[RawFd], between: impl FnOnce(BorrowedFd<'_>)) -> Result<(), ShareError> {
        let old = self.share.take().unwrap();
        let arena = rustix::io::fcntl_dupfd_cloexec(old.arena().unwrap(), 0).unwrap();
        std::mem::forget(old);
        between(std::os::fd::AsFd::as_fd(&arena));
        let keeper = self.untouched();
        let recovered = keeper.recovered(arena, taken);
        std::mem::forget(keeper);
        let recovered = recovered?;
        recovered.enter_thread().unwrap();
        self.share = Some(recovered);
        Ok(())
    }

    fn share(&self) -> &Share {
        self.share.as_ref().unwrap()
    }

    fn look_up(&self, parent: NodeId, name: &str) -> NodeEntry {
        match requested(|context| self.share().lookup(parent, &CString::new(name).unwrap(), context)).unwrap() {
            Lookup::Found(entry) => entry,
            Lookup::Absent(_) => panic!("{name} is not there"),
        }
    }

    fn open(&self, node: NodeId, flags: i32) -> FileHandle {
        requested(|context| self.share().open(node, flags.cast_unsigned(), false, context)).unwrap().handle
    }

    fn read(&self, node: NodeId, handle: FileHandle) -> Result<Vec<u8>, Errno> {
        let prepared = self.share().prepare_read(node, handle)?;
        let mut bytes = vec![0; 100];
        let file = std::mem::ManuallyDrop::new(file_of(prepared.file.fd()));
        let len = file.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(len);
        self.share().let_go(prepared.file);
        Ok(bytes)
    }

    fn named(&self) -> Vec<RawFd> {
        let mut named = Vec::new();
        self.share().name_descriptors(&mut named);
        named.sort_unstable();
        named
    }

    /// How often `node` must be forgotten until it is gone, at most `max` times. It is gone afterwards.
    fn forget_all(&self, node: NodeId, max: u64) -> u64 {
        (1..=max)
            .find(|_| {
                self.share().forget(node, 1);
                self.share().getattr(node, None).is_err()
            })
            .unwrap_or(0)
    }
}

/// What a guest supports that this file is about, without retention.
fn everything() -> Features {
    [Feature::Submounts, Feature::Readdirplus].into_iter().collect()
}

/// Features with which forgotten nodes are retained.
fn exporting() -> Features {
    everything().with(Feature::Export)
}

fn file_of(fd: BorrowedFd<'_>) -> std::fs::File {
    use std::os::fd::FromRawFd;
    // SAFETY: the caller does not drop it.
    unsafe { std::fs::File::from_raw_fd(fd.as_raw_fd()) }
}

fn without_handles() -> Options {
    Options { file_handles: FileHandles::Never, ..share_options() }
}

/// Names and the offset behind the last.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    room: usize,
    offset: u64,
    inos: Vec<u64>,
}

impl Listing for Names {
    fn has_room(&self, _: usize) -> bool {
        self.names.len() < self.room
    }

    fn push(&mut self, entry: &DirectoryEntry<'_>, _: Option<&NodeEntry>) {
        self.names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        self.offset = entry.next_offset;
        self.inos.push(entry.ino);
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

fn files(directory: &Path, count: usize) {
    for i in 0..count {
        std::fs::write(directory.join(format!("file{i}")), format!("contents {i}")).unwrap();
    }
}

#[test]
fn inodes_and_counts_survive() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 20);
    std::fs::create_dir(scratch.join("dir")).unwrap();
    std::fs::write(scratch.join("dir/file"), b"below").unwrap();
    for options in [share_options(), without_handles()] {
        let mut lives = Lives::new(scratch.path(), options);
        let nodes: Vec<NodeId> = (0..20).map(|i| lives.look_up(NodeId::ROOT, &format!("file{i}")).node).collect();
        let dir = lives.look_up(NodeId::ROOT, "dir").node;
        (0..4).for_each(|_| assert_eq!(lives.look_up(NodeId::ROOT, "file7").node, nodes[7]));
        lives.share().forget(nodes[3], 1);
        for life in 2..4 {
            lives.restart();
            for (i, node) in nodes.iter().enumerate().filter(|(i, _)| *i != 3) {
                assert_eq!(lives.look_up(NodeId::ROOT, &format!("file{i}")).node, *node, "life {life}: found by its name");
                let size = format!("contents {i}").len() as u64;
                assert_eq!(lives.share().getattr(*node, None).unwrap().attributes.size, size, "and by its id");
                lives.share().forget(*node, 1);
            }
            assert_eq!(lives.share().getattr(nodes[3], None), Err(Errno::ESTALE), "forgotten before");
            let below = lives.look_up(dir, "file");
            assert_eq!(lives.read(below.node, lives.open(below.node, libc::O_RDONLY)).unwrap(), b"below");
        }
        assert_eq!(lives.forget_all(nodes[7], 10), 5);
        assert_eq!(lives.forget_all(nodes[8], 10), 1);
    }
}

#[test]
fn retained_ids_stay_valid() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 3);
    let mut lives = Lives::new(scratch.path(), share_options());
    lives.share().begin_session(exporting(), 78);
    let [one, two, three] = [0, 1, 2].map(|i| lives.look_up(NodeId::ROOT, &format!("file{i}")).node);
    for node in [one, two] {
        lives.share().forget(node, 1);
    }
    lives.restart();
    for node in [one, two, three] {
        assert!(lives.share().getattr(node, None).is_ok());
    }
    assert_eq!(lives.look_up(NodeId::ROOT, "file0").node, one);
    lives.share().forget(three, 1);
    lives.restart();
    assert!(lives.share().getattr(three, None).is_ok(), "kept as the others are");
}

#[test]
fn a_descriptor_of_the_keepers_is_no_file_of_the_guests() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 2);
    let mut lives = Lives::new(scratch.path(), share_options());
    let nodes = [0, 1].map(|i| lives.look_up(NodeId::ROOT, &format!("file{i}")).node);
    let handles = nodes.map(|node| lives.open(node, libc::O_RDONLY));
    let number = lives.share().prepare_read(nodes[0], handles[0]).unwrap().file.fd().as_raw_fd();
    lives.restart_beside(&[number], |_| ()).unwrap();
    assert_eq!(lives.read(nodes[0], handles[0]), Err(Errno::EBADF));
    assert!(rustix::io::fcntl_getfd(unsafe_borrow(number)).is_ok(), "it is not closed");
    assert_eq!(lives.read(nodes[1], handles[1]).unwrap(), b"contents 1");
    // Without a root there is no share.
    let root = lives.named();
    assert!(lives.restart_beside(&root, |_| ()).is_err());
}

#[test]
fn handles_survive() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 3);
    let mut lives = Lives::new(scratch.path(), share_options());
    let nodes = [0, 1, 2].map(|i| lives.look_up(NodeId::ROOT, &format!("file{i}")).node);
    let [kept, released, in_use] = nodes.map(|node| lives.open(node, libc::O_RDONLY));
    requested(|context| lives.share().release(released, None, context)).unwrap();
    // Two requests are reading when the process dies; of one of the files the guest has closed the handle.
    let reads = [(nodes[0], kept), (nodes[2], in_use)].map(|(node, handle)| lives.share().prepare_read(node, handle).unwrap());
    let number = reads[1].file.fd().as_raw_fd();
    requested(|context| lives.share().release(in_use, None, context)).unwrap();
    std::fs::remove_file(scratch.join("file0")).unwrap();
    reads.into_iter().for_each(std::mem::forget);
    lives.restart();
    assert_eq!(lives.read(nodes[0], kept).unwrap(), b"contents 0", "deleted on the host, and open");
    for handle in [released, in_use] {
        assert_eq!(lives.read(nodes[1], handle), Err(Errno::EBADF));
    }
    assert!(!lives.named().contains(&number));
    // The number may be another test's by now.
    let is_file2 = |st: rustix::fs::Stat| st.st_ino == std::fs::metadata(scratch.join("file2")).unwrap().ino();
    assert!(!rustix::fs::fstat(unsafe_borrow(number)).is_ok_and(is_file2), "closed by the next process");
    let next = lives.open(nodes[1], libc::O_RDONLY);
    assert!(![kept, released, in_use].contains(&next), "no number is given twice");
    requested(|context| lives.share().release(kept, None, context)).unwrap();
    assert_eq!(lives.read(nodes[0], kept), Err(Errno::EBADF), "one release closes it: no request has it any more");
}

fn unsafe_borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: only queried.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[test]
fn slots_are_rebuilt() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), MANY);
    let mut lives = Lives::new(scratch.path(), share_options());
    let nodes: Vec<NodeId> = (0..MANY).map(|i| lives.look_up(NodeId::ROOT, &format!("file{i}")).node).collect();
    let mut seen: std::collections::HashSet<NodeId> = nodes.iter().copied().collect();
    // The second block is emptied, of the others some slots are free.
    let is_forgotten = |i: usize| i.is_multiple_of(7) || (2040..4100).contains(&i);
    (0..MANY).filter(|i| is_forgotten(*i)).for_each(|i| lives.share().forget(nodes[i], 1));
    for _ in 0..3 {
        lives.restart();
        for (i, old) in nodes.iter().enumerate() {
            let node = lives.look_up(NodeId::ROOT, &format!("file{i}")).node;
            assert_eq!(node == *old, !is_forgotten(i), "file {i}");
            assert!(node == *old || seen.insert(node), "an id was given again");
            if is_forgotten(i) {
                assert_eq!(lives.share().getattr(*old, None), Err(Errno::ESTALE));
            }
            lives.share().forget(node, 1);
        }
    }
}

#[test]
fn node_ids_keep_their_generation() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 2);
    let mut lives = Lives::new(scratch.path(), share_options());
    let before = lives.look_up(NodeId::ROOT, "file0");
    let other_session = lives.untouched();
    lives.restart();
    let after = lives.look_up(NodeId::ROOT, "file0");
    assert_eq!((after.node, after.generation), (before.node, before.generation));
    assert_eq!(lives.look_up(NodeId::ROOT, "file1").generation, before.generation, "of a new one, too");
    let Ok(Lookup::Found(other)) = requested(|context| other_session.lookup(NodeId::ROOT, c"file0", context)) else { panic!("not found") };
    assert_ne!(other.generation, before.generation);
}

#[test]
fn inodes_without_handles_survive() {
    let scratch = Scratch::new();
    files(scratch.path(), 4);
    let mut lives = Lives::new(scratch.path(), without_handles());
    let nodes = [0, 1, 2, 3].map(|i| lives.look_up(NodeId::ROOT, &format!("file{i}")).node);
    let named = lives.named();
    lives.share().forget(nodes[2], 1);
    std::fs::rename(scratch.join("file0"), scratch.join("moved")).unwrap();
    std::fs::remove_file(scratch.join("file1")).unwrap();
    lives.restart();
    assert_eq!(lives.read(nodes[0], lives.open(nodes[0], libc::O_RDONLY)).unwrap(), b"contents 0", "by its descriptor, not by a name");
    assert_eq!(lives.share().getattr(nodes[1], None).unwrap().attributes.links, 0, "deleted on the host");
    assert_eq!(lives.share().getattr(nodes[2], None), Err(Errno::ESTALE));
    let of_nodes = |named: &[RawFd], lives: &Lives| named.iter().filter(|fd| lives.named().contains(fd)).count();
    assert!(of_nodes(&named, &lives) >= 2 + 3, "the root's and those of three nodes have the numbers that they had");
    let before = lives.named().len();
    lives.share().forget(nodes[3], 1);
    assert_eq!(lives.named().len(), before - 1, "closed when it is forgotten");
}

#[test]
fn what_is_named_is_open_and_nothing_is_named_twice() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 4);
    for options in [share_options(), without_handles()] {
        let mut lives = Lives::new(scratch.path(), options);
        let node = lives.look_up(NodeId::ROOT, "file0").node;
        lives.open(node, libc::O_RDONLY);
        requested(|context| lives.share().opendir(NodeId::ROOT, context)).unwrap();
        lives.restart();
        let named = lives.named();
        assert!(named.windows(2).all(|pair| pair[0] < pair[1]), "{named:?}");
        assert!(named.iter().all(|fd| rustix::io::fcntl_getfd(unsafe_borrow(*fd)).is_ok()), "{named:?}");
        assert!(named.len() >= 6, "arena, directory of descriptors, root twice, two handles: {named:?}");
    }
}

#[test]
fn a_listing_goes_on_after_a_restart() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 50);
    let mut lives = Lives::new(scratch.path(), share_options());
    let handle = requested(|context| lives.share().opendir(NodeId::ROOT, context)).unwrap().handle;
    let (mut names, mut offset) = (Vec::new(), 0);
    // More is read ahead than the guest takes: the position of the descriptor is not that of the guest.
    loop {
        let mut part = Names { room: 5, ..Names::default() };
        lives.share().readdir(NodeId::ROOT, handle, offset, 4096, &mut part).unwrap();
        if part.names.is_empty() {
            break;
        }
        (offset, names) = (part.offset, [names, part.names].concat());
        lives.restart();
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 52, "each entry once, with . and ..");
    requested(|context| lives.share().releasedir(handle, context)).unwrap();
    assert_eq!(requested(|context| lives.share().releasedir(handle, context)), Err(Errno::EBADF));
}

#[test]
fn the_budget_is_right_after_a_restart() {
    let scratch = Scratch::new();
    files(scratch.path(), 100);
    let descriptors = Descriptors { all: 40, recent: 16 };
    let mut lives = Lives::with(scratch.path(), without_handles(), descriptors);
    let fill = |lives: &Lives| {
        let mut handles = Vec::new();
        let node = lives.look_up(NodeId::ROOT, "file0").node;
        while let Ok(opened) = requested(|context| lives.share().open(node, 0, false, context)) {
            handles.push(opened.handle);
        }
        handles
    };
    let handles = fill(&lives);
    assert!(handles.len() > 30, "{}", handles.len());
    lives.restart();
    assert_eq!(fill(&lives).len(), 0, "as full as before");
    handles[..10].iter().for_each(|handle| requested(|context| lives.share().release(*handle, None, context)).unwrap());
    for round in 0..3 {
        lives.restart();
        let again = fill(&lives);
        assert_eq!(again.len(), 10, "round {round}: the places of those that were released");
        again.iter().for_each(|handle| requested(|context| lives.share().release(*handle, None, context)).unwrap());
    }
}

#[test]
fn init_survives() {
    let scratch = Scratch::with_file_handles();
    files(scratch.path(), 1);
    let mut lives = Lives::new(scratch.path(), share_options());
    let negotiated = Negotiated { flags: 1 << 40 | 5, minor: 41 };
    lives.share().begin_session(exporting(), negotiated.to_word());
    let node = lives.look_up(NodeId::ROOT, "file0").node;
    lives.restart();
    assert_eq!(Negotiated::from_word(lives.share().negotiated_word()), Some(negotiated));
    lives.share().forget(node, 1);
    assert!(lives.share().getattr(node, None).is_ok(), "retained, as was negotiated");
    // A process that died before INIT.
    let mut lives = Lives { share: None, ..lives };
    lives.share = Some(lives.untouched());
    lives.restart();
    assert_eq!(lives.share().negotiated_word(), 0);
    assert!(requested(|context| lives.share().opendir(NodeId::ROOT, context)).is_ok());
}

#[test]
fn a_submount_is_served_after_a_restart() {
    if !private_mounts::enter() {
        return;
    }
    for options in [share_options(), without_handles()] {
        let scratch = Scratch::with_file_handles();
        let below = Mount::new("tmpfs", &scratch.join("below"));
        std::fs::write(scratch.join("below/file"), b"below").unwrap();
        std::fs::write(scratch.join("below/other"), b"other").unwrap();
        let mut lives = Lives::new(scratch.path(), options);
        let mount = lives.look_up(NodeId::ROOT, "below");
        let file = lives.look_up(mount.node, "file");
        let ino = |lives: &Lives| lives.share().getattr(file.node, None).unwrap().attributes.ino;
        let before = ino(&lives);
        for _ in 0..2 {
            lives.restart();
            assert_eq!(lives.read(file.node, lives.open(file.node, libc::O_RDONLY)).unwrap(), b"below");
            assert_eq!(lives.look_up(mount.node, "file").node, file.node);
            assert_eq!(ino(&lives), before, "announced, so its numbers are its own");
            let other = lives.look_up(mount.node, "other").node;
            lives.share().forget(other, u64::MAX);
        }
        // Two handles are open on it, and nothing else once its inodes are forgotten.
        let named = lives.named().len();
        [mount.node, file.node].iter().for_each(|node| lives.share().forget(*node, u64::MAX));
        assert!(lives.named().len() < named, "its descriptors are closed");
        lives.restart();
        assert_eq!(lives.share().getattr(file.node, None), Err(Errno::ESTALE));
        drop(below);
    }
}

#[test]
fn submounts_stay_announced() {
    if !private_mounts::enter() {
        return;
    }
    let scratch = Scratch::with_file_handles();
    let _below = Mount::new("tmpfs", &scratch.join("below"));
    std::fs::write(scratch.join("below/file"), b"below").unwrap();
    let mut lives = Lives::new(scratch.path(), share_options());
    let mount = lives.look_up(NodeId::ROOT, "below");
    let listed = |lives: &Lives| {
        let handle = requested(|context| lives.share().opendir(mount.node, context)).unwrap().handle;
        let mut names = Names { room: 10, ..Names::default() };
        lives.share().readdir(mount.node, handle, 0, 4096, &mut names).unwrap();
        requested(|context| lives.share().releasedir(handle, context)).unwrap();
        names.inos
    };
    let before = listed(&lives);
    lives.restart();
    // Without a lookup of the mount, which would announce it again.
    assert_eq!(listed(&lives), before);
    let own = std::fs::metadata(scratch.join("below/file")).unwrap().ino();
    assert!(before.contains(&own), "numbers of a device of its own: {before:?}");
}

#[test]
fn inode_numbers_stay() {
    if !private_mounts::enter() {
        return;
    }
    let scratch = Scratch::with_file_handles();
    // Mounts that are not announced get the index of their device, in the order of their first use.
    let mut lives = Lives::new(scratch.path(), Options { announce_submounts: false, ..share_options() });
    let mounts = ["a", "b", "c"].map(|name| Mount::new("tmpfs", &scratch.join(name)));
    let ino = |lives: &Lives, name: &str| lives.look_up(NodeId::ROOT, name).attributes.ino;
    let (b, a) = (ino(&lives, "b"), ino(&lives, "a"));
    lives.restart();
    let c = ino(&lives, "c");
    lives.restart();
    assert_eq!((ino(&lives, "a"), ino(&lives, "b"), ino(&lives, "c")), (a, b, c));
    assert!(a != b && b != c && a != c, "{a:#x} {b:#x} {c:#x}");
    drop(mounts);
}

#[test]
fn the_watch_begins_anew() {
    let scratch = Scratch::on_tmpfs();
    std::fs::create_dir(scratch.join("dir")).unwrap();
    let mut lives = Lives::new(scratch.path(), share_options());
    // One whose session begins after its watch, as in a daemon.
    lives.share = Some(lives.untouched());
    let watch = |lives: &mut Lives| {
        let share = std::sync::Arc::new(lives.share.take().unwrap());
        let is_watched = share.start_watch(None).is_ok();
        (share, is_watched)
    };
    let (share, is_watched) = watch(&mut lives);
    if !is_watched {
        return println!("skipped: no fanotify here");
    }
    share.begin_session(everything(), 77);
    share.watch_root();
    let Ok(Lookup::Found(dir)) = requested(|context| share.lookup(NodeId::ROOT, c"dir", context)) else { panic!("not found") };
    assert!(requested(|context| share.opendir(dir.node, context)).unwrap().caching.keep, "nothing changed");
    let arena = rustix::io::fcntl_dupfd_cloexec(share.arena().unwrap(), 0).unwrap();
    std::mem::forget(share);
    let keeper = lives.untouched();
    lives.share = Some(keeper.recovered(arena, &[]).unwrap());
    std::mem::forget(keeper);
    let (share, _) = watch(&mut lives);
    assert!(
        !requested(|context| share.opendir(dir.node, context)).unwrap().caching.keep,
        "anything may have changed while no process watched"
    );
}

#[test]
fn records_that_are_none_are_refused() {
    let scratch = Scratch::with_file_handles();
    let lives = Lives::new(scratch.path(), share_options());
    let keeper = lives.untouched();
    let empty = || rustix::fs::memfd_create(c"none", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let short = empty();
    rustix::io::write(&short, b"gatherfs").unwrap();
    let long = empty();
    rustix::fs::ftruncate(&long, 1 << 20).unwrap();
    let pipe = rustix::pipe::pipe().unwrap().0;
    for fd in [empty(), short, long, pipe, std::fs::File::open("/dev/null").unwrap().into()] {
        let refused = keeper.recovered(fd, &[]).map(drop);
        assert!(matches!(refused, Err(ShareError::Arena(ArenaError::Unusable(_) | ArenaError::Unreadable(_)))), "{refused:?}");
    }
}

/// A share with locks on the host, a file, and an open handle of it.
fn with_locks(directory: &Path) -> (Lives, NodeId, FileHandle) {
    std::fs::write(directory.join("locked"), b"contents").unwrap();
    let lives = Lives::new(directory, Options { host_locks: true, ..share_options() });
    let locking = everything().with(Feature::PosixLocks).with(Feature::FlockLocks);
    lives.share().begin_session(locking, 78);
    let node = lives.look_up(NodeId::ROOT, "locked").node;
    let handle = lives.open(node, libc::O_RDWR);
    (lives, node, handle)
}

fn owner(family: LockFamily, id: u64) -> LockOwner {
    LockOwner { family, id }
}

fn lock_request(node: NodeId, handle: FileHandle, owner: LockOwner, span: Span) -> LockRequest {
    LockRequest { node, handle, owner, span, kind: LockKind::Exclusive, pid: 1000 + u32::try_from(owner.id).unwrap() }
}

#[test]
fn locks_survive() {
    let scratch = Scratch::with_file_handles();
    let (mut lives, node, handle) = with_locks(scratch.path());
    let [posix, flock] = [owner(LockFamily::Posix, 5), owner(LockFamily::Flock, 5)];
    let [mine, other] = [lock_request(node, handle, posix, Span { start: 3, end: 9 }), lock_request(node, handle, flock, Span::WHOLE)];
    let others = |request: &LockRequest| LockRequest { owner: LockOwner { id: 6, ..request.owner }, ..*request };
    assert_eq!((lives.share().setlk(&mine, None), lives.share().setlk(&other, None)), (Ok(Locked::Done), Ok(Locked::Done)));
    let before = lives.named();
    for _ in 0..2 {
        lives.restart();
        assert_eq!(lives.named().len(), before.len());
        for request in [mine, other] {
            assert_eq!(lives.share().setlk(&others(&request), None), Err(Errno::EAGAIN));
            let held = lives.share().getlk(&others(&request)).unwrap().unwrap();
            assert_eq!((held.pid, held.span), (1005, request.span));
            assert_eq!(lives.share().setlk(&request, None), Ok(Locked::Done), "its owner holds it");
        }
    }
    lives.share().unlock(node, handle, posix, Span::WHOLE).unwrap();
    lives.share().unlock(node, handle, flock, Span::WHOLE).unwrap();
    assert_eq!(lives.named().len(), before.len() - 2, "the descriptors of both are closed");
    lives.restart();
    assert_eq!(lives.named().len(), before.len() - 2);
    assert_eq!(lives.share().setlk(&others(&mine), None), Ok(Locked::Done));
}

#[test]
fn locks_whose_file_is_not_known_are_nobodys() {
    let scratch = Scratch::with_file_handles();
    let (mut lives, node, handle) = with_locks(scratch.path());
    let request = lock_request(node, handle, owner(LockFamily::Posix, 5), Span::WHOLE);
    assert_eq!(lives.share().setlk(&request, None), Ok(Locked::Done));
    let before = lives.named().len();
    // The process dies in a FORGET, between the end of the lookups and that of the locks. An inode record has 128 bytes, of which the
    // second word is the lookup count; the records begin behind the arena's header.
    let lookups = (64 << 10) + (node.0 & 0xffff_ffff) * 128 + 8;
    lives.restart_with(|arena| _ = rustix::io::pwrite(arena, &0u64.to_ne_bytes(), lookups).unwrap()).unwrap();
    assert_eq!(lives.named().len(), before - 1, "the lock's is left to the sweep");
    assert_ne!(lives.look_up(NodeId::ROOT, "locked").node, node);
}
