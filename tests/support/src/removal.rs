//! Takes a test's directory away, with what the test has mounted in it. A directory that stays is a mistake of the test.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

/// How long the last process that the test started may take to let go of the directory.
const PATIENCE: Duration = Duration::from_secs(5);

/// Mount points below `directory` in the calling thread's namespace, the last mounted first.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    // man proc(5): the fifth field is the mount point.
    let places = list.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = places.filter(|place| place.starts_with(directory)).collect();
    below.reverse();
    below
}

/// Removes `directory` with all that is in it. Panics where it cannot, unless the test fails anyway.
pub fn remove(directory: &Path) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // What is mounted there is not the test's to delete.
        let mounts = mounts_below(directory);
        let unmounted = mounts.iter().all(|place| unmount(place, UnmountFlags::DETACH).is_ok());
        let removed = if unmounted { std::fs::remove_dir_all(directory) } else { Err(std::io::Error::other("a mount stays")) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                if std::thread::panicking() {
                    return eprintln!("{} was left behind: {e}", directory.display());
                }
                assert!(Instant::now() < deadline, "{} was left behind: {e}", directory.display());
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => return,
        }
    }
}
