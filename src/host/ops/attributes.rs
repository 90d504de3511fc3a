//! GETATTR, STATX, SETATTR, ACCESS and READLINK.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use crate::host::attributes::{Attributes, CacheableAttributes};
use crate::host::features::Feature;
use crate::host::inodes::{FileKey, reopen};
use crate::host::request_context::RequestContext;
use crate::host::rights::Translation;
use crate::host::share::Share;
use crate::sys::fsetid::without_fsetid;
use crate::sys::mode;
use crate::sys::stat::{self, Statx};
use crate::types::{Errno, FileHandle, GuestGid, GuestUid, NodeId};

/// Permission bits with setuid, setgid and sticky.
const MODE_MASK: u32 = 0o7777;
const NSEC_PER_SEC: u32 = 1_000_000_000;

/// A time that SETATTR sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// The present time.
    Now,
    /// Seconds and nanoseconds since 1970.
    At(i64, u32),
}

/// What SETATTR sets; `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttributeChange {
    /// The open file, where the request names one.
    pub handle: Option<FileHandle>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<GuestUid>,
    /// Group.
    pub gid: Option<GuestGid>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<NewTime>,
    /// Modification time.
    pub mtime: Option<NewTime>,
    /// A change of length clears setuid and setgid.
    pub clears_suidgid: bool,
}

impl Share {
    /// GETATTR of the open file `handle`, or of the node. EBADF where the handle is not open, ESTALE where the node is gone.
    pub fn getattr(&self, node: NodeId, handle: Option<FileHandle>) -> Result<CacheableAttributes, Errno> {
        self.on_target(node, handle, |fd| stat::Room::empty().of(fd).map(|st| self.cacheable(node, st)))
    }

    /// STATX: `flags` are AT_STATX_ sync flags, `mask` selects the fields, birth time among them. ENOSYS where the share does not
    /// serve birth times; the guest then asks for attributes by GETATTR, and not at all for those that it has. Errors as of
    /// [`Share::getattr`].
    pub fn statx(&self, node: NodeId, handle: Option<FileHandle>, flags: u32, mask: u32) -> Result<CacheableAttributes, Errno> {
        if !self.policy.birth_times {
            return Err(Errno::ENOSYS);
        }
        let sync = AtFlags::from_bits_truncate(flags) & (AtFlags::STATX_FORCE_SYNC | AtFlags::STATX_DONT_SYNC);
        let mask = StatxFlags::from_bits_truncate(mask) & (StatxFlags::BASIC_STATS | StatxFlags::BTIME);
        self.on_target(node, handle, |fd| stat::of_with(fd, sync, mask)).map(|st| self.cacheable(node, &st))
    }

    /// SETATTR: owner, length, mode and times, in this order, because a change of owner clears the setuid bit that a change of mode
    /// may set. A request without any of them clears setuid and setgid, where that was negotiated.
    ///
    /// # Errors
    /// EROFS on a read-only share. EINVAL, and nothing is changed, for an id of -1 or nanoseconds of a second or more: both have a
    /// special meaning in the host's calls. EPERM for a forbidden id. EIO, and nothing more is changed, where the request was
    /// withdrawn between the steps. ESTALE where the node is gone; the errno of the host's calls.
    pub fn setattr(&self, node: NodeId, set: &AttributeChange, context: &RequestContext<'_>) -> Result<CacheableAttributes, Errno> {
        self.writable()?;
        let ids = &self.policy.translation;
        let uid = set.uid.map(|u| ids.host_uid(u)).transpose()?.map(|u| u.0);
        let gid = set.gid.map(|g| ids.host_gid(g)).transpose()?.map(|g| g.0);
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        let times = Timestamps { last_access: timespec(set.atime)?, last_modification: timespec(set.mtime)? };
        let path_fd = self.inodes.path_fd(node)?;
        let fd = path_fd.as_fd();
        if sets_nothing(set) && self.session.requests_clearing() {
            context.check_wanted()?;
            clear_suidgid(fd)?;
        }
        if uid.is_some() || gid.is_some() {
            context.check_wanted()?;
            rustix::fs::chownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)?;
            self.drop_mapped_capability(node, fd)?;
        }
        if let Some(size) = set.size {
            context.check_wanted()?;
            self.truncate(node, set.handle, fd, size, self.session.clears_suidgid(set.clears_suidgid))?;
            self.drop_mapped_capability(node, fd)?;
        }
        if let Some(new) = set.mode {
            context.check_wanted()?;
            // Symbolic links have no mode of their own, and the guest sends none.
            mode::set(fd, new & MODE_MASK)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            context.check_wanted()?;
            rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        stat::Room::empty().of(fd).map(|st| self.cacheable(node, st))
    }

    /// ACCESS: checks `mask` (R_OK, W_OK, X_OK) against the permission bits for owner, group and others. EACCES where they do not
    /// permit it, EROFS for W_OK on a read-only share. Linux guests check themselves and do not send it.
    pub fn access(&self, node: NodeId, caller: (GuestUid, GuestGid), mask: u32) -> Result<(), Errno> {
        let mask = mask & 0o7;
        if mask & libc::W_OK.cast_unsigned() != 0 {
            self.writable()?;
        }
        let st = stat::of(self.inodes.path_fd(node)?.as_fd())?;
        if may_access(&st, &self.policy.translation, caller, mask) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// READLINK: the target. EINVAL where the node is no symbolic link, ESTALE where it is gone.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        if self.inodes.kind(node)? != libc::S_IFLNK {
            return Err(Errno::EINVAL);
        }
        let target = rustix::fs::readlinkat(self.inodes.path_fd(node)?.as_fd(), c"", Vec::with_capacity(256))?;
        Ok(target.into_bytes())
    }

    fn truncate(&self, node: NodeId, handle: Option<FileHandle>, path_fd: BorrowedFd<'_>, size: u64, clears: bool) -> Result<(), Errno> {
        // A thread that has laid CAP_FSETID down may not be able to open the file (`sys/working_dir.rs`).
        let truncate = |file: BorrowedFd<'_>, size| {
            let truncate = || rustix::fs::ftruncate(file, size);
            if clears { without_fsetid(truncate) } else { truncate() }
        };
        let size = i64::try_from(size).map_err(|_| Errno::from_raw(libc::EFBIG))?.cast_unsigned();
        if let Some(handle) = handle {
            let file = self.files.get(handle)?;
            if file.flags() & libc::O_ACCMODE != libc::O_RDONLY {
                return Ok(truncate(file.fd(), size)?);
            }
        }
        // Only regular files have a length, and no other type may be opened.
        match self.inodes.see_type(node, path_fd)? {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::from_raw(libc::EISDIR)),
            _ => return Err(Errno::EINVAL),
        }
        Ok(truncate(reopen(path_fd, libc::O_WRONLY)?.as_fd(), size)?)
    }

    fn cacheable(&self, node: NodeId, st: &Statx) -> CacheableAttributes {
        CacheableAttributes { attributes: self.attributes(st), timeout: self.freshness.attr_timeout(node, st) }
    }

    /// The attributes that the guest sees of the file that `st` describes.
    pub(super) fn attributes(&self, st: &Statx) -> Attributes {
        let announces = self.announces_submounts();
        let is_submount = announces && self.inodes.is_submount(st);
        if is_submount {
            self.inodes.announce(st);
        }
        let ino = self.inodes.number(&FileKey::of(st), announces);
        Attributes::new(st, ino, is_submount, &self.policy.translation)
    }

    /// Whether mounts below the share are announced to the guest.
    pub(super) fn announces_submounts(&self) -> bool {
        self.policy.announce_submounts && self.session.negotiated(Feature::Submounts)
    }
}

/// Whether the request sets nothing. With HANDLE_KILLPRIV_V2, Linux sends such a request before a change by a caller who may not
/// keep setuid and setgid: it removes the mode from the request (fs/fuse/dir.c, fuse_setattr). FALLOCATE and COPY_FILE_RANGE,
/// which carry no caller where mounts may map ids, rely on it.
fn sets_nothing(set: &AttributeChange) -> bool {
    set.mode.is_none() && set.uid.is_none() && set.gid.is_none() && set.size.is_none() && set.atime.is_none() && set.mtime.is_none()
}

/// Clears setuid and setgid of the regular file behind `fd`.
fn clear_suidgid(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let old = u32::from(stat::of(fd)?.stx_mode);
    if old & libc::S_IFMT == libc::S_IFREG && old & (libc::S_ISUID | libc::S_ISGID) != 0 {
        let kept = old & MODE_MASK & !(libc::S_ISUID | libc::S_ISGID);
        mode::set(fd, kept)?;
    }
    Ok(())
}

fn timespec(time: Option<NewTime>) -> Result<Timespec, Errno> {
    match time {
        None => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }),
        Some(NewTime::Now) => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }),
        Some(NewTime::At(_, NSEC_PER_SEC..)) => Err(Errno::EINVAL),
        Some(NewTime::At(tv_sec, nsec)) => Ok(Timespec { tv_sec, tv_nsec: i64::from(nsec) }),
    }
}

fn may_access(st: &Statx, ids: &Translation, (uid, gid): (GuestUid, GuestGid), mask: u32) -> bool {
    let mode = u32::from(st.stx_mode);
    if uid == GuestUid(0) {
        let is_executable = mode & 0o111 != 0 || mode & libc::S_IFMT == libc::S_IFDIR;
        return mask & libc::X_OK.cast_unsigned() == 0 || is_executable;
    }
    let owner = stat::owner(st);
    let granted = if ids.guest_uid(owner.0) == uid {
        mode >> 6
    } else if ids.guest_gid(owner.1) == gid {
        mode >> 3
    } else {
        mode
    };
    granted & mask == mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_goes_by_owner_group_and_others_and_root_may_not_execute_what_nobody_may() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut st = stat::of(file.as_fd()).unwrap();
        (st.stx_mode, st.stx_uid, st.stx_gid) = (0o100_640, 5, 6);
        let ids = Translation::default();
        let may = |st: &Statx, uid, gid, mask| may_access(st, &ids, (GuestUid(uid), GuestGid(gid)), mask);
        assert!(may(&st, 5, 9, 6));
        assert!(may(&st, 7, 6, 4) && !may(&st, 7, 6, 2));
        assert!(!may(&st, 7, 7, 4));
        assert!(may(&st, 0, 0, 6) && !may(&st, 0, 0, 1));
        st.stx_mode = 0o100_001;
        assert!(may(&st, 0, 0, 1));
    }
}
