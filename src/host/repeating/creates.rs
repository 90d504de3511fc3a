//! Operations that make a name. What is at the name is *ours* where it is what the request was to make, and nobody else can have made
//! it before the request: what is not ours is neither taken for it nor removed.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode};

use crate::host::inodes::{FileKey, kind_of, open_path};
use crate::host::request_context::{Left, RequestContext};
use crate::host::rights::Caller;
use crate::host::share::Share;
use crate::sys::stat::{self, Statx};
use crate::sys::working_dir::DescriptorName;
use crate::sys::{dirent, names, open, xattr};
use crate::types::{Errno, NodeId};

/// Permission bits with setuid and sticky. Whether a new file keeps setgid is up to the kernel.
const MODE_MASK: u32 = 0o5777;
/// The attribute of a directory that decides on the modes of new files in place of the umask (man acl(5)).
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
/// Bytes of a directory's first entries: "." and "..", and another one of the longest name.
const ENTRIES_LEN: usize = 1024;

/// What a request is to make.
#[derive(Debug, Clone, Copy)]
pub(in crate::host) struct NewFile<'a> {
    /// Its type.
    pub kind: FileType,
    /// Its mode as the guest wants it.
    pub mode: Mode,
    /// What the mode loses, where the directory has no default ACL.
    pub umask: Mode,
    /// Major and minor of a device.
    pub device: (u32, u32),
    /// Target of a symbolic link.
    pub target: Option<&'a CStr>,
}

impl Share {
    /// The directory `parent`, in which the request has made `new` as `name` for `caller`; `None` where it is still to be made, or to be
    /// refused by the host, since something else is there. EEXIST where it was made and something else is there, ENOENT where it was made
    /// and is gone, and the error that the call had.
    pub(in crate::host) fn made_before(
        &self,
        parent: NodeId,
        name: &CStr,
        new: &NewFile<'_>,
        (caller, context): (&Caller, &RequestContext<'_>),
    ) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let (before_ns, is_made) = match (context.left(), &context.earlier) {
            (Left::Begun(before), _) => (before, false),
            (Left::Made(made), Some(earlier)) => made.map(|_| (earlier.before, true))?,
            _ => return Ok(None),
        };
        let dir = self.inodes.path_fd(parent)?;
        let file = match open_path(dir.as_fd(), name) {
            Err(Errno::ENOENT) if !is_made => return Ok(None),
            file => file?,
        };
        let st = stat::of(file.as_fd())?;
        let is_ours = born_ns(&st) >= i128::from(before_ns)
            && self.is_as_made(dir.as_fd(), &st, new, caller)?
            // What was made may be known, by a lookup that was counted and not noted, and filled by another process meanwhile.
            && (is_made || !self.inodes.is_known(file.as_fd(), &st)? && is_empty(file.as_fd(), &st)?)
            && is_link_to(file.as_fd(), new.target)?;
        match is_ours {
            true => Ok(Some(dir)),
            false if is_made => Err(Errno::EEXIST),
            false => Ok(None),
        }
    }

    /// Whether the request has made `name` in `dir` a name of `file`. EEXIST where another file is there, ENOENT where it was made and is
    /// gone, and the error that the call had.
    pub(in crate::host) fn linked_before(
        &self,
        file: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
        name: &CStr,
        context: &RequestContext<'_>,
    ) -> Result<bool, Errno> {
        let is_made = match context.left() {
            Left::Nothing => return Ok(false),
            Left::Begun(_) => false,
            Left::Made(made) => made.map(|_| true)?,
        };
        match stat::at(dir, name) {
            // A directory never gets another name: the host says which error it is.
            Ok(there) if kind_of(&there) == libc::S_IFDIR => Ok(false),
            Ok(there) if FileKey::of(&there) == FileKey::of(&stat::of(file)?) => Ok(true),
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) if !is_made => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether type, device, owner and mode are those of `new` made in `dir` for `caller`.
    fn is_as_made(&self, dir: BorrowedFd<'_>, st: &Statx, new: &NewFile<'_>, caller: &Caller) -> Result<bool, Errno> {
        let mode = u32::from(st.stx_mode);
        let is_kind = FileType::from_raw_mode(mode) == new.kind && (st.stx_rdev_major, st.stx_rdev_minor) == new.device;
        let caller = caller.on_host(self.policy.own_ids);
        let (uid, gid) = stat::owner(st);
        // The directory's group where it is setgid, or mounted so (man mount(8), grpid).
        let is_owner = uid == caller.uid && (gid == caller.gid || gid == stat::owner(&stat::of(dir)?).1);
        if !is_kind || !is_owner || new.kind == FileType::Symlink {
            return Ok(is_kind && is_owner);
        }
        let (present, wanted) = (mode & MODE_MASK, new.mode.as_raw_mode() & MODE_MASK);
        let has_acl = xattr::get(DescriptorName::of(dir).as_c_str(), DEFAULT_ACL, &mut []).is_ok();
        Ok(if has_acl { present & !wanted == 0 } else { present == wanted & !new.umask.as_raw_mode() })
    }
}

/// The latest time at which the file that `st` describes can have been made; of a file system without birth times, at which it
/// was changed. A time that ends with zeros was cut off there.
fn born_ns(st: &Statx) -> i128 {
    let has_birth = st.stx_btime.tv_sec != 0 || st.stx_btime.tv_nsec != 0;
    let time = if has_birth { st.stx_btime } else { st.stx_ctime };
    let nsec = i128::from(time.tv_nsec);
    let unit = (0..=9).map(|digits| 10i128.pow(digits)).take_while(|unit| nsec % unit == 0).last().unwrap_or(1);
    i128::from(time.tv_sec) * 1_000_000_000 + nsec + unit - 1
}

/// Whether nothing was written to the file or directory behind `fd`, which `st` describes. True for other types.
fn is_empty(fd: BorrowedFd<'_>, st: &Statx) -> Result<bool, Errno> {
    match FileType::from_raw_mode(u32::from(st.stx_mode)) {
        FileType::RegularFile => Ok(st.stx_size == 0),
        FileType::Directory => {
            let dir = open::again(fd, libc::O_RDONLY | libc::O_DIRECTORY)?;
            let mut entries = Vec::new();
            dirent::read(dir.as_fd(), &mut entries, ENTRIES_LEN)?;
            let mut rest = entries.as_slice();
            while let Some((entry, more)) = dirent::next(rest) {
                if ![c".", c".."].contains(&entry.name) {
                    return Ok(false);
                }
                rest = more;
            }
            Ok(true)
        }
        _ => Ok(true),
    }
}

/// Whether the symbolic link behind `fd` leads to `target`. True where there is none to be.
fn is_link_to(fd: BorrowedFd<'_>, target: Option<&CStr>) -> Result<bool, Errno> {
    target.map_or(Ok(true), |target| Ok(names::readlinkat(fd)?.as_c_str() == target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_was_cut_off_is_no_earlier_than_what_was_cut_off() {
        let mut st = stat::of(std::fs::File::open("/").unwrap().as_fd()).unwrap();
        for (nsec, latest) in [(123_456_789, 123_456_789), (123_456_700, 123_456_799), (500_000_000, 599_999_999), (0, 999_999_999)] {
            (st.stx_btime.tv_sec, st.stx_btime.tv_nsec) = (7, nsec);
            assert_eq!(born_ns(&st), 7_000_000_000 + latest, "{nsec}");
        }
        (st.stx_btime.tv_sec, st.stx_btime.tv_nsec) = (0, 0);
        (st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec) = (8, 1);
        assert_eq!(born_ns(&st), 8_000_000_001, "no birth time");
    }
}
