//! Changes by other processes of the host (`--watch`), so that the guest may cache longer what does not change.
//!
//! Linux's virtio_fs has no notifications, so what changed recently gets shorter timeouts: a quarter of the time since its last
//! change. The share's file system is watched as a whole where that is permitted. Otherwise, and below other mounts, every
//! directory that the guest knows is marked; if one cannot be marked, the timeouts of `--cache` apply to all files. They also
//! apply where changes cannot be seen.

use std::hash::{BuildHasher, BuildHasherDefault};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHasher};

use crate::host::inodes::device_of;
use crate::sys::fanotify::{Change, Event, Fanotify};
use crate::sys::file_handle::Handle;
use crate::sys::open;
use crate::sys::stat;
use crate::sys::thread;
use crate::trace::Limiter;
use crate::types::NodeId;
use crate::warn_limited;

/// Timeout of a file = time since its last change, divided by this.
const QUIET_PARTS: u32 = 4;
/// Recently changed files that are recorded; beyond this, every file counts as changed now.
const CHANGED_MAX: usize = 1 << 16;
/// A change is recorded for this time: afterwards no timeout depends on it.
const CHANGE_KEPT: Duration = Duration::from_secs(600);

type Key = u64;

/// A directory. With its device, as the roots of two file systems often have the same handle.
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
        let dir = open::directory(shared).ok()?;
        let device = device_of(&stat::of(dir.as_fd()).ok()?);
        if !stat::is_changed_here_only(dir.as_fd()).ok()? {
            return None;
        }
        let group = Fanotify::of_file_system(dir.as_fd());
        let group = group.inspect_err(|e| tracing::debug!("--watch: cannot watch the whole file system: {e}")).ok()?;
        Some(FileSystemWatch { group, device })
    }

    /// Of its [`FileSystemWatch::parts`], for another program in the same process.
    pub fn of(group: OwnedFd, device: u64) -> FileSystemWatch {
        FileSystemWatch { group: Fanotify::from(group), device }
    }

    /// The number of its descriptor, and that of the file system's device.
    pub fn parts(&self) -> (RawFd, u64) {
        (self.group.as_raw_fd(), self.device)
    }
}

/// Which changes on a device are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// None: other hosts change it too.
    Nothing,
    /// Those in marked directories; a writer that opened a file by its handle may not be seen.
    Directories,
    /// All: the file system is watched as a whole.
    Everything,
}

/// A file as the watch identifies it.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'h> {
    /// The device that it is on.
    pub device: u64,
    /// The handle by which events name it.
    pub handle: &'h Handle,
    /// A marked directory, whose changes are always seen. Or a file whose node keeps a descriptor, so that the host's kernel has its
    /// name, and a writer that opens it by handle is seen, too.
    pub is_named: bool,
}

/// A directory with its nodes: one that is bind-mounted twice has two.
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

    /// Removes `node`. False where it is the only one.
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
    /// The devices that they are on. A device number may be reused for another file system, so each new directory updates the
    /// entry.
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
    /// Any file may have changed until then.
    all_changed_ns: AtomicU64,
    /// When a directory was marked last: what changed since then was seen, whichever directory it is in.
    marked_ns: AtomicU64,
    /// A directory could not be marked, so changes may be missed.
    incomplete: AtomicBool,
    /// Whether the guest may know a file of the share's file system.
    is_known: Mutex<IsKnown>,
    /// Limits its warnings.
    limiter: Limiter,
}

/// Whether the guest may know a file, by its handle.
struct IsKnown(Box<dyn Fn(&Handle) -> bool + Send>);

impl std::fmt::Debug for IsKnown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IsKnown")
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
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
            limiter: Limiter::new(),
        })
    }

    /// Starts the thread that reads the events. The error of starting a thread.
    pub fn start(self: &Arc<Watch>) -> std::io::Result<()> {
        let watching = Arc::clone(self);
        thread::start("watch", move || watching.run())?;
        Ok(())
    }

    /// Every file counts as changed now: another process had the share, and what it saw is lost.
    pub fn all_has_changed(&self) {
        self.all_changed_ns.store(now_ns(), Ordering::Relaxed);
    }

    /// A session begins: no directory is marked. From now on `is_known` decides whether the guest may know a file of the share's file
    /// system.
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
                    tracing::error!("--watch: cannot read changes: {e}; the timeouts of --cache apply");
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
                    let kept_ns = now.saturating_sub(u64::try_from(CHANGE_KEPT.as_nanos()).unwrap_or(u64::MAX));
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

    /// Whether the guest may know the changed file. Where the whole file system is watched, most changes are outside the share.
    fn concerns(&self, change: &Change, is_known: impl Fn(&Handle) -> bool) -> bool {
        match &change.directory {
            _ if self.whole.is_none() => true,
            // A known file may be changed through another name, or through one that it had when it was opened.
            Some(directory) => self.is_covered(directory) || is_known(&change.file),
            // Each removal of a name makes such an event, for any file; a writer by handle is rare.
            None => change.contents || is_known(&change.file),
        }
    }

    fn is_covered(&self, directory: &Handle) -> bool {
        let key = key_of(directory);
        let directories = self.directories.lock();
        directories.devices.keys().any(|device| directories.marked.contains_key(&(*device, key)))
    }

    /// Records that no change on `device` is seen.
    pub fn sees_nothing_on(&self, device: u64) {
        self.directories.lock().devices.insert(device, Sight::Nothing);
        warn_limited!(self.limiter;
            "--watch cannot see changes by other hosts in a network or FUSE file system; the timeouts of --cache apply to its files"
        );
    }

    /// A directory cannot be watched, so changes may be missed.
    pub fn give_up(&self) {
        self.incomplete.store(true, Ordering::Relaxed);
    }

    /// Whether [`Watch::cover`] is to be called for the directory `node` with `handle` on `device`.
    pub fn is_unmarked(&self, node: NodeId, device: u64, handle: &Handle) -> bool {
        let is_covered = || self.directories.lock().marked.get(&(device, key_of(handle))).is_some_and(|marked| marked.has(node));
        !self.incomplete.load(Ordering::Relaxed) && !is_covered()
    }

    /// The guest knows the directory behind `dir` as `node`: changes in it are seen from now on, where that is possible.
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
                warn_limited!(self.limiter;
                    "--watch cannot watch every directory: {e}; the timeouts of --cache apply \
                     (raise fs.fanotify.max_user_marks if there are more directories than marks)"
                );
                self.give_up();
            }
        }
    }

    /// Records that changes of a directory are seen. False where the guest does not know it any more.
    fn is_seen_from_now(&self, key: DirectoryKey) -> bool {
        let now = now_ns();
        let is_there = self.directories.lock().marked.get_mut(&key).map(|marked| marked.since_ns = Some(now)).is_some();
        self.marked_ns.fetch_max(now, Ordering::Relaxed);
        is_there
    }

    /// The guest forgot `node`, the directory behind `dir`. The mark stays as long as the directory has another node.
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
        // A lookup may have marked it again in between, and that mark was just removed.
        if self.directories.lock().marked.contains_key(&key) {
            self.mark(key, dir);
        }
    }

    /// Whether changes of the file by other processes are seen.
    fn sees(&self, file: &Watched<'_>) -> bool {
        let sight = self.directories.lock().devices.get(&file.device).copied();
        !self.incomplete.load(Ordering::Relaxed)
            && match sight {
                None | Some(Sight::Nothing) => false,
                Some(Sight::Directories) => file.is_named,
                Some(Sight::Everything) => true,
            }
    }

    /// Attribute timeout of a file whose last change of any kind was at `ctime_ns`. `None` where changes are not seen.
    pub fn attr_timeout(&self, file: &Watched<'_>, ctime_ns: u64) -> Option<Duration> {
        // Since the last mark, changes by other processes are seen, so an unseen one was the guest's own; before it, any process's.
        let unseen_ns = ctime_ns.min(self.marked_ns.load(Ordering::Relaxed));
        self.sees(file).then(|| self.part_of_quiet(self.changed_ns(file.handle).max(unseen_ns)))
    }

    /// Entry timeout in a directory. `None` where changes are not seen.
    pub fn entry_timeout(&self, device: u64, handle: &Handle) -> Option<Duration> {
        let since_ns = self.directories.lock().marked.get(&(device, key_of(handle)))?.since_ns?;
        let hold = self.part_of_quiet(self.changed_ns(handle).max(since_ns));
        (!self.incomplete.load(Ordering::Relaxed)).then_some(hold)
    }

    /// When another process last changed the file; 0 where no change was seen.
    fn changed_ns(&self, handle: &Handle) -> u64 {
        self.changed.lock().get(&key_of(handle)).copied().unwrap_or(0)
    }

    fn part_of_quiet(&self, changed_ns: u64) -> Duration {
        let changed_ns = changed_ns.max(self.all_changed_ns.load(Ordering::Relaxed));
        Duration::from_nanos(now_ns().saturating_sub(changed_ns)) / QUIET_PARTS
    }

    /// Whether another process changed the file recently, or may have without being seen.
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
