//! Decoded requests as arguments of the host's operations.

use zerocopy::FromBytes;

use crate::fuse::abi::{CopyFileRangeIn, ForgetOne, LK_FLOCK, LkIn};
use crate::fuse::{HandleOrNode, SetTime, Setattr};
use crate::host::{AttributeChange, CopyRange, LockFamily, LockOwner, LockRequest, NewTime};
use crate::sys::lock::{LockKind, Span};
use crate::types::{Errno, FileHandle, NodeId};

/// The open file that an attribute request names.
pub(super) fn handle(target: HandleOrNode) -> Option<FileHandle> {
    match target {
        HandleOrNode::Handle(handle) => Some(handle),
        HandleOrNode::Node => None,
    }
}

/// What SETATTR sets.
pub(super) fn attribute_change(set: &Setattr) -> AttributeChange {
    let time = |time| match time {
        SetTime::Now => NewTime::Now,
        SetTime::At(sec, nsec) => NewTime::At(sec, nsec),
    };
    AttributeChange {
        handle: handle(set.target),
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime: set.atime.map(time),
        mtime: set.mtime.map(time),
        clears_suidgid: set.kill_suidgid,
    }
}

/// What COPY_FILE_RANGE copies.
pub(super) fn copy_range(copy: &CopyFileRangeIn) -> CopyRange {
    CopyRange {
        from: FileHandle(copy.fh_in),
        from_offset: copy.off_in,
        to: FileHandle(copy.fh_out),
        to_offset: copy.off_out,
        len: copy.len,
        flags: copy.flags,
    }
}

/// A lock request.
pub(super) enum LockChange {
    /// F_RDLCK or F_WRLCK.
    Lock(LockRequest),
    /// F_UNLCK.
    Unlock(FileHandle, LockOwner, Span),
}

/// The lock that `lk` names on `node`. EINVAL for a type or range that does not exist.
pub(super) fn lock_change(node: NodeId, lk: &LkIn) -> Result<LockChange, Errno> {
    let is_flock = lk.lk_flags & LK_FLOCK != 0;
    let (handle, family) = (FileHandle(lk.fh), if is_flock { LockFamily::Flock } else { LockFamily::Posix });
    let owner = LockOwner { family, id: lk.owner };
    let span = if is_flock { Span::WHOLE } else { Span { start: lk.start, end: lk.end.min(Span::WHOLE.end) } };
    if span.start > span.end {
        return Err(Errno::EINVAL);
    }
    let kind = match lk.kind.cast_signed() {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        libc::F_UNLCK => return Ok(LockChange::Unlock(handle, owner, span)),
        _ => return Err(Errno::EINVAL),
    };
    Ok(LockChange::Lock(LockRequest { node, handle, owner, span, kind, pid: lk.pid }))
}

/// BATCH_FORGET: what `nodes`, which are `fuse_forget_one` structures, take off each node.
pub(super) fn forgets(nodes: &[u8]) -> impl Iterator<Item = (NodeId, u64)> + '_ {
    let mut rest = nodes;
    std::iter::from_fn(move || {
        let (one, more) = ForgetOne::read_from_prefix(rest).ok()?;
        rest = more;
        Some((NodeId(one.nodeid), one.nlookup))
    })
}
