//! statx(2) and fstatfs(2).

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxFlags};

use crate::types::{Errno, HostGid, HostUid};

pub use rustix::fs::{StatVfs, Statx};

/// What every look at a file asks for.
fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

/// The file `name` in `dir`; a symbolic link is not followed, a mount point not triggered.
pub fn at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx, Errno> {
    Ok(rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, wanted())?)
}

/// The file behind `fd`, which may be an O_PATH descriptor.
pub fn of(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted())?)
}

/// As [`of`], with the guest's own mask and AT_STATX_ sync flags.
pub fn of_with(fd: BorrowedFd<'_>, flags: AtFlags, mask: StatxFlags) -> Result<Statx, Errno> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | flags, mask | wanted())?)
}

/// The owner of the file that `st` describes.
pub fn owner(st: &Statx) -> (HostUid, HostGid) {
    (HostUid(st.stx_uid), HostGid(st.stx_gid))
}

/// The file system that `fd` is on.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<StatVfs, Errno> {
    Ok(rustix::fs::fstatvfs(fd)?)
}

/// File systems of the host's own kernel and disks (`f_type` of man statfs(2)): ext4, XFS, btrfs, tmpfs, f2fs.
/// A close(2) there has nothing to report.
const LOCAL: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010];

/// overlayfs, whose flock(2) locks are the host kernel's own, as those of the local file systems are.
const OVERLAY: u32 = 0x794c_7630;

fn file_system_type(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as u32)
}

/// Whether `fd` is on one of the well-known local file systems.
pub fn is_local(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(LOCAL.contains(&file_system_type(fd)?))
}

/// Whether flock(2) there takes an exclusive lock also of a file that is open for reading only. A network file system may make
/// it a record lock, which needs the right to write (NFS: man flock(2), NOTES).
pub fn has_local_flock(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = file_system_type(fd)?;
    Ok(LOCAL.contains(&kind) || kind == OVERLAY)
}

/// FUSE_SUPER_MAGIC: FUSE file systems of every name, virtiofs among them.
const FUSE: u32 = 0x6573_5546;

/// Whether `fd`, which may be an O_PATH descriptor, is on a file system whose handles open only as long as the kernel has
/// the inode: a FUSE server need not find an inode by its number once the kernel has forgotten it, and most do not.
pub fn forgets_handles(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(is_forgetful(rustix::fs::fstatfs(fd)?.f_type as u32))
}

fn is_forgetful(file_system: u32) -> bool {
    file_system == FUSE
}

/// File systems beside [`LOCAL`] that no other host changes: overlayfs, ramfs, ZFS, bcachefs.
const NOT_SHARED: [u32; 4] = [0x794c_7630, 0x8584_58f6, 0x2fc1_2fc1, 0xca45_1a4e];

/// Whether everything that changes the file system of `fd` goes through this host's kernel: not so on network, cluster and
/// FUSE file systems. `fd` may be an O_PATH descriptor.
pub fn is_changed_here_only(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(fd)?.f_type as u32;
    Ok(LOCAL.contains(&kind) || NOT_SHARED.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_fuse_are_forgotten_and_those_of_local_file_systems_are_not() {
        // "eUsF" of linux/magic.h, by its number in man statfs(2).
        assert!(is_forgetful(0x6573_5546));
        for local in LOCAL {
            assert!(!is_forgetful(local), "{local:#x}");
        }
        // NFS and overlayfs find an inode by its handle.
        assert!(!is_forgetful(0x6969) && !is_forgetful(0x794c_7630));
    }
}
