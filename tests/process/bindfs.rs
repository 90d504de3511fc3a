//! A FUSE file system of the host, by bindfs(1): one whose handles are not lasting, and which can stop answering.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use gatherfs_support::daemon::eventually;

/// A directory of the host seen through a FUSE file system, whose handles open as long as the kernel has their inodes.
pub struct Fuse {
    server: Child,
    at: PathBuf,
}

impl Fuse {
    /// `None`, with the reason printed, where there is no bindfs(1) or no /dev/fuse.
    pub fn mount(what: &Path, at: &Path) -> Option<Fuse> {
        if !Path::new("/dev/fuse").exists() {
            println!("skipped: there is no /dev/fuse");
            return None;
        }
        fs::create_dir_all(what).and_then(|()| fs::create_dir_all(at)).expect("directories");
        let before = fs::metadata(at).expect("the mount point").dev();
        let mut command = Command::new("bindfs");
        let Ok(mut server) = command.arg("-f").arg(what).arg(at).stdin(Stdio::null()).stderr(Stdio::null()).spawn() else {
            println!("skipped: there is no bindfs(1) (Debian's package bindfs)");
            return None;
        };
        let mut has_ended = false;
        let is_mounted = || fs::metadata(at).is_ok_and(|found| found.dev() != before);
        let settled = eventually(|| {
            has_ended = server.try_wait().expect("our child").is_some();
            has_ended || is_mounted()
        });
        let mounted = Fuse { server, at: at.to_owned() };
        if !settled || has_ended {
            println!("skipped: bindfs(1) cannot mount here");
            return None;
        }
        Some(mounted)
    }

    /// Has the kernel let go of every inode that nothing holds on to.
    pub fn drop_caches(&self) {
        mount_remount(&self.at, MountFlags::NOSUID | MountFlags::NODEV, "").expect("a mount can be changed");
    }
}

impl Fuse {
    /// Has the server answer nothing until [`Fuse::go_on`]: a dead host.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Has the server answer again.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.server), signal).expect("the server runs");
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
