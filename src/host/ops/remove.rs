//! Operations that remove or move a name: UNLINK, RMDIR and RENAME.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, RenameFlags, Uid};

use crate::host::repeating::ino_word;
use crate::host::request_context::RequestContext;
use crate::host::rights::Caller;
use crate::host::share::Share;
use crate::sys::attributes::fchownat;
use crate::sys::names::{renameat2, unlinkat};
use crate::sys::stat;
use crate::types::{Errno, NodeId};

/// The flags of renameat2(2). A later one may need another rule for a rename that is repeated.
const RENAME_FLAGS: RenameFlags = RenameFlags::NOREPLACE.union(RenameFlags::EXCHANGE).union(RenameFlags::WHITEOUT);

impl Share {
    /// UNLINK: the name of anything but a directory. Errors as in man unlink(2); EROFS on a read-only
    /// share, ESTALE where `parent` is gone, EIO where the request was withdrawn.
    pub fn unlink(&self, parent: NodeId, name: &CStr, context: &RequestContext<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::empty(), context)
    }

    /// RMDIR: an empty directory. Errors as in man rmdir(2), and as of `unlink`.
    pub fn rmdir(&self, parent: NodeId, name: &CStr, context: &RequestContext<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::REMOVEDIR, context)
    }

    fn remove(&self, parent: NodeId, name: &CStr, flags: AtFlags, context: &RequestContext<'_>) -> Result<(), Errno> {
        self.writable()?;
        let parent = self.inodes.path_fd(parent)?;
        context.check_wanted()?;
        if let Some(removed) = self.removed_before(parent.as_fd(), name, context) {
            return removed;
        }
        context.once(0, || unlinkat(parent.as_fd(), name, flags))
    }

    /// RENAME and RENAME2; `flags` as in man renameat2(2), EINVAL for others. A whiteout is made for the caller;
    /// EPERM where an id of the caller is forbidden. Errors as in man rename(2), and as of `unlink`.
    pub fn rename(
        &self,
        (parent, name): (NodeId, &CStr),
        (new_parent, new_name): (NodeId, &CStr),
        flags: u32,
        context: &RequestContext<'_>,
    ) -> Result<(), Errno> {
        self.writable()?;
        let flags = RenameFlags::from_bits_retain(flags);
        if !RENAME_FLAGS.contains(flags) {
            return Err(Errno::EINVAL);
        }
        let (from, to) = (self.inodes.path_fd(parent)?, self.inodes.path_fd(new_parent)?);
        context.check_wanted()?;
        let (old, new) = ((from.as_fd(), name), (to.as_fd(), new_name));
        let leaves_whiteout = flags.contains(RenameFlags::WHITEOUT);
        let caller = leaves_whiteout.then(|| Caller::of_guest(&self.policy.translation, context.uid, context.gid, None)).transpose()?;
        let renamed = self.renamed_before(old, new, flags, context).unwrap_or_else(|| {
            // Two names that change places are told apart by what the first one leads to.
            let before = match flags.contains(RenameFlags::EXCHANGE).then(|| stat::at(old.0, old.1)) {
                Some(Ok(st)) => ino_word(&st),
                // The call may have an error that comes first.
                Some(Err(Errno::ENOENT)) | None => 0,
                Some(Err(errno)) => return Err(errno),
            };
            context.once(before, || renameat2(old, new, flags))
        });
        renamed?;
        if let Some(caller) = caller {
            self.give_whiteout(from.as_fd(), name, &caller);
        }
        Ok(())
    }

    /// Changes the owner of the whiteout `name` that a rename left in `dir` to the caller. The rename is done, so a failure is
    /// ignored: a whiteout that belongs to the daemon works as well.
    fn give_whiteout(&self, dir: BorrowedFd<'_>, name: &CStr, caller: &Caller) {
        // The guest's root and an id of -1 stand for the daemon itself.
        let uid = (caller.uid.0 != 0 && caller.uid.0 != u32::MAX).then(|| Uid::from_raw(caller.uid.0));
        let passes_group = stat::of(dir).is_ok_and(|st| u32::from(st.stx_mode) & libc::S_ISGID != 0);
        let gid = (!passes_group && caller.gid.0 != 0 && caller.gid.0 != u32::MAX).then(|| Gid::from_raw(caller.gid.0));
        if uid.is_some() || gid.is_some() {
            let _ = fchownat(dir, name, uid, gid);
        }
    }
}
