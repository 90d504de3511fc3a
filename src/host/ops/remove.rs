//! What takes a name away or moves it: UNLINK, RMDIR and RENAME.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, RenameFlags, Uid};

use crate::host::{Caller, Share};
use crate::sys::stat;
use crate::types::{Errno, GuestGid, GuestUid, NodeId};

impl Share {
    /// UNLINK: the name of anything but a directory.
    pub fn unlink(&self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        Ok(rustix::fs::unlinkat(self.path_fd(parent)?.as_fd(), name, AtFlags::empty())?)
    }

    /// RMDIR: an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        Ok(rustix::fs::unlinkat(self.path_fd(parent)?.as_fd(), name, AtFlags::REMOVEDIR)?)
    }

    /// RENAME and RENAME2; `flags` as in man renameat2(2), EINVAL for others. A whiteout is made for `caller`; EPERM
    /// where it may not make anything.
    pub fn rename(
        &self,
        (parent, name): (NodeId, &CStr),
        (new_parent, new_name): (NodeId, &CStr),
        flags: u32,
        (uid, gid): (GuestUid, GuestGid),
    ) -> Result<(), Errno> {
        self.writable()?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        let (from, to) = (self.path_fd(parent)?, self.path_fd(new_parent)?);
        if !flags.contains(RenameFlags::WHITEOUT) {
            return Ok(rustix::fs::renameat_with(from.as_fd(), name, to.as_fd(), new_name, flags)?);
        }
        let caller = Caller::of_guest(&self.options.translation, uid, gid, None)?;
        rustix::fs::renameat_with(from.as_fd(), name, to.as_fd(), new_name, flags)?;
        self.give_whiteout(from.as_fd(), name, &caller);
        Ok(())
    }

    /// Gives the whiteout `name` that a rename left in `dir` to the caller. The rename itself has happened, so
    /// nothing is told of a failure: a whiteout of the daemon's serves as well.
    fn give_whiteout(&self, dir: BorrowedFd<'_>, name: &CStr, caller: &Caller) {
        // Ids that are none, or that the daemon acts for by itself, have no owner to give it to.
        let uid = (caller.uid.0 != 0 && caller.uid.0 != u32::MAX).then(|| Uid::from_raw(caller.uid.0));
        let passes_group = stat::of(dir).is_ok_and(|st| u32::from(st.stx_mode) & libc::S_ISGID != 0);
        let gid = (!passes_group && caller.gid.0 != 0 && caller.gid.0 != u32::MAX).then(|| Gid::from_raw(caller.gid.0));
        if uid.is_some() || gid.is_some() {
            let _ = rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        }
    }
}
