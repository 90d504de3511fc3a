//! statx(2) and fstatfs(2).

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, StatxFlags};

use super::failpoint::fail_call;
use crate::types::{Errno, HostGid, HostUid};

pub use rustix::fs::{StatVfs, Statx};

/// The fields that every statx(2) requests.
fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

/// Room for the answer of statx(2), which is then read where the kernel wrote it: it has 256 bytes.
#[derive(Debug)]
pub struct Room(MaybeUninit<Statx>);

const _: () = assert!(size_of::<Statx>() == size_of::<libc::statx>());

impl Room {
    /// Room without an answer.
    #[inline]
    pub const fn empty() -> Room {
        Room(MaybeUninit::uninit())
    }

    /// The attributes of `name` in `dir`. A symbolic link is not followed, an automount not triggered. ENOENT, ENOTDIR, EACCES and
    /// ELOOP as for a lookup, ESTALE on network file systems.
    #[inline]
    pub fn at(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<&Statx, Errno> {
        self.fill(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, wanted())
    }

    /// The attributes of the file `fd`, which may be an O_PATH descriptor. ESTALE or EIO where the file system cannot read them.
    #[inline]
    pub fn of(&mut self, fd: BorrowedFd<'_>) -> Result<&Statx, Errno> {
        self.fill(fd, c"", AtFlags::EMPTY_PATH, wanted())
    }

    fn fill(&mut self, dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags, mask: StatxFlags) -> Result<&Statx, Errno> {
        fail_call!("statx");
        let flags = libc::c_int::try_from(flags.bits()).unwrap_or_default();
        // SAFETY: `name` is a C string, and the room has the size and layout that statx(2) writes: `Statx` is the kernel's structure.
        let done = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask.bits(), self.0.as_mut_ptr().cast()) };
        if done != 0 {
            return Err(Errno::last());
        }
        // SAFETY: the kernel has filled it in, and every bit pattern is a valid one.
        Ok(unsafe { self.0.assume_init_ref() })
    }
}

/// The device of the file: major in the upper half, minor in the lower.
pub fn device(st: &Statx) -> u64 {
    u64::from(st.stx_dev_major) << 32 | u64::from(st.stx_dev_minor)
}

/// When the file was born, in nanoseconds; 0 where the file system does not say so.
pub fn birth_ns(st: &Statx) -> u64 {
    let t = &st.stx_btime;
    t.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(u64::from(t.tv_nsec))
}

/// As [`Room::at`].
pub fn at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx, Errno> {
    Room::empty().at(dir, name).copied()
}

/// As [`Room::of`].
pub fn of(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    Room::empty().of(fd).copied()
}

/// As [`of`], with the guest's mask in addition, and its AT_STATX_ synchronization flags.
pub fn of_with(fd: BorrowedFd<'_>, flags: AtFlags, mask: StatxFlags) -> Result<Statx, Errno> {
    Room::empty().fill(fd, c"", AtFlags::EMPTY_PATH | flags, mask | wanted()).copied()
}

/// The owner and group in `st`.
pub fn owner(st: &Statx) -> (HostUid, HostGid) {
    (HostUid(st.stx_uid), HostGid(st.stx_gid))
}

/// The statistics of the file system of `fd`. EIO or ENOSYS where it has none.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<StatVfs, Errno> {
    fail_call!("fstatfs");
    Ok(rustix::fs::fstatvfs(fd)?)
}

/// Local file systems (`f_type` of man statfs(2)): ext4, XFS, btrfs, tmpfs, f2fs. close(2) reports no errors there.
const LOCAL: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010];

/// overlayfs. Its flock(2) locks are local, as those of the local file systems.
const OVERLAY: u32 = 0x794c_7630;

fn file_system_type(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    fail_call!("fstatfs");
    // Magic numbers have 32 bits; the field is wider on 64-bit architectures.
    Ok(u32::try_from(rustix::fs::fstatfs(fd)?.f_type).unwrap_or_default())
}

/// Whether `fd` is on one of the well-known local file systems. The errors of fstatfs(2).
pub fn is_local(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(LOCAL.contains(&file_system_type(fd)?))
}

/// File systems whose direct I/O the kernel starts without waiting (FMODE_NOWAIT): ext4, XFS, btrfs, f2fs.
const ASYNC_DIRECT_IO: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// Whether direct I/O on the file system of `fd` can be started without waiting for it. The errors of fstatfs(2).
pub fn has_async_direct_io(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(ASYNC_DIRECT_IO.contains(&file_system_type(fd)?))
}

/// Whether flock(2) takes an exclusive lock of a file that is open for reading only. A network file system may implement it as a
/// record lock, which needs write access (NFS: man flock(2), NOTES). The errors of fstatfs(2).
pub fn has_local_flock(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = file_system_type(fd)?;
    Ok(LOCAL.contains(&kind) || kind == OVERLAY)
}

/// FUSE_SUPER_MAGIC: FUSE file systems of every name, virtiofs among them.
const FUSE: u32 = 0x6573_5546;

/// Whether `fd`, which may be an O_PATH descriptor, is on a file system whose handles can be opened only while the kernel caches
/// the inode: most FUSE servers cannot find an inode by its number after its FORGET. The errors of fstatfs(2).
pub fn forgets_handles(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(is_forgetful(file_system_type(fd)?))
}

fn is_forgetful(file_system: u32) -> bool {
    file_system == FUSE
}

/// File systems in addition to [`LOCAL`] that no other host changes: overlayfs, ramfs, ZFS, bcachefs.
const NOT_SHARED: [u32; 4] = [0x794c_7630, 0x8584_58f6, 0x2fc1_2fc1, 0xca45_1a4e];

/// Whether only this host's kernel changes the file system of `fd`, which may be an O_PATH descriptor. False for network,
/// cluster and FUSE file systems. The errors of fstatfs(2).
pub fn is_changed_here_only(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = file_system_type(fd)?;
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
