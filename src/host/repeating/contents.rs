//! Contents: what a second execution would do twice, and what a first one may have used up.

use std::os::fd::{AsFd, BorrowedFd};

use crate::host::request_context::{Left, RequestContext};
use crate::host::share::Share;
use crate::sys::descriptor::sync_file_system;
use crate::sys::{stat, vectored};
use crate::types::{Errno, NodeId};

/// Bytes of a file that are compared with a payload at once.
const COMPARED_LEN: usize = 64 << 10;

/// What is there of an appending WRITE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// So many bytes, fewer than all; the rest is to be appended. The kernel ends the write of a process that is killed between two
    /// pages.
    Part(usize),
    /// All of it, or it has failed.
    Done(Result<usize, Errno>),
}

impl Share {
    /// Makes `sync`, which makes what was written to `file` lasting. The kernel reports an error of it once for each open
    /// description, inside the call: where a process died in it, the file system is asked instead whether it has lost anything since
    /// this description was opened, or asked the last time.
    pub(in crate::host) fn once_witnessed(
        &self,
        file: BorrowedFd<'_>,
        context: &RequestContext<'_>,
        sync: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match context.left() {
            Left::Nothing => context.once(0, sync),
            Left::Made(synced) => synced.map(|_| ()),
            Left::Begun(_) => context.once(0, || sync().and_then(|()| sync_file_system(file))),
        }
    }

    /// What is there of an appending WRITE of `len` bytes to `node`; `payload` copies from a byte of the payload on. What is recorded
    /// of the time before is the file's length. EIO where another process has changed the file too, so that it cannot be told.
    pub fn appended_before(
        &self,
        node: NodeId,
        len: usize,
        payload: impl Fn(usize, &mut [u8]) -> usize,
        context: &RequestContext<'_>,
    ) -> Appended {
        let before = match context.left() {
            Left::Nothing => return Appended::Part(0),
            Left::Made(written) => return Appended::Done(written.map(|len| usize::try_from(len).unwrap_or_default())),
            Left::Begun(before) => before,
        };
        let written = || -> Result<usize, Errno> {
            let file = self.inodes.open_node(node, libc::O_RDONLY)?;
            let size = size_word(file.as_fd())?;
            let there = usize::try_from(size - before).map_err(|_| unknown(context, "append", node))?.min(len);
            if begins_with(file.as_fd(), before.cast_unsigned(), there, payload)? {
                Ok(there)
            } else {
                Err(unknown(context, "append", node))
            }
        };
        match written() {
            Ok(there) if there < len => Appended::Part(there),
            done => Appended::Done(done),
        }
    }
}

/// The result of a FALLOCATE that makes a file of `before` bytes `grown` longer, or shorter, where it now has `size`. EIO where it
/// has neither length: another process has changed the file too.
pub(in crate::host) fn moved_before(size: i64, grown: i64, context: &RequestContext<'_>) -> Option<Result<(), Errno>> {
    match context.left() {
        Left::Nothing => None,
        Left::Made(moved) => Some(moved.map(|_| ())),
        Left::Begun(before) if size == before => None,
        Left::Begun(before) if size == before.saturating_add(grown) => Some(Ok(())),
        Left::Begun(_) => Some(Err(unknown(context, "move of data", context.earlier.map_or(NodeId::ROOT, |earlier| earlier.node)))),
    }
}

/// The length of `file` as a word of a record. The errno of statx(2).
pub(in crate::host) fn size_word(file: BorrowedFd<'_>) -> Result<i64, Errno> {
    Ok(stat::of(file)?.stx_size.cast_signed())
}

/// Whether the `len` bytes of `file` at `offset` are the first ones of the payload.
fn begins_with(file: BorrowedFd<'_>, offset: u64, len: usize, payload: impl Fn(usize, &mut [u8]) -> usize) -> Result<bool, Errno> {
    let (mut there, mut wanted) = (vec![0; COMPARED_LEN.min(len)], vec![0; COMPARED_LEN.min(len)]);
    let mut at = 0;
    while at < len {
        let piece = COMPARED_LEN.min(len - at);
        let read = vectored::read_own(file, &mut there[..piece], offset + at as u64)?;
        if read == 0 || payload(at, &mut wanted[..read]) < read || there[..read] != wanted[..read] {
            return Ok(false);
        }
        at += read;
    }
    Ok(true)
}

/// The error for a request of which nobody can tell whether it was carried out.
fn unknown(context: &RequestContext<'_>, what: &str, node: NodeId) -> Errno {
    tracing::error!(
        "{}: the process died in an {what}, and another process has changed the file (node {:#x}) since; whether it was made is not known, \
         and the guest gets EIO",
        context.id,
        node.0
    );
    Errno::EIO
}
