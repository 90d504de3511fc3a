//! Namespaces and the change of root (man pivot_root(2), namespaces(7)).

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount};
use rustix::thread::UnshareFlags;

use super::{JailError, Step};

/// Leaves the host's mounts, network and process ids behind; the ids with the next fork.
pub fn leave_host() -> Result<(), JailError> {
    crate::sys::process::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWPID).step("make namespaces for the sandbox")
}

/// Makes `share` the root of this mount namespace and unmounts everything else.
pub fn enter_share(share: &Path) -> Result<(), JailError> {
    // Nothing that is mounted here shows on the host; mounts that the host adds below the share still come.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).step("make the sandbox's mounts its own")?;
    mount_bind_recursive(share, share).step("mount the share in the sandbox")?;
    let directory = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let old_root = rustix::fs::open("/", directory, Mode::empty()).step("open the old root")?;
    let new_root = rustix::fs::open(share, directory, Mode::empty()).step("open the share")?;
    rustix::process::fchdir(&new_root).step("change to the share")?;
    // Old and new root may be one path: the old root then lies on top and is taken off (man pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").step("make the share the root")?;
    rustix::process::fchdir(&old_root).step("change to the old root")?;
    mount_change(".", flags).step("make the old root's mounts our own")?;
    unmount(".", UnmountFlags::DETACH).step("unmount the old root")?;
    rustix::process::fchdir(&new_root).step("change to the share")?;
    rustix::process::chdir("/").step("change to the share")
}

/// Makes `share` the root directory of the process.
pub fn change_root(share: &Path) -> Result<(), JailError> {
    rustix::process::chroot(share).step("make the share the root")?;
    rustix::process::chdir("/").step("change to the share")
}
