//! Mounts that only the test's thread and the daemons that it starts can see.
#![allow(dead_code)]

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
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

    /// A fresh file system of type `kind` in an image file beside the directory `at`, mounted there. `None`, with the reason
    /// printed, where it cannot be made or mounted.
    pub fn image(kind: &str, at: &Path) -> Option<Mount> {
        std::fs::create_dir_all(at).expect("a mount point");
        let image = at.with_extension("image");
        // XFS wants 300 MB; the file is sparse.
        std::fs::File::create(&image).and_then(|f| f.set_len(320 << 20)).expect("an image file");
        let [image, at] = [&image, at].map(|path| path.to_str().expect("text"));
        let commands: [(&str, &[&str]); 2] = [(&format!("mkfs.{kind}"), &["-q", image]), ("mount", &["-o", "loop", image, at])];
        for (program, arguments) in commands {
            match std::process::Command::new(program).args(arguments).output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    eprintln!("skipped: {program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
                    let _ = std::fs::remove_file(image);
                    return None;
                }
                Err(e) => {
                    eprintln!("skipped: {program} cannot be run: {e}");
                    let _ = std::fs::remove_file(image);
                    return None;
                }
            }
        }
        // The loop device keeps the image until the mount is gone.
        std::fs::remove_file(image).expect("the image file");
        Some(Mount(PathBuf::from(at)))
    }

    /// The file or directory `what` on the file or directory `at`.
    pub fn bind(what: &Path, at: &Path) -> Mount {
        mount_bind(what, at).expect("a bind mount");
        Mount(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}
