//! Mounts that only the test's thread and the daemons that it starts can see.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount, unmount,
};
use rustix::thread::UnshareFlags;

/// Gives the calling thread mounts of its own. False, with the reason printed, where that is not permitted.
pub fn enter() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may mount");
        return false;
    }
    // SAFETY: descriptors stay shared; the thread's root and working directory become its own.
    if let Err(e) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) } {
        eprintln!("skipped: no mount namespace here: {e}");
        return false;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("mounts of our own");
    true
}

/// A mount, taken off on Drop.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// A new file system of type `kind` on the directory `at`, which is made.
    pub fn new(kind: &str, at: &Path) -> Mount {
        std::fs::create_dir_all(at).expect("a mount point");
        mount("none", at, kind, MountFlags::empty(), None).unwrap_or_else(|e| panic!("cannot mount {kind}: {e}"));
        Mount(at.to_owned())
    }

    /// An overlay on the directory `at`, over the directories `lower`, `upper` and `work` in `layers`, with `more` options.
    /// `None`, with the reason printed, where the kernel has none.
    pub fn overlay(layers: &Path, at: &Path, more: &str) -> Option<Mount> {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.join(name).display().to_string());
        let options = CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}{more}")).expect("no NUL");
        match mount("overlay", at, "overlay", MountFlags::empty(), Some(options.as_c_str())) {
            Ok(()) => Some(Mount(at.to_owned())),
            Err(e) => {
                eprintln!("skipped: no overlay here: {e}");
                None
            }
        }
    }

    /// A file system that `mkfs`, a program with its options, makes in a sparse file of `len` bytes beside the directory `at`,
    /// mounted there through a loop device. `None`, with the reason printed, where there is no such program or the kernel has
    /// no such file system.
    pub fn image(mkfs: &[&str], len: u64, at: &Path) -> Option<Mount> {
        let image = at.with_extension("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(len)).expect("a sparse file");
        let mounted = Mount::made(mkfs, &image, at);
        // The loop device keeps it open.
        std::fs::remove_file(&image).expect("the image can be removed");
        mounted
    }

    /// As `image`, in a file that is there.
    pub fn made(mkfs: &[&str], image: &Path, at: &Path) -> Option<Mount> {
        std::fs::create_dir_all(at).expect("a mount point");
        let run = |words: &[&str], more: &[&Path]| {
            let output = std::process::Command::new(words[0]).args(&words[1..]).args(more).output();
            let failed = match output {
                Ok(output) if output.status.success() => return true,
                Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
                Err(e) => e.to_string(),
            };
            eprintln!("skipped: {}: {}", words.join(" "), failed.trim());
            false
        };
        let is_mounted = run(mkfs, &[image]) && run(&["mount", "-o", "loop"], &[image, at]);
        is_mounted.then(|| Mount(at.to_owned()))
    }

    /// The file or directory `what` on the file or directory `at`.
    pub fn bind(what: &Path, at: &Path) -> Mount {
        mount_bind(what, at).expect("a bind mount");
        Mount(at.to_owned())
    }

    /// The mount, through which nothing can be changed from now on.
    pub fn read_only(self) -> Mount {
        mount_remount(&self.0, MountFlags::BIND | MountFlags::RDONLY, "").expect("a mount can be made read-only");
        self
    }

    /// As `bind`, with all that is mounted below `what`.
    pub fn bind_all(what: &Path, at: &Path) -> Mount {
        mount_bind_recursive(what, at).expect("a bind mount");
        Mount(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}
