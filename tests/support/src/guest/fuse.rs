//! FUSE 7.46 as a Linux guest speaks it: structures, opcodes and flags of `linux/fuse.h`.
//!
//! Names and field names are those of the header without `fuse_`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol version: major number.
pub const MAJOR: u32 = 7;
/// Protocol version: minor number.
pub const MINOR: u32 = 46;
/// Node id of the root directory.
pub const ROOT: u64 = 1;
/// Type of the supplementary-group extension.
pub const EXT_GROUPS: u32 = 32;

/// The opcodes of `enum fuse_opcode`.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// The INIT flags, `flags2` in the upper half.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const SPLICE_WRITE: u64 = 1 << 7;
    pub const SPLICE_MOVE: u64 = 1 << 8;
    pub const SPLICE_READ: u64 = 1 << 9;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
    pub const REQUEST_TIMEOUT: u64 = 1 << 42;

    /// What Linux sends when it mounts a virtiofs without DAX.
    pub const LINUX: u64 = ASYNC_READ
        | POSIX_LOCKS
        | ATOMIC_O_TRUNC
        | EXPORT_SUPPORT
        | BIG_WRITES
        | DONT_MASK
        | SPLICE_WRITE
        | SPLICE_MOVE
        | SPLICE_READ
        | FLOCK_LOCKS
        | HAS_IOCTL_DIR
        | AUTO_INVAL_DATA
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | WRITEBACK_CACHE
        | NO_OPEN_SUPPORT
        | PARALLEL_DIROPS
        | HANDLE_KILLPRIV
        | POSIX_ACL
        | ABORT_ERROR
        | MAX_PAGES
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT
        | EXPLICIT_INVAL_DATA
        | SUBMOUNTS
        | HANDLE_KILLPRIV_V2
        | SETXATTR_EXT
        | INIT_EXT
        | SECURITY_CTX
        | CREATE_SUPP_GROUP
        | HAS_EXPIRE_ONLY
        | DIRECT_IO_ALLOW_MMAP
        | PASSTHROUGH
        | NO_EXPORT_SUPPORT
        | HAS_RESEND
        | ALLOW_IDMAP
        | REQUEST_TIMEOUT;
}

/// Flags of single requests and replies.
pub mod flag {
    pub const FATTR_MODE: u32 = 1 << 0;
    pub const FATTR_UID: u32 = 1 << 1;
    pub const FATTR_GID: u32 = 1 << 2;
    pub const FATTR_SIZE: u32 = 1 << 3;
    pub const FATTR_ATIME: u32 = 1 << 4;
    pub const FATTR_MTIME: u32 = 1 << 5;
    pub const FATTR_FH: u32 = 1 << 6;
    pub const FATTR_ATIME_NOW: u32 = 1 << 7;
    pub const FATTR_MTIME_NOW: u32 = 1 << 8;
    pub const FATTR_KILL_SUIDGID: u32 = 1 << 11;

    pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
    pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
    pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
    pub const FOPEN_NOFLUSH: u32 = 1 << 5;
    pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

    pub const GETATTR_FH: u32 = 1 << 0;
    pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
    pub const LK_FLOCK: u32 = 1 << 0;
    pub const WRITE_CACHE: u32 = 1 << 0;
    pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub const READ_LOCKOWNER: u32 = 1 << 1;
    pub const FSYNC_FDATASYNC: u32 = 1 << 0;
    pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
    pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
    pub const ATTR_SUBMOUNT: u32 = 1 << 0;
}

/// Defines wire structures and holds their sizes to those of the C header.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident: $size:literal { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $kind),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire! {
    /// Before every request.
    InHeader: 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// Before every reply.
    OutHeader: 16 { len: u32, error: i32, unique: u64 }
    /// INIT request.
    InitIn: 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    /// INIT reply.
    InitOut: 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, max_stack_depth: u32, request_timeout: u16,
        unused: [u16; 11],
    }
    /// Attributes of a node.
    Attr: 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    /// Reply that makes a node known: LOOKUP, MKNOD, MKDIR, SYMLINK, LINK, CREATE.
    EntryOut: 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// FORGET request.
    ForgetIn: 8 { nlookup: u64 }
    /// One node of a BATCH_FORGET request.
    ForgetOne: 16 { nodeid: u64, nlookup: u64 }
    /// BATCH_FORGET request, before its nodes.
    BatchForgetIn: 8 { count: u32, dummy: u32 }
    /// GETATTR request.
    GetattrIn: 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    /// GETATTR and SETATTR reply.
    AttrOut: 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// SETATTR request.
    SetattrIn: 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64,
        ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32,
        uid: u32, gid: u32, unused5: u32,
    }
    /// STATX request.
    StatxIn: 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// A time of STATX.
    SxTime: 16 { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// The attributes of STATX, bit for bit `struct statx`.
    Statx: 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16,
        spare0: u16, ino: u64, size: u64, blocks: u64, attributes_mask: u64, atime: SxTime,
        btime: SxTime, ctime: SxTime, mtime: SxTime, rdev_major: u32, rdev_minor: u32,
        dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// STATX reply.
    StatxOut: 288 {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx,
    }
    /// MKNOD request, before the name.
    MknodIn: 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// MKDIR request, before the name.
    MkdirIn: 8 { mode: u32, umask: u32 }
    /// RENAME request, before the names.
    RenameIn: 8 { newdir: u64 }
    /// RENAME2 request, before the names.
    Rename2In: 16 { newdir: u64, flags: u32, padding: u32 }
    /// LINK request, before the name.
    LinkIn: 8 { oldnodeid: u64 }
    /// OPEN and OPENDIR request.
    OpenIn: 8 { flags: u32, open_flags: u32 }
    /// OPEN and OPENDIR reply, second half of a CREATE reply.
    OpenOut: 16 { fh: u64, open_flags: u32, backing_id: i32 }
    /// CREATE and TMPFILE request, before the name.
    CreateIn: 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// CREATE and TMPFILE reply.
    CreateOut: 144 { entry: EntryOut, open: OpenOut }
    /// RELEASE and RELEASEDIR request.
    ReleaseIn: 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// FLUSH request.
    FlushIn: 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// READ, READDIR and READDIRPLUS request.
    ReadIn: 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// WRITE request, before the data.
    WriteIn: 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// WRITE and COPY_FILE_RANGE reply.
    WriteOut: 8 { size: u32, padding: u32 }
    /// STATFS reply.
    Kstatfs: 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// FSYNC and FSYNCDIR request.
    FsyncIn: 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// SETXATTR request with SETXATTR_EXT, before name and value; without it the first 8 bytes.
    SetxattrIn: 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// GETXATTR and LISTXATTR request, before the name.
    GetxattrIn: 8 { size: u32, padding: u32 }
    /// GETXATTR and LISTXATTR reply when the size was asked for.
    GetxattrOut: 8 { size: u32, padding: u32 }
    /// A lock.
    FileLock: 24 { start: u64, end: u64, kind: u32, pid: u32 }
    /// GETLK, SETLK and SETLKW request.
    LkIn: 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    /// GETLK reply.
    LkOut: 24 { lk: FileLock }
    /// ACCESS request.
    AccessIn: 8 { mask: u32, padding: u32 }
    /// INTERRUPT request.
    InterruptIn: 8 { unique: u64 }
    /// IOCTL request, before the data.
    IoctlIn: 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// IOCTL reply, before the data.
    IoctlOut: 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// FALLOCATE request.
    FallocateIn: 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// LSEEK request.
    LseekIn: 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// LSEEK reply.
    LseekOut: 8 { offset: u64 }
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64 request.
    CopyFileRangeIn: 56 {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// COPY_FILE_RANGE_64 reply.
    CopyFileRangeOut: 8 { bytes_copied: u64 }
    /// SYNCFS request.
    SyncfsIn: 8 { padding: u64 }
    /// An entry of a READDIR reply, before its name.
    DirentHeader: 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// Before an extension.
    ExtHeader: 8 { size: u32, kind: u32 }
    /// Before the security contexts of a create.
    SecctxHeader: 8 { size: u32, nr_secctx: u32 }
}

/// The zero-terminated form of a name.
pub fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// An entry of a directory, with the attributes when READDIRPLUS asked for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// Inode number.
    pub ino: u64,
    /// Offset at which the entry after this one is read.
    pub off: u64,
    /// `DT_*`.
    pub kind: u32,
    /// The name without a terminator.
    pub name: Vec<u8>,
    /// The node, of READDIRPLUS only. A node id of 0 says that no lookup was counted.
    pub entry: Option<EntryOut>,
}

/// Decodes the payload of READDIR (`plus` false) or READDIRPLUS (`plus` true); `None` when an entry
/// is cut off or has no name.
pub fn dirents(mut bytes: &[u8], plus: bool) -> Option<Vec<Dirent>> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let (entry, rest) = if plus {
            let (entry, rest) = EntryOut::read_from_prefix(bytes).ok()?;
            (Some(entry), rest)
        } else {
            (None, bytes)
        };
        let (header, rest) = DirentHeader::read_from_prefix(rest).ok()?;
        let len = header.namelen as usize;
        let name = rest.get(..len).filter(|name| !name.is_empty())?.to_vec();
        bytes = rest.get(len.next_multiple_of(8)..)?;
        list.push(Dirent { ino: header.ino, off: header.off, kind: header.kind, name, entry });
    }
    Some(list)
}
