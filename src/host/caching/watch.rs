//! What host processes change in the share (`--watch`), so that the guest may believe longer what stays as it is.
//!
//! The guest cannot be told of a change, so it is given less time to believe what has changed lately: a quarter
//! of the time for which it has been quiet. The share's file system is watched as a whole where that is permitted; else, and
//! below other mounts, every directory that the guest knows is marked. Where that is not possible for one of them, all of this
//! is off. What cannot be seen is not believed longer.

use std::hash::{BuildHasher, BuildHasherDefault};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHasher};
use rustix::fs::{Mode, OFlags};

use crate::host::inodes::device_of;
use crate::sys::fanotify::{Change, Event, Fanotify};
use crate::sys::file_handle::Handle;
use crate::sys::stat;
use crate::types::NodeId;
use crate::warn_limited;

/// A file may be believed for this part of the time for which it was quiet.
const QUIET_PARTS: u32 = 4;
/// Files that changed lately and are remembered; beyond it everything counts as changed now.
const CHANGED_MAX: usize = 1 << 16;
/// After this a change makes no difference any more: it is far above any timeout's need.
const CHANGE_KEPT: Duration = Duration::from_secs(600);

type Key = u64;

/// A directory: the device too, for the roots of two file systems often have one handle.
type DirectoryKey = (u64, Key);

/// A group that sees every change in the share's file system. To be opened while the process still has CAP_SYS_ADMIN.
#[derive(Debug)]
pub struct FileSystemWatch {
    group: Fanotify,
    device: u64,
}

impl FileSystemWatch {
    /// Watches the file system of the directory `shared`. `None` where this process may not, or where other hosts change
    /// the file system too.
    pub fn open(shared: &Path) -> Option<FileSystemWatch> {
        let dir = rustix::fs::open(shared, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let device = device_of(&stat::of(dir.as_fd()).ok()?);
        if !stat::is_changed_here_only(dir.as_fd()).ok()? {
            return None;
        }
        let group = Fanotify::of_file_system(dir.as_fd());
        let group = group.inspect_err(|e| tracing::debug!("--watch: cannot watch the whole file system: {e}")).ok()?;
        Some(FileSystemWatch { group, device })
    }
}

/// What is seen of the changes on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// Other hosts change it too.
    Nothing,
    /// Directories are marked: a writer that opened a file by its handle may not be seen.
    Directories,
    /// The file system is watched as a whole.
    Everything,
}

/// A file as the watch knows it.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'h> {
    /// The device that it is on.
    pub device: u64,
    /// The handle by which events name it.
    pub handle: &'h Handle,
    /// A marked directory: changes of it are seen whatever it was opened by. Or a file whose node keeps a descriptor, by which
    /// the host's kernel knows its name: who opens it by handle is seen.
    pub is_named: bool,
}

/// A directory that the guest knows by one or more nodes: a directory that is bound twice has two.
#[derive(Debug)]
struct Marked {
    /// Since when changes are seen; `None` where they are not.
    since_ns: Option<u64>,
    node: NodeId,
    others: Vec<NodeId>,
}

impl Marked {
    fn has(&self, node: NodeId) -> bool {
        self.node == node || self.others.contains(&node)
    }

    fn add(&mut self, node: NodeId) {
        if !self.has(node) {
            self.others.push(node);
        }
    }

    /// Takes `node` off. False where it was the last one, and stays.
    fn remove(&mut self, node: NodeId) -> bool {
        if self.node != node {
            self.others.retain(|other| *other != node);
            return true;
        }
        let next = self.others.pop();
        self.node = next.unwrap_or(node);
        next.is_some()
    }
}

/// The directories that the guest knows.
#[derive(Debug, Default)]
struct Directories {
    marked: FxHashMap<DirectoryKey, Marked>,
    /// The devices that they are on. A device's number may come to mean another file system, so each new directory
    /// renews what is known.
    devices: FxHashMap<u64, Sight>,
}

/// A watch over the directories that the guest knows.
#[derive(Debug)]
pub struct Watch {
    group: Fanotify,
    /// The device that is watched as a whole.
    whole: Option<u64>,
    directories: Mutex<Directories>,
    /// When another process changed a file last, in nanoseconds since 1970.
    changed: Mutex<FxHashMap<Key, u64>>,
    /// Everything may have changed until then.
    all_changed_ns: AtomicU64,
    /// When a directory was marked last: what changed since then was seen, whichever directory it is in.
    marked_ns: AtomicU64,
    /// A directory could not be marked: nothing is known for certain.
    incomplete: AtomicBool,
    /// Whether the guest may know a file of the share's file system.
    is_known: Mutex<IsKnown>,
}

/// Tells of a file, by its handle, whether the guest may know it.
struct IsKnown(Box<dyn Fn(&Handle) -> bool + Send>);

impl std::fmt::Debug for IsKnown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IsKnown")
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()) as u64
}

fn key_of(handle: &Handle) -> Key {
    BuildHasherDefault::<FxHasher>::default().hash_one((handle.kind, handle.len, handle.bytes))
}

impl Watch {
    /// A watch by `whole`, which was opened for the file system with `device`, or by marks on directories. An error where the
    /// kernel has none.
    pub fn new(whole: Option<FileSystemWatch>, device: u64) -> std::io::Result<Watch> {
        let whole = whole.filter(|whole| whole.device == device);
        let (group, whole) = match whole {
            Some(whole) => (whole.group, Some(whole.device)),
            None => (Fanotify::new()?, None),
        };
        Ok(Watch {
            group,
            whole,
            directories: Mutex::default(),
            changed: Mutex::default(),
            all_changed_ns: AtomicU64::new(0),
            marked_ns: AtomicU64::new(0),
            incomplete: AtomicBool::new(false),
            is_known: Mutex::new(IsKnown(Box::new(|_| true))),
        })
    }

    /// Begins to read what changes.
    pub fn start(self: &Arc<Watch>) -> std::io::Result<()> {
        let watching = Arc::clone(self);
        std::thread::Builder::new().name("watch".to_owned()).spawn(move || watching.run())?;
        Ok(())
    }

    /// A session begins, whose guest knows nothing yet. From now on `is_known` tells whether it may know a file of the share's
    /// file system.
    pub fn restart(&self, is_known: impl Fn(&Handle) -> bool + Send + 'static) {
        *self.is_known.lock() = IsKnown(Box::new(is_known));
        self.group.unmark_all();
        *self.directories.lock() = Directories::default();
        self.incomplete.store(false, Ordering::Relaxed);
    }

    /// Whether the share's file system is watched as a whole.
    pub fn sees_everything(&self) -> bool {
        self.whole.is_some()
    }

    fn run(&self) {
        loop {
            match self.group.read(|event| self.note(event, now_ns(), |file| self.is_known.lock().0(file))) {
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => {
                    tracing::error!("changes on the host cannot be read: {e}; the guest gets the timeouts of --cache");
                    return self.give_up();
                }
                _ => {}
            }
        }
    }

    fn note(&self, event: Event, now: u64, is_known: impl Fn(&Handle) -> bool) {
        match event {
            Event::Own => {}
            Event::Lost => self.all_changed_ns.store(now, Ordering::Relaxed),
            Event::Changed(change) if !self.concerns(&change, is_known) => {}
            Event::Changed(change) => {
                let mut changed = self.changed.lock();
                if changed.len() >= CHANGED_MAX {
                    let kept_ns = now.saturating_sub(CHANGE_KEPT.as_nanos() as u64);
                    changed.retain(|_, at| *at > kept_ns);
                    if changed.len() >= CHANGED_MAX {
                        changed.clear();
                        self.all_changed_ns.store(now, Ordering::Relaxed);
                    }
                }
                changed.insert(key_of(&change.file), now);
            }
        }
    }

    /// Whether the guest may know what changed. Where the whole file system is watched, most of what changes is elsewhere.
    fn concerns(&self, change: &Change, is_known: impl Fn(&Handle) -> bool) -> bool {
        match &change.directory {
            _ if self.whole.is_none() => true,
            // A file that the guest knows may be changed through another name, or one that it had when it was opened.
            Some(directory) => self.is_covered(directory) || is_known(&change.file),
            // Each removal of a name is told like this, whoever knows the file; a writer by handle is rare.
            None => change.contents || is_known(&change.file),
        }
    }

    fn is_covered(&self, directory: &Handle) -> bool {
        let key = key_of(directory);
        let directories = self.directories.lock();
        directories.devices.keys().any(|device| directories.marked.contains_key(&(*device, key)))
    }

    /// Nothing is seen of what changes on `device`.
    pub fn sees_nothing_on(&self, device: u64) {
        self.directories.lock().devices.insert(device, Sight::Nothing);
        warn_limited!(
            "--watch cannot see what other hosts change in a network or FUSE file system; what lies there keeps the timeouts of --cache"
        );
    }

    /// A directory cannot be watched: nothing is known for certain.
    pub fn give_up(&self) {
        self.incomplete.store(true, Ordering::Relaxed);
    }

    /// Whether the directory `node` with `handle` on `device` is to be covered.
    pub fn is_unmarked(&self, node: NodeId, device: u64, handle: &Handle) -> bool {
        let is_covered = || self.directories.lock().marked.get(&(device, key_of(handle))).is_some_and(|marked| marked.has(node));
        !self.incomplete.load(Ordering::Relaxed) && !is_covered()
    }

    /// The guest knows the directory behind `dir` as `node`: what changes in it is seen from now on, where that is possible.
    pub fn cover(&self, node: NodeId, device: u64, handle: &Handle, dir: BorrowedFd<'_>) {
        let sight = if !stat::is_changed_here_only(dir).unwrap_or(false) {
            Sight::Nothing
        } else if self.whole == Some(device) {
            Sight::Everything
        } else {
            Sight::Directories
        };
        let key = (device, key_of(handle));
        {
            let mut directories = self.directories.lock();
            directories.devices.insert(device, sight);
            if let Some(marked) = directories.marked.get_mut(&key) {
                return marked.add(node);
            }
            directories.marked.insert(key, Marked { since_ns: None, node, others: Vec::new() });
        }
        match sight {
            Sight::Nothing => self.sees_nothing_on(device),
            Sight::Directories => self.mark(key, dir),
            Sight::Everything => _ = self.is_seen_from_now(key),
        }
    }

    fn mark(&self, key: DirectoryKey, dir: BorrowedFd<'_>) {
        match self.group.mark(dir, c".") {
            Ok(()) => {
                if !self.is_seen_from_now(key) {
                    // The guest forgot it meanwhile.
                    let _ = self.group.unmark(dir, c".");
                }
            }
            // It was removed meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => {
                warn_limited!(
                    "--watch cannot watch every directory: {e}; the guest gets the timeouts of --cache \
                     (raise fs.fanotify.max_user_marks if there are more directories than marks)"
                );
                self.give_up();
            }
        }
    }

    /// Notes that changes of a directory are seen. False where the guest does not know it any more.
    fn is_seen_from_now(&self, key: DirectoryKey) -> bool {
        let now = now_ns();
        let is_there = self.directories.lock().marked.get_mut(&key).map(|marked| marked.since_ns = Some(now)).is_some();
        self.marked_ns.fetch_max(now, Ordering::Relaxed);
        is_there
    }

    /// The guest forgot `node`, the directory behind `dir`. The mark stays as long as it knows it by another node.
    pub fn uncover(&self, node: NodeId, device: u64, handle: &Handle, dir: BorrowedFd<'_>) {
        let key = (device, key_of(handle));
        {
            let mut directories = self.directories.lock();
            let Some(marked) = directories.marked.get_mut(&key).filter(|marked| marked.has(node)) else { return };
            if marked.remove(node) {
                return;
            }
            directories.marked.remove(&key);
        }
        if self.whole == Some(device) {
            return;
        }
        let _ = self.group.unmark(dir, c".");
        // A lookup may have covered it in between, and its mark be the one that was just taken off.
        if self.directories.lock().marked.contains_key(&key) {
            self.mark(key, dir);
        }
    }

    /// Whether another process that changes the file is seen.
    fn sees(&self, file: &Watched<'_>) -> bool {
        let sight = self.directories.lock().devices.get(&file.device).copied();
        !self.incomplete.load(Ordering::Relaxed)
            && match sight {
                None | Some(Sight::Nothing) => false,
                Some(Sight::Directories) => file.is_named,
                Some(Sight::Everything) => true,
            }
    }

    /// For how long the guest may believe the attributes of a file whose last change of any kind was at `ctime_ns`.
    /// `None` where the watch does not know.
    pub fn attr_timeout(&self, file: &Watched<'_>, ctime_ns: u64) -> Option<Duration> {
        // A change that nobody else made since the last mark was the guest's own; before it, anybody's.
        let unseen_ns = ctime_ns.min(self.marked_ns.load(Ordering::Relaxed));
        self.sees(file).then(|| self.part_of_quiet(self.changed_ns(file.handle).max(unseen_ns)))
    }

    /// For how long the guest may believe which names a directory has.
    pub fn entry_timeout(&self, device: u64, handle: &Handle) -> Option<Duration> {
        let since_ns = self.directories.lock().marked.get(&(device, key_of(handle)))?.since_ns?;
        let hold = self.part_of_quiet(self.changed_ns(handle).max(since_ns));
        (!self.incomplete.load(Ordering::Relaxed)).then_some(hold)
    }

    /// When another process was last seen to change the file; 0 where none was.
    fn changed_ns(&self, handle: &Handle) -> u64 {
        self.changed.lock().get(&key_of(handle)).copied().unwrap_or(0)
    }

    fn part_of_quiet(&self, changed_ns: u64) -> Duration {
        let changed_ns = changed_ns.max(self.all_changed_ns.load(Ordering::Relaxed));
        Duration::from_nanos(now_ns().saturating_sub(changed_ns)) / QUIET_PARTS
    }

    /// Whether another process changed the file lately, or may have unseen.
    pub fn has_changed(&self, file: &Watched<'_>) -> bool {
        let all = Duration::from_nanos(now_ns().saturating_sub(self.all_changed_ns.load(Ordering::Relaxed)));
        !self.sees(file) || all < CHANGE_KEPT || self.changed.lock().contains_key(&key_of(file.handle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file_handle::HANDLE_LEN_MAX;

    const NODE: NodeId = NodeId(7);

    fn handle(first: u8) -> Handle {
        Handle { kind: 1, len: 8, bytes: std::array::from_fn::<u8, HANDLE_LEN_MAX, _>(|i| if i == 0 { first } else { 0 }) }
    }

    fn watch(whole: Option<u64>) -> Option<Watch> {
        let watch = Watch::new(None, 0).ok().map(|watch| Watch { whole, ..watch });
        if watch.is_none() {
            eprintln!("skipped: no fanotify here");
        }
        watch
    }

    #[test]
    fn directories_of_two_file_systems_are_two_though_their_handles_are_one() {
        let Some(watch) = watch(None) else { return };
        let root_of_any_ext4 = handle(2);
        let dir = std::fs::File::open(std::env::temp_dir()).unwrap();
        watch.cover(NODE, 1, &root_of_any_ext4, dir.as_fd());
        assert!(!watch.is_unmarked(NODE, 1, &root_of_any_ext4) && watch.entry_timeout(1, &root_of_any_ext4).is_some());
        assert!(watch.is_unmarked(NODE, 2, &root_of_any_ext4) && watch.entry_timeout(2, &root_of_any_ext4).is_none());
        watch.uncover(NODE, 2, &root_of_any_ext4, dir.as_fd());
        assert!(!watch.is_unmarked(NODE, 1, &root_of_any_ext4), "the other one stays");
    }

    #[test]
    fn a_directory_of_two_nodes_is_let_go_with_the_last() {
        let Some(watch) = watch(None) else { return };
        let dir = std::fs::File::open(std::env::temp_dir()).unwrap();
        let nodes = [NODE, NodeId(8), NodeId(9)];
        for node in nodes {
            assert!(watch.is_unmarked(node, 1, &handle(2)));
            watch.cover(node, 1, &handle(2), dir.as_fd());
        }
        for (node, is_left) in nodes.into_iter().zip([true, true, false]) {
            watch.uncover(node, 1, &handle(2), dir.as_fd());
            assert_eq!(watch.entry_timeout(1, &handle(2)).is_some(), is_left);
        }
    }

    #[test]
    fn of_a_whole_file_system_only_what_the_guest_may_know_is_kept() {
        let Some(watch) = watch(Some(1)) else { return };
        let dir = std::fs::File::open(std::env::temp_dir()).unwrap();
        watch.cover(NODE, 1, &handle(2), dir.as_fd());
        let change = |file, directory: Option<u8>, contents| Change { file: handle(file), directory: directory.map(handle), contents };
        for (change, is_kept) in [
            (change(10, Some(2), true), true),
            (change(11, Some(3), true), false),
            (change(2, Some(2), false), true),
            (change(3, Some(3), false), false),
            (change(99, Some(3), false), true),
            (change(12, None, true), true),
            (change(13, None, false), false),
            (change(99, None, true), true),
        ] {
            watch.note(Event::Changed(change), now_ns(), |file| *file == handle(99));
            assert_eq!(watch.changed_ns(&change.file) != 0, is_kept, "{change:?}");
        }
    }
}
