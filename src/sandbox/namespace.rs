//! Namespaces and the change of root (man pivot_root(2), namespaces(7)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::UnshareFlags;

use super::error::{JailError, Step};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::PATH).union(OFlags::CLOEXEC);

/// Moves the process to new mount and network namespaces, and its next child to a new pid namespace. An error without
/// CAP_SYS_ADMIN.
pub fn leave_host() -> Result<(), JailError> {
    crate::sys::process::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWPID).step("make namespaces for the sandbox")
}

/// Makes directory `share` the root of this mount namespace and unmounts everything else. An error where the kernel refuses one
/// of the steps.
pub fn enter_share(share: &Path) -> Result<(), JailError> {
    own_mounts()?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let new_root = open_tree(CWD, share, flags).step("open the share")?;
    refuse_devices(new_root.as_fd())?;
    // By descriptor: where the share is the host's root directory, its path leads to what the mount covers.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(&new_root, "", CWD, share, flags).step("mount the share in the sandbox")?;
    pivot(new_root.as_fd())
}

/// Makes the mounts of the share nodev: device files can be made, looked up and removed, and not opened (man mount(8)). A
/// mount that the host adds later has its own flags.
fn refuse_devices(share: BorrowedFd<'_>) -> Result<(), JailError> {
    match crate::sys::mount::set_attributes_recursively(share, libc::MOUNT_ATTR_NODEV) {
        // Linux before 5.12. The daemon opens no device files anyway.
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        set => set.step("make the share's mounts nodev"),
    }
}

/// Makes an empty directory the root of this mount namespace and unmounts everything else, for a share that is one open
/// file. An error where the kernel refuses one of the steps.
pub fn enter_empty() -> Result<(), JailError> {
    own_mounts()?;
    let new_root = empty_directory()?;
    // The mount point is arbitrary: it is unmounted with the old root.
    move_mount(&new_root, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("mount an empty root in the sandbox")?;
    pivot(new_root.as_fd())
}

/// Whether the root directory of this process is a mount point, without which its mounts cannot be made private. True before
/// Linux 5.8, which does not report it.
pub fn root_is_mount_point() -> bool {
    let root = rustix::fs::statx(CWD, "/", rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::empty());
    let is_root = rustix::fs::StatxAttributes::MOUNT_ROOT;
    root.map_or(true, |st| !st.stx_attributes_mask.contains(is_root) || st.stx_attributes.contains(is_root))
}

/// Makes all mounts slaves: mounts of the sandbox do not reach the host, mounts of the host below the share reach the sandbox.
fn own_mounts() -> Result<(), JailError> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).step("make the sandbox's mounts its own")
}

fn pivot(new_root: BorrowedFd<'_>) -> Result<(), JailError> {
    let old_root = rustix::fs::open("/", DIRECTORY, Mode::empty()).step("open the old root")?;
    rustix::process::fchdir(new_root).step("change to the share")?;
    // The old root is mounted on top of the new one and unmounted from there (man pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").step("make the share the root")?;
    rustix::process::fchdir(&old_root).step("change to the old root")?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change(".", flags).step("make the old root's mounts our own")?;
    unmount(".", UnmountFlags::DETACH).step("unmount the old root")?;
    rustix::process::fchdir(new_root).step("change to the share")?;
    rustix::process::chdir("/").step("change to the share")
}

/// Makes directory `share` the root directory of the process. An error without CAP_SYS_CHROOT.
pub fn change_root(share: &Path) -> Result<(), JailError> {
    rustix::process::chroot(share).step("make the share the root")?;
    rustix::process::chdir("/").step("change to the share")
}

/// Makes an empty directory the root directory of the process. An error without CAP_SYS_ADMIN, which the mount needs, or
/// CAP_SYS_CHROOT.
pub fn change_root_to_empty() -> Result<(), JailError> {
    rustix::process::fchdir(empty_directory()?).step("change to an empty root")?;
    change_root(Path::new("."))
}

/// An empty, read-only, mounted directory.
fn empty_directory() -> Result<OwnedFd, JailError> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step("make an empty root")?;
    fsconfig_create(&tmpfs).step("make an empty root")?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, flags).step("make an empty root")
}
