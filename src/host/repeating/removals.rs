//! UNLINK, RMDIR and RENAME. The guest has looked up what it removes or moves, and keeps it until the answer; so what is at the name
//! and known to the guest was not removed yet, and what is not known was put there by another process since.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::RenameFlags;

use crate::host::inodes::open_path;
use crate::host::request_context::{Left, RequestContext};
use crate::host::share::Share;
use crate::sys::stat::{self, Statx};
use crate::types::Errno;

/// A name in a directory that is open.
type Place<'p> = (BorrowedFd<'p>, &'p CStr);

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A file that the guest has looked up.
    Known,
    /// Another process's.
    Unknown,
}

impl Share {
    /// The result of a removal of `name` from `dir`.
    pub(in crate::host) fn removed_before(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        context: &RequestContext<'_>,
    ) -> Option<Result<(), Errno>> {
        match context.left() {
            Left::Nothing => None,
            Left::Made(removed) => Some(removed.map(|_| ())),
            Left::Begun(_) => match self.found((dir, name)) {
                Ok(Found::Known) => None,
                found => Some(found.map(|_| ())),
            },
        }
    }

    /// The result of a rename of `old` to `new`. With RENAME_EXCHANGE, what is recorded of the time before is the
    /// [`ino_word`] of `old`.
    pub(in crate::host) fn renamed_before(
        &self,
        old: Place<'_>,
        new: Place<'_>,
        flags: RenameFlags,
        context: &RequestContext<'_>,
    ) -> Option<Result<(), Errno>> {
        let before = match context.left() {
            Left::Nothing => return None,
            Left::Made(renamed) => return Some(renamed.map(|_| ())),
            Left::Begun(before) => before,
        };
        if flags.contains(RenameFlags::EXCHANGE) {
            return match stat::at(old.0, old.1) {
                Ok(st) if ino_word(&st) == before => None,
                found => Some(found.map(|_| ())),
            };
        }
        match self.found(old) {
            Ok(Found::Known) => None,
            // A whiteout that the rename left is not known either.
            Ok(Found::Unknown) => Some(Ok(())),
            // After ENOENT the guest looks both names up again.
            Ok(Found::Nothing) => Some(self.found(new).and_then(|found| if found == Found::Known { Ok(()) } else { Err(Errno::ENOENT) })),
            Err(errno) => Some(Err(errno)),
        }
    }

    fn found(&self, (dir, name): Place<'_>) -> Result<Found, Errno> {
        let fd = match open_path(dir, name) {
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            fd => fd?,
        };
        let is_known = self.inodes.is_known(fd.as_fd(), &stat::of(fd.as_fd())?)?;
        Ok(if is_known { Found::Known } else { Found::Unknown })
    }
}

/// The inode number in `st` as a word of a record.
pub(in crate::host) fn ino_word(st: &Statx) -> i64 {
    st.stx_ino.cast_signed()
}
