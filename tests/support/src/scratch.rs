//! Directories of a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::daemon::built_program;
use crate::{places, removal};

/// A directory of a test's own, removed with all that is in it when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory with a path short enough for sockets in it, wherever temporary files are.
    pub fn new() -> Self {
        Self::under(&std::env::temp_dir())
    }

    /// As `new`, on tmpfs.
    pub fn on_tmpfs() -> Self {
        Self::under(Path::new("/dev/shm"))
    }

    /// A new directory on disk, below the build's own.
    pub fn on_disk() -> Self {
        let program = built_program();
        let build = program.parent().and_then(Path::parent).expect("target/debug/gatherfsd");
        // Where cargo, too, has the files of tests.
        Self::under(&build.join("tmp"))
    }

    /// As `new`, on tmpfs where there are no file handles.
    pub fn with_file_handles() -> Self {
        let scratch = Self::new();
        if places::has_file_handles(scratch.path()) { scratch } else { Self::on_tmpfs() }
    }

    /// On disk where that `offers` what the test needs, or on tmpfs. `None`, with `need` printed, where neither does.
    pub fn with(need: &str, offers: fn(&Path) -> bool) -> Option<Self> {
        let found = [Self::on_disk, Self::on_tmpfs].iter().map(|make| make()).find(|scratch| offers(scratch.path()));
        if found.is_none() {
            println!("skipped: no {need} in the build's directory or in /dev/shm");
        }
        found
    }

    fn under(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("gfs-{}-{count}", std::process::id()));
        // A process of that number may have left one behind.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a scratch directory");
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        removal::remove(&self.path);
    }
}
