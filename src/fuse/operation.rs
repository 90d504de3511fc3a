//! Decodes the bytes of a request to an [`Operation`]. The bytes are a copy that the guest cannot change. A decoded operation has
//! names of one component, and its variable data is present in full.

use std::ffi::CStr;

use zerocopy::FromBytes;

use super::abi::*;
use super::cursor::Cursor;
use super::extension::{Extensions, extensions, follow_the_names};
use super::init::{InitRequest, Negotiated};
use super::opcode::Opcode;
use crate::types::{Errno, FileHandle, GuestGid, GuestUid, NodeId, Unique};

/// The longest value of an extended attribute (XATTR_SIZE_MAX of linux/limits.h).
const XATTR_VALUE_LEN_MAX: u32 = 65536;

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Bytes of the whole request, by the guest's account.
    pub len: u32,
    /// The opcode's number, which may be unknown.
    pub opcode: u32,
    /// The number by which the guest matches the reply to the request.
    pub unique: Unique,
    /// The node of the request.
    pub node: NodeId,
    /// The caller's user id.
    pub uid: GuestUid,
    /// The caller's group id.
    pub gid: GuestGid,
    /// Bytes of extensions at the end of the arguments.
    pub extension_len: usize,
}

impl RequestHeader {
    /// A header of zeroes, for a request without one.
    pub const NONE: RequestHeader =
        RequestHeader { len: 0, opcode: 0, unique: Unique(0), node: NodeId(0), uid: GuestUid(0), gid: GuestGid(0), extension_len: 0 };
}

/// Whether an attribute request is for an open file or for the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleOrNode {
    /// The open file.
    Handle(FileHandle),
    /// The node.
    Node,
}

/// A timestamp to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present time.
    Now,
    /// Seconds and nanoseconds since the epoch.
    At(i64, u32),
}

/// A decoded SETATTR. `None` leaves an attribute unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setattr {
    /// The open file, where the guest sent its handle.
    pub target: HandleOrNode,
    /// Permission bits.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<GuestUid>,
    /// The group.
    pub gid: Option<GuestGid>,
    /// The size in bytes.
    pub size: Option<u64>,
    /// The access time.
    pub atime: Option<SetTime>,
    /// The modification time.
    pub mtime: Option<SetTime>,
    /// Whether a truncation clears setuid and setgid.
    pub kill_suidgid: bool,
}

/// A decoded request. Names are one path component of at most 255 bytes. A LOOKUP's may be `.` or `..` with EXPORT_SUPPORT.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation<'a> {
    Lookup { name: &'a CStr },
    Forget { count: u64 },
    BatchForget { nodes: &'a [u8] },
    Getattr { target: HandleOrNode },
    Setattr(Setattr),
    Statx { target: HandleOrNode, flags: u32, mask: u32 },
    Readlink,
    Symlink { name: &'a CStr, target: &'a CStr, extensions: Extensions<'a> },
    Mknod { name: &'a CStr, mode: u32, rdev: u32, umask: u32, extensions: Extensions<'a> },
    Mkdir { name: &'a CStr, mode: u32, umask: u32, extensions: Extensions<'a> },
    Unlink { name: &'a CStr },
    Rmdir { name: &'a CStr },
    Rename { name: &'a CStr, new_parent: NodeId, new_name: &'a CStr, flags: u32 },
    Link { node: NodeId, name: &'a CStr },
    Open { flags: u32, kill_suidgid: bool },
    Read { handle: FileHandle, offset: u64, size: u32 },
    Write { handle: FileHandle, offset: u64, size: u32, flags: u32, write_flags: u32 },
    Statfs,
    Release { handle: FileHandle, flock_owner: Option<u64> },
    Flush { handle: FileHandle, lock_owner: u64 },
    Fsync { handle: FileHandle, data_only: bool },
    Setxattr { name: &'a CStr, value: &'a [u8], flags: u32, kill_sgid: bool },
    Getxattr { name: &'a CStr, size: u32 },
    Listxattr { size: u32 },
    Removexattr { name: &'a CStr },
    Init(InitRequest),
    Opendir { flags: u32 },
    Readdir { handle: FileHandle, offset: u64, size: u32 },
    Readdirplus { handle: FileHandle, offset: u64, size: u32 },
    Releasedir { handle: FileHandle },
    Fsyncdir { handle: FileHandle, data_only: bool },
    Getlk(LkIn),
    Setlk(LkIn),
    Setlkw(LkIn),
    Access { mask: u32 },
    Create { name: &'a CStr, flags: u32, mode: u32, umask: u32, kill_suidgid: bool, extensions: Extensions<'a> },
    Tmpfile { flags: u32, mode: u32, umask: u32, extensions: Extensions<'a> },
    Interrupt { unique: Unique },
    Bmap { block: u64, block_size: u32 },
    Destroy,
    Ioctl { request: IoctlIn, data: &'a [u8] },
    Poll(PollIn),
    NotifyReply,
    Fallocate { handle: FileHandle, offset: u64, len: u64, mode: u32 },
    Lseek { handle: FileHandle, offset: u64, whence: u32 },
    CopyFileRange { copy: CopyFileRangeIn, wide_reply: bool },
    Setupmapping(SetupmappingIn),
    Removemapping { count: u32 },
    Syncfs,
}

/// Decodes the header of 40 bytes. `None` where there are fewer.
pub fn decode_header(bytes: &[u8]) -> Option<RequestHeader> {
    let (h, _) = InHeader::read_from_prefix(bytes).ok()?;
    Some(RequestHeader {
        len: h.len,
        opcode: h.opcode,
        unique: Unique(h.unique),
        node: NodeId(h.nodeid),
        uid: GuestUid(h.uid),
        gid: GuestGid(h.gid),
        extension_len: usize::from(h.total_extlen) * 8,
    })
}

/// Decodes the arguments after the header. `negotiated` is the result of INIT, `None` before it.
///
/// ENOSYS for an unknown opcode; EINVAL for arguments that are too short, and for an invalid name; ENAMETOOLONG for a name above
/// 255 bytes, and for a target of a symbolic link above PATH_MAX; ENOENT for an empty target; ERANGE for the name of an
/// attribute that is empty or above 255 bytes; E2BIG for a value of an attribute above 64 KiB.
pub fn decode<'a>(header: &RequestHeader, arguments: &'a [u8], negotiated: Option<&Negotiated>) -> Result<Operation<'a>, Errno> {
    let opcode = Opcode::from_number(header.opcode).ok_or(Errno::ENOSYS)?;
    let own_len = arguments.len().checked_sub(header.extension_len).ok_or(Errno::EINVAL)?;
    let (own, area) = arguments.split_at(own_len);
    let mut c = Cursor::new(own);
    let operation = match opcode {
        Opcode::Lookup if negotiated.is_some_and(|a| a.has(init_flags::EXPORT_SUPPORT)) => {
            let name = c.take_lookup_name()?;
            c.finish()?;
            Operation::Lookup { name }
        }
        Opcode::Lookup => Operation::Lookup { name: last_name(c)? },
        Opcode::Unlink => Operation::Unlink { name: last_name(c)? },
        Opcode::Rmdir => Operation::Rmdir { name: last_name(c)? },
        Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Create | Opcode::Tmpfile => decode_create(opcode, c, area, negotiated)?,
        Opcode::Rename => {
            let a: RenameIn = c.take()?;
            rename(c, NodeId(a.newdir), 0)?
        }
        Opcode::Rename2 => {
            let a: Rename2In = c.take()?;
            rename(c, NodeId(a.newdir), a.flags)?
        }
        Opcode::Link => {
            let a: LinkIn = c.take()?;
            Operation::Link { node: NodeId(a.oldnodeid), name: last_name(c)? }
        }
        Opcode::Setxattr | Opcode::Getxattr | Opcode::Listxattr | Opcode::Removexattr => decode_xattr(opcode, c, negotiated)?,
        _ => decode_fixed(opcode, &mut c)?,
    };
    Ok(operation)
}

/// Decodes the operations that create an inode. `area` holds the extensions whose length is in the header.
fn decode_create<'a>(opcode: Opcode, mut c: Cursor<'a>, area: &'a [u8], negotiated: Option<&Negotiated>) -> Result<Operation<'a>, Errno> {
    let end = |c: Cursor<'a>| {
        if area.is_empty() && follow_the_names(negotiated) {
            return extensions(c.rest(), negotiated);
        }
        c.finish()?;
        extensions(area, negotiated)
    };
    Ok(match opcode {
        Opcode::Symlink => {
            let (name, target) = (c.take_name()?, c.take_target()?);
            Operation::Symlink { name, target, extensions: end(c)? }
        }
        Opcode::Mknod => {
            let MknodIn { mode, rdev, umask, .. } = c.take()?;
            Operation::Mknod { name: c.take_name()?, mode, rdev, umask, extensions: end(c)? }
        }
        Opcode::Mkdir => {
            let MkdirIn { mode, umask } = c.take()?;
            Operation::Mkdir { name: c.take_name()?, mode, umask, extensions: end(c)? }
        }
        Opcode::Create => {
            let CreateIn { flags, mode, umask, open_flags } = c.take()?;
            let kill_suidgid = open_flags & OPEN_KILL_SUIDGID != 0;
            Operation::Create { name: c.take_name()?, flags, mode, umask, kill_suidgid, extensions: end(c)? }
        }
        _ => {
            let CreateIn { flags, mode, umask, .. } = c.take()?;
            // The name that follows is a placeholder ("/").
            c.take_string()?;
            Operation::Tmpfile { flags, mode, umask, extensions: end(c)? }
        }
    })
}

/// The request's only or last name.
fn last_name(mut cursor: Cursor<'_>) -> Result<&CStr, Errno> {
    let name = cursor.take_name()?;
    cursor.finish()?;
    Ok(name)
}

fn rename(mut cursor: Cursor<'_>, new_parent: NodeId, flags: u32) -> Result<Operation<'_>, Errno> {
    let name = cursor.take_name()?;
    let new_name = cursor.take_name()?;
    cursor.finish()?;
    Ok(Operation::Rename { name, new_parent, new_name, flags })
}

fn decode_xattr<'a>(opcode: Opcode, mut c: Cursor<'a>, negotiated: Option<&Negotiated>) -> Result<Operation<'a>, Errno> {
    match opcode {
        Opcode::Setxattr => {
            let (size, flags, more_flags) = if negotiated.is_some_and(|a| a.has(init_flags::SETXATTR_EXT)) {
                let a: SetxattrIn = c.take()?;
                (a.size, a.flags, a.setxattr_flags)
            } else {
                let a: SetxattrCompatIn = c.take()?;
                (a.size, a.flags, 0)
            };
            if size > XATTR_VALUE_LEN_MAX {
                return Err(Errno::E2BIG);
            }
            let name = xattr_name(&mut c)?;
            let kill_sgid = more_flags & SETXATTR_ACL_KILL_SGID != 0;
            Ok(Operation::Setxattr { name, value: c.take_bytes(size as usize)?, flags, kill_sgid })
        }
        Opcode::Getxattr => {
            let a: GetxattrIn = c.take()?;
            Ok(Operation::Getxattr { name: xattr_name(&mut c)?, size: a.size })
        }
        Opcode::Listxattr => Ok(Operation::Listxattr { size: c.take::<GetxattrIn>()?.size }),
        _ => Ok(Operation::Removexattr { name: xattr_name(&mut c)? }),
    }
}

/// The name of an extended attribute. ERANGE where it is empty or above 255 bytes (man xattr(7)).
fn xattr_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a CStr, Errno> {
    let name = cursor.take_string()?;
    match name.count_bytes() {
        1..=255 => Ok(name),
        _ => Err(Errno::ERANGE),
    }
}

/// Decodes the operations whose arguments are one structure and no name.
fn decode_fixed<'a>(opcode: Opcode, c: &mut Cursor<'a>) -> Result<Operation<'a>, Errno> {
    let handle = FileHandle;
    Ok(match opcode {
        Opcode::Forget => Operation::Forget { count: c.take::<ForgetIn>()?.nlookup },
        Opcode::BatchForget => {
            let count = c.take::<BatchForgetIn>()?.count as usize;
            let len = count.checked_mul(size_of::<ForgetOne>()).ok_or(Errno::EINVAL)?;
            Operation::BatchForget { nodes: c.take_bytes(len)? }
        }
        Opcode::Getattr => {
            let a: GetattrIn = c.take()?;
            Operation::Getattr { target: handle_or_node(a.getattr_flags & GETATTR_FH != 0, a.fh) }
        }
        Opcode::Setattr => Operation::Setattr(decode_setattr(&c.take()?)),
        Opcode::Statx => {
            let a: StatxIn = c.take()?;
            Operation::Statx { target: handle_or_node(a.getattr_flags & GETATTR_FH != 0, a.fh), flags: a.sx_flags, mask: a.sx_mask }
        }
        Opcode::Readlink => Operation::Readlink,
        Opcode::Open => {
            let a: OpenIn = c.take()?;
            Operation::Open { flags: a.flags, kill_suidgid: a.open_flags & OPEN_KILL_SUIDGID != 0 }
        }
        Opcode::Opendir => Operation::Opendir { flags: c.take::<OpenIn>()?.flags },
        Opcode::Read => {
            let a: ReadIn = c.take()?;
            Operation::Read { handle: handle(a.fh), offset: a.offset, size: a.size }
        }
        Opcode::Readdir => {
            let a: ReadIn = c.take()?;
            Operation::Readdir { handle: handle(a.fh), offset: a.offset, size: a.size }
        }
        Opcode::Readdirplus => {
            let a: ReadIn = c.take()?;
            Operation::Readdirplus { handle: handle(a.fh), offset: a.offset, size: a.size }
        }
        Opcode::Write => {
            let a: WriteIn = c.take()?;
            Operation::Write { handle: handle(a.fh), offset: a.offset, size: a.size, flags: a.flags, write_flags: a.write_flags }
        }
        Opcode::Statfs => Operation::Statfs,
        Opcode::Release => {
            let a: ReleaseIn = c.take()?;
            let flock_owner = (a.release_flags & RELEASE_FLOCK_UNLOCK != 0).then_some(a.lock_owner);
            Operation::Release { handle: handle(a.fh), flock_owner }
        }
        Opcode::Releasedir => Operation::Releasedir { handle: handle(c.take::<ReleaseIn>()?.fh) },
        Opcode::Flush => {
            let a: FlushIn = c.take()?;
            Operation::Flush { handle: handle(a.fh), lock_owner: a.lock_owner }
        }
        Opcode::Fsync => {
            let a: FsyncIn = c.take()?;
            Operation::Fsync { handle: handle(a.fh), data_only: a.fsync_flags & FSYNC_FDATASYNC != 0 }
        }
        Opcode::Fsyncdir => {
            let a: FsyncIn = c.take()?;
            Operation::Fsyncdir { handle: handle(a.fh), data_only: a.fsync_flags & FSYNC_FDATASYNC != 0 }
        }
        Opcode::Init => Operation::Init(InitRequest::decode(c)?),
        Opcode::Getlk => Operation::Getlk(c.take()?),
        Opcode::Setlk => Operation::Setlk(c.take()?),
        Opcode::Setlkw => Operation::Setlkw(c.take()?),
        Opcode::Access => Operation::Access { mask: c.take::<AccessIn>()?.mask },
        Opcode::Interrupt => Operation::Interrupt { unique: Unique(c.take::<InterruptIn>()?.unique) },
        Opcode::Bmap => {
            let a: BmapIn = c.take()?;
            Operation::Bmap { block: a.block, block_size: a.blocksize }
        }
        Opcode::Destroy => Operation::Destroy,
        Opcode::Ioctl => {
            let request: IoctlIn = c.take()?;
            Operation::Ioctl { request, data: c.take_bytes(request.in_size as usize)? }
        }
        Opcode::Poll => Operation::Poll(c.take()?),
        Opcode::NotifyReply => Operation::NotifyReply,
        Opcode::Fallocate => {
            let a: FallocateIn = c.take()?;
            Operation::Fallocate { handle: handle(a.fh), offset: a.offset, len: a.length, mode: a.mode }
        }
        Opcode::Lseek => {
            let a: LseekIn = c.take()?;
            Operation::Lseek { handle: handle(a.fh), offset: a.offset, whence: a.whence }
        }
        Opcode::CopyFileRange => Operation::CopyFileRange { copy: c.take()?, wide_reply: false },
        Opcode::CopyFileRange64 => Operation::CopyFileRange { copy: c.take()?, wide_reply: true },
        Opcode::Setupmapping => Operation::Setupmapping(c.take()?),
        Opcode::Removemapping => Operation::Removemapping { count: c.take::<RemovemappingIn>()?.count },
        Opcode::Syncfs => Operation::Syncfs,
        // `decode` handles these. They are listed so that the compiler reports a new opcode.
        Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir | Opcode::Rename | Opcode::Rename2 | Opcode::Link => return Err(Errno::ENOSYS),
        Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Create | Opcode::Tmpfile => return Err(Errno::ENOSYS),
        Opcode::Setxattr | Opcode::Getxattr | Opcode::Listxattr | Opcode::Removexattr => return Err(Errno::ENOSYS),
    })
}

fn handle_or_node(has_handle: bool, fh: u64) -> HandleOrNode {
    if has_handle { HandleOrNode::Handle(FileHandle(fh)) } else { HandleOrNode::Node }
}

fn decode_setattr(a: &SetattrIn) -> Setattr {
    use setattr_valid as v;
    let has = |bit| a.valid & bit != 0;
    let time = |set, now, sec: u64, nsec| match (has(set), has(now)) {
        (_, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(sec.cast_signed(), nsec)),
        (false, false) => None,
    };
    Setattr {
        target: handle_or_node(has(FATTR_FH), a.fh),
        mode: has(v::MODE).then_some(a.mode),
        uid: has(v::UID).then_some(GuestUid(a.uid)),
        gid: has(v::GID).then_some(GuestGid(a.gid)),
        size: has(v::SIZE).then_some(a.size),
        atime: time(v::ATIME, v::ATIME_NOW, a.atime, a.atimensec),
        mtime: time(v::MTIME, v::MTIME_NOW, a.mtime, a.mtimensec),
        kill_suidgid: has(v::KILL_SUIDGID),
    }
}
