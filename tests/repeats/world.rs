//! A share with a guest that knows some of its files, and what is compared of it.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::hash::Hasher;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use gatherfs::host::{
    CreateContext, Descriptors, Feature, Features, FileHandles, Holdings, Label, Lookup, NodeEntry, Opened, Options, Pending,
    RequestContext, Share, TmpfilePolicy,
};
use gatherfs::state::{RequestRecord, Unfinished};
use gatherfs::sys::clock::coarse_ns;
use gatherfs::sys::working_dir::DescriptorDir;
use gatherfs::types::{Errno, FileHandle, GuestGid, GuestUid, NodeId, QueueIndex, RequestId, Unique};
use gatherfs_support::in_process::share_options;
use gatherfs_support::scratch::Scratch;
use gatherfs_support::share::noise;

/// Bytes of the files: of four blocks.
pub const LEN: usize = 16384;
/// A user of the guest's who is not root.
pub const USER: u32 = 1000;

struct Wanted;

impl Pending for Wanted {
    fn is_wanted(&self) -> bool {
        true
    }
}

/// The share and what the guest knows of it.
pub struct World {
    pub share: Share,
    scratch: Scratch,
    /// A regular file that is open for reading and writing.
    pub file: NodeId,
    pub fh: FileHandle,
    pub other: NodeId,
    pub other_fh: FileHandle,
    pub link: NodeId,
    /// A directory, open, with `entry` in it.
    pub sub: NodeId,
    pub sub_fh: FileHandle,
}

/// What the guest's objects hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Holds {
    pub nodes: usize,
    pub lookups: u64,
    pub handles: usize,
}

/// Mode, owner, group, links, attributes, and contents or target of each path, as text.
pub type Tree = BTreeMap<PathBuf, String>;

impl World {
    /// A share of a new directory. The guest has looked up what has a field here, `empty`, `full` and `sub/entry`, and not `fresh`.
    pub fn new(file_handles: FileHandles) -> World {
        let scratch = Scratch::on_disk();
        let path = |name: &str| scratch.path().join(name);
        for directory in ["", "sub", "empty", "full"] {
            std::fs::create_dir_all(path(directory)).unwrap();
            std::fs::set_permissions(path(directory), PermissionsExt::from_mode(0o777)).unwrap();
        }
        for file in ["file", "other", "fresh", "sub/entry", "full/entry"] {
            std::fs::write(path(file), noise(file.len() as u64, LEN)).unwrap();
            std::fs::set_permissions(path(file), PermissionsExt::from_mode(0o644)).unwrap();
        }
        symlink("file", path("link")).unwrap();
        rustix::fs::setxattr(path("file"), c"user.known", b"value", rustix::fs::XattrFlags::empty()).unwrap();
        let options =
            Options { shared_dir: scratch.path().to_owned(), xattr: true, tmpfile: TmpfilePolicy::Always, file_handles, ..share_options() };
        let root = std::fs::File::open(scratch.path()).unwrap().into();
        let share = Share::export(options, Descriptors::of(4096, None), root, DescriptorDir::open().unwrap()).unwrap();
        share.enter_thread().unwrap();
        share.begin_session(Features::default().with(Feature::CreateGroup), 1);
        let (file, fh) = (NodeId::ROOT, FileHandle::NONE);
        let mut world = World { share, scratch, file, fh, other: file, other_fh: fh, link: file, sub: file, sub_fh: fh };
        let look_up = |world: &World, parent, name: &CStr| world.plainly(|request| world.look_up(parent, name, request)).unwrap().node;
        world.file = look_up(&world, NodeId::ROOT, c"file");
        world.other = look_up(&world, NodeId::ROOT, c"other");
        world.link = look_up(&world, NodeId::ROOT, c"link");
        world.sub = look_up(&world, NodeId::ROOT, c"sub");
        look_up(&world, NodeId::ROOT, c"empty");
        look_up(&world, NodeId::ROOT, c"full");
        look_up(&world, world.sub, c"entry");
        let open =
            |world: &World, node| world.plainly(|request| world.share.open(node, libc::O_RDWR as u32, false, request)).unwrap().handle;
        (world.fh, world.other_fh) = (open(&world, world.file), open(&world, world.other));
        world.sub_fh = world.plainly(|request| world.share.opendir(world.sub, request)).unwrap().handle;
        // What is made from now on is younger than all of this, to the tick of the host's clock.
        let newest = world.tree_of(|st| st.ctime() * 1_000_000_000 + st.ctime_nsec()).into_values().max().unwrap();
        while coarse_ns() <= newest {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        world
    }

    /// A request of the guest's root that does not die.
    pub fn plainly<R>(&self, act: impl FnOnce(&RequestContext<'_>) -> R) -> R {
        act(&self.request(0, &RequestRecord::default(), None))
    }

    /// A request.
    pub fn request<'r>(&self, uid: u32, record: &'r RequestRecord, earlier: Option<Unfinished>) -> RequestContext<'r> {
        let id = RequestId { queue: QueueIndex(1), head: 0, unique: Unique(7) };
        RequestContext { id, uid: GuestUid(uid), gid: GuestGid(uid), pending: &Wanted, record, earlier }
    }

    /// LOOKUP of a file that is there.
    pub fn look_up(&self, parent: NodeId, name: &CStr, request: &RequestContext<'_>) -> Result<NodeEntry, Errno> {
        match self.share.lookup(parent, name, request)? {
            Lookup::Found(entry) => Ok(entry),
            Lookup::Absent(_) => Err(Errno::ENOENT),
        }
    }

    /// The context of a create, without a label or with one.
    pub fn create<'c>(&self, request: &RequestContext<'c>, is_labelled: bool) -> Result<CreateContext<'c>, Errno> {
        let label = is_labelled.then_some(Label { name: c"user.label", value: b"label" });
        self.share.create_context(*request, 0, None, label)
    }

    /// What the guest hears of a node. Its count is part of what the world holds.
    pub fn told(&self, entry: &NodeEntry) -> String {
        let a = entry.attributes;
        format!("{:o} of {} bytes, {} links, {}:{}", a.mode, a.size, a.links, a.uid.0, a.gid.0)
    }

    /// What the guest hears of an open file, which must be one.
    pub fn opened(&self, node: NodeId, opened: &Opened) -> String {
        let open = self.share.getattr(node, Some(opened.handle)).unwrap();
        format!("open, {:o} of {} bytes", open.attributes.mode, open.attributes.size)
    }

    /// A path on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// What the guest's objects hold.
    pub fn holds(&self) -> Holds {
        let Holdings { nodes, lookups, handles, .. } = self.share.holdings()();
        Holds { nodes, lookups, handles }
    }

    /// Every file.
    pub fn tree(&self) -> Tree {
        let mut found = BTreeMap::new();
        for (path, st) in self.tree_of(std::fs::Metadata::clone) {
            let host = self.scratch.path().join(&path);
            let contents = match st.mode() & libc::S_IFMT {
                libc::S_IFREG => told_contents(&std::fs::read(&host).unwrap()),
                libc::S_IFLNK => format!("{:?}", std::fs::read_link(&host).unwrap()),
                _ => String::new(),
            };
            let (mode, uid, gid, links) = (st.mode(), st.uid(), st.gid(), st.nlink());
            found.insert(path, format!("{mode:o} {uid}:{gid} {links} {:?} {contents}", attributes(&host)));
        }
        found
    }

    fn tree_of<T>(&self, of: impl Fn(&std::fs::Metadata) -> T) -> BTreeMap<PathBuf, T> {
        let root = self.scratch.path();
        let mut below = vec![root.to_owned()];
        let mut found = BTreeMap::new();
        while let Some(path) = below.pop() {
            let st = std::fs::symlink_metadata(&path).unwrap();
            if st.is_dir() {
                below.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), of(&st));
        }
        found
    }
}

/// Contents, short enough to be printed.
fn told_contents(contents: &[u8]) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(contents);
    format!("{} bytes {:x}", contents.len(), hasher.finish())
}

/// What a process that died has left of the request with `record`.
pub fn left_of(record: &RequestRecord) -> Option<Unfinished> {
    record.unfinished()
}

/// The user's extended attributes.
fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = [0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    let value = |name: &[u8]| {
        let mut value = [0; 256];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value[..len].to_owned()
    };
    let mut found: Vec<_> = names.map(|name| (name.to_owned(), value(name))).collect();
    found.sort();
    found
}
