//! What host processes change in the share (`--watch`), so that the guest may believe longer what stays as it is.
//!
//! The guest cannot be told of a change, so it is given less time to believe what has changed lately: a quarter
//! of the time for which it has been quiet. Every directory that the guest knows is marked; where that is not
//! possible for one of them, all of this is off.

use std::hash::{BuildHasher, BuildHasherDefault};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHasher};

use crate::sys::fanotify::{Event, Fanotify};
use crate::sys::file_handle::Handle;
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

/// A watch over the directories that the guest knows.
#[derive(Debug)]
pub struct Watch {
    group: Fanotify,
    /// The directories that are marked, and since when.
    marked: Mutex<FxHashMap<DirectoryKey, u64>>,
    /// When another process changed a file last, in nanoseconds since 1970.
    changed: Mutex<FxHashMap<Key, u64>>,
    /// Everything may have changed until then.
    all_changed_ns: AtomicU64,
    /// When a directory was marked last: what changed since then was seen, whichever directory it is in.
    marked_ns: AtomicU64,
    /// A directory could not be marked: nothing is known for certain.
    incomplete: AtomicBool,
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()) as u64
}

fn key_of(handle: &Handle) -> Key {
    BuildHasherDefault::<FxHasher>::default().hash_one((handle.kind, handle.len, handle.bytes))
}

impl Watch {
    /// Begins to watch. An error where the kernel cannot.
    pub fn start() -> std::io::Result<Arc<Watch>> {
        let watch = Arc::new(Watch {
            group: Fanotify::new()?,
            marked: Mutex::default(),
            changed: Mutex::default(),
            all_changed_ns: AtomicU64::new(0),
            marked_ns: AtomicU64::new(0),
            incomplete: AtomicBool::new(false),
        });
        let watching = Arc::clone(&watch);
        std::thread::Builder::new().name("watch".to_owned()).spawn(move || watching.run())?;
        Ok(watch)
    }

    fn run(&self) {
        loop {
            match self.group.read(|event| self.note(event, now_ns())) {
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => {
                    tracing::error!("changes on the host cannot be read: {e}; the guest gets the timeouts of --cache");
                    return self.give_up();
                }
                _ => {}
            }
        }
    }

    fn note(&self, event: Event, now: u64) {
        match event {
            Event::Own => {}
            Event::Lost => self.all_changed_ns.store(now, Ordering::Relaxed),
            Event::Changed(handle) => {
                let mut changed = self.changed.lock();
                if changed.len() >= CHANGED_MAX {
                    let kept_ns = now.saturating_sub(CHANGE_KEPT.as_nanos() as u64);
                    changed.retain(|_, at| *at > kept_ns);
                    if changed.len() >= CHANGED_MAX {
                        changed.clear();
                        self.all_changed_ns.store(now, Ordering::Relaxed);
                    }
                }
                changed.insert(key_of(&handle), now);
            }
        }
    }

    /// A directory cannot be watched: nothing is known for certain.
    pub fn give_up(&self) {
        self.incomplete.store(true, Ordering::Relaxed);
    }

    /// Whether the directory with `handle` on `device` is to be marked.
    pub fn lacks(&self, device: u64, handle: &Handle) -> bool {
        !self.incomplete.load(Ordering::Relaxed) && !self.marked.lock().contains_key(&(device, key_of(handle)))
    }

    /// The guest knows the directory behind `dir`: it is marked.
    pub fn cover(&self, device: u64, handle: &Handle, dir: BorrowedFd<'_>) {
        match self.group.mark(dir, c".") {
            Ok(()) => {
                let now = now_ns();
                self.marked.lock().insert((device, key_of(handle)), now);
                self.marked_ns.fetch_max(now, Ordering::Relaxed);
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

    /// The guest forgot the directory behind `dir`.
    pub fn uncover(&self, device: u64, handle: &Handle, dir: BorrowedFd<'_>) {
        if self.marked.lock().remove(&(device, key_of(handle))).is_some() {
            let _ = self.group.unmark(dir, c".");
        }
    }

    /// The guest forgot everything: its session ended.
    pub fn uncover_all(&self) {
        self.group.unmark_all();
        self.marked.lock().clear();
        self.incomplete.store(false, Ordering::Relaxed);
    }

    /// For how long the guest may believe the attributes of a file whose last change of any kind was at `ctime_ns`.
    /// `None` where the watch does not know.
    pub fn attributes_hold(&self, handle: &Handle, ctime_ns: u64) -> Option<Duration> {
        // A change that nobody else made since the last mark was the guest's own; before it, anybody's.
        let unseen_ns = ctime_ns.min(self.marked_ns.load(Ordering::Relaxed));
        self.part_of_quiet(self.changed_ns(handle).max(unseen_ns))
    }

    /// For how long the guest may believe which names a directory has.
    pub fn names_hold(&self, device: u64, handle: &Handle) -> Option<Duration> {
        let marked_ns = self.marked.lock().get(&(device, key_of(handle))).copied()?;
        self.part_of_quiet(self.changed_ns(handle).max(marked_ns))
    }

    /// When another process was last seen to change the file; 0 where none was.
    fn changed_ns(&self, handle: &Handle) -> u64 {
        self.changed.lock().get(&key_of(handle)).copied().unwrap_or(0)
    }

    fn part_of_quiet(&self, changed_ns: u64) -> Option<Duration> {
        let changed_ns = changed_ns.max(self.all_changed_ns.load(Ordering::Relaxed));
        let quiet = Duration::from_nanos(now_ns().saturating_sub(changed_ns));
        (!self.incomplete.load(Ordering::Relaxed)).then_some(quiet / QUIET_PARTS)
    }

    /// Whether another process changed the file lately.
    pub fn has_changed(&self, handle: &Handle) -> bool {
        let all = Duration::from_nanos(now_ns().saturating_sub(self.all_changed_ns.load(Ordering::Relaxed)));
        self.incomplete.load(Ordering::Relaxed) || all < CHANGE_KEPT || self.changed.lock().contains_key(&key_of(handle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file_handle::HANDLE_LEN_MAX;
    use std::os::fd::AsFd;

    #[test]
    fn directories_of_two_file_systems_are_two_though_their_handles_are_one() {
        let Ok(watch) = Watch::start() else {
            eprintln!("skipped: no fanotify here");
            return;
        };
        let root_of_any_ext4 =
            Handle { kind: 1, len: 8, bytes: std::array::from_fn::<u8, HANDLE_LEN_MAX, _>(|i| if i == 0 { 2 } else { 0 }) };
        let dir = std::fs::File::open(std::env::temp_dir()).unwrap();
        watch.cover(1, &root_of_any_ext4, dir.as_fd());
        assert!(!watch.lacks(1, &root_of_any_ext4) && watch.names_hold(1, &root_of_any_ext4).is_some());
        assert!(watch.lacks(2, &root_of_any_ext4) && watch.names_hold(2, &root_of_any_ext4).is_none());
        watch.uncover(2, &root_of_any_ext4, dir.as_fd());
        assert!(!watch.lacks(1, &root_of_any_ext4), "the other one stays");
    }
}
