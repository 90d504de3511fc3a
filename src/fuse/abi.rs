//! The structures of the FUSE protocol, version 7.45 (`linux/fuse.h`). Constants come from fuse-backend-rs where it has them. Its
//! structures are not used, because its request header lacks the extension length of 7.38 and its traits are those of another
//! version of vm-memory (docs/decisions/0001-own-wire-structs.md). A test compares both layouts.

// The derive macros generate helper types without Debug.
#![allow(missing_debug_implementations)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use fuse_backend_rs::abi::fuse_abi::{
    ATTR_SUBMOUNT, FATTR_FH, FATTR_LOCKOWNER, FSYNC_FDATASYNC, GETATTR_FH, KERNEL_VERSION, WRITE_CACHE, WRITE_KILL_PRIV,
};

/// The minor version of the daemon.
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// The oldest minor version of a guest that is accepted: Linux 4.18 and 4.19. MAX_PAGES came with the next one.
pub const KERNEL_MINOR_VERSION_MIN: u32 = 27;
/// Bytes of a request's header.
pub const IN_HEADER_LEN: usize = size_of::<InHeader>();
/// Bytes of a reply's header.
pub const OUT_HEADER_LEN: usize = size_of::<OutHeader>();

/// INIT flags, `flags2` in the upper half.
pub mod init_flags {
    /// READs may be sent in parallel and out of order.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// Record locks are sent to the daemon.
    pub const POSIX_LOCKS: u64 = 1 << 1;
    /// OPEN with O_TRUNC truncates, without a SETATTR.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// LOOKUP takes "." and "..", so that the guest can look up a node by its id.
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    /// WRITEs of more than one page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The daemon applies the umask.
    pub const DONT_MASK: u64 = 1 << 6;
    /// flock(2) locks are sent to the daemon.
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    /// IOCTL of directories.
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    /// The guest invalidates cached data when size or mtime changes.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// The guest chooses between READDIR and READDIRPLUS.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct I/O may be sent in parallel.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// The guest caches writes.
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    /// OPEN may be ENOSYS: the guest then sends no more OPENs, and handle 0.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// LOOKUPs and READDIRs of one directory may be sent in parallel.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// The daemon always clears setuid, setgid and capabilities at writes, truncations and changes of owner.
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    /// The guest enforces POSIX ACLs.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// `max_pages` of the INIT reply is valid.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// The guest caches the targets of symbolic links.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// OPENDIR may be ENOSYS: the guest then sends no more OPENDIRs, and handle 0.
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// The guest invalidates cached data only by notifications of the daemon.
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// The guest supports `FUSE_ATTR_SUBMOUNT`.
    pub const SUBMOUNTS: u64 = 1 << 27;
    /// As `HANDLE_KILLPRIV`, for requests that have a flag for it.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR has `setxattr_flags`.
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// INIT has `flags2`.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Creates have the label of the guest's security module.
    pub const SECURITY_CTX: u64 = 1 << 32;
    /// Creates have the caller's supplementary group where it is that of the parent directory.
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    /// A file that is opened with DIRECT_IO may be mapped shared.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Id-mapped mounts in the guest. Requests other than creates then have no caller.
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// OPEN and CREATE reply flags.
pub mod open_flags {
    /// Bypass the page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Keep the cached data of earlier opens.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The guest may cache directory entries.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No FLUSH at close(2).
    pub const NOFLUSH: u32 = 1 << 5;
    /// Direct writes that do not extend the file may be sent in parallel.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `fuse_setattr_in.valid` bits.
pub mod setattr_valid {
    /// `mode` is valid.
    pub const MODE: u32 = 1 << 0;
    /// `uid` is valid.
    pub const UID: u32 = 1 << 1;
    /// `gid` is valid.
    pub const GID: u32 = 1 << 2;
    /// `size` is valid.
    pub const SIZE: u32 = 1 << 3;
    /// `atime` is valid.
    pub const ATIME: u32 = 1 << 4;
    /// `mtime` is valid.
    pub const MTIME: u32 = 1 << 5;
    /// Set atime to the current time.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// Set mtime to the current time.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// Clear setuid and setgid as a write does.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_ioctl_in.flags`: an ioctl that may access any memory of the caller (CUSE only).
pub const IOCTL_UNRESTRICTED: u32 = 1 << 1;
/// `fuse_open_in.open_flags`: clear setuid and setgid when truncating.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// `fuse_setxattr_in.setxattr_flags`: the new access ACL clears setgid.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// `fuse_lk_in.lk_flags`: a flock(2) lock, not a record lock.
pub const LK_FLOCK: u32 = 1;
/// `fuse_release_in.release_flags`: release the flock(2) lock of `lock_owner`.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// Extension type of supplementary groups.
pub const EXT_GROUPS: u32 = 32;
/// The highest extension type that is a number of security contexts (FUSE_MAX_NR_SECCTX).
pub const EXT_SECURITY_MAX: u32 = 31;

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? })*) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[allow(missing_docs)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )* };
}

wire! {
    /// `fuse_in_header`: begins every request. `total_extlen` counts units of eight bytes.
    InHeader, 40 { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    /// `fuse_out_header`: begins every reply; `error` is zero or a negated errno.
    OutHeader, 16 { len: u32, error: i32, unique: u64 }
    /// `fuse_attr`.
    Attr, 88 { ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32 }
    /// `fuse_entry_out`.
    EntryOut, 128 { nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr }
    /// `fuse_attr_out`.
    AttrOut, 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `fuse_sx_time`.
    SxTime, 16 { sec: i64, nsec: u32, reserved: i32 }
    /// `fuse_statx`.
    Statx, 256 { mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64, size: u64, blocks: u64,
        attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime, rdev_major: u32, rdev_minor: u32,
        dev_major: u32, dev_minor: u32, spare2: [u64; 14] }
    /// `fuse_statx_in`.
    StatxIn, 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// `fuse_statx_out`.
    StatxOut, 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx }
    /// `fuse_getattr_in`.
    GetattrIn, 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    /// `fuse_setattr_in`.
    SetattrIn, 88 { valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32 }
    /// `fuse_forget_in`.
    ForgetIn, 8 { nlookup: u64 }
    /// `fuse_forget_one`.
    ForgetOne, 16 { nodeid: u64, nlookup: u64 }
    /// `fuse_batch_forget_in`.
    BatchForgetIn, 8 { count: u32, dummy: u32 }
    /// `fuse_mknod_in`.
    MknodIn, 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `fuse_mkdir_in`.
    MkdirIn, 8 { mode: u32, umask: u32 }
    /// `fuse_rename_in`.
    RenameIn, 8 { newdir: u64 }
    /// `fuse_rename2_in`.
    Rename2In, 16 { newdir: u64, flags: u32, padding: u32 }
    /// `fuse_link_in`.
    LinkIn, 8 { oldnodeid: u64 }
    /// `fuse_open_in`.
    OpenIn, 8 { flags: u32, open_flags: u32 }
    /// `fuse_create_in`.
    CreateIn, 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `fuse_open_out`.
    OpenOut, 16 { fh: u64, open_flags: u32, backing_id: i32 }
    /// `fuse_read_in`; also READDIR and READDIRPLUS.
    ReadIn, 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_in`.
    WriteIn, 40 { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_out`; also COPY_FILE_RANGE.
    WriteOut, 8 { size: u32, padding: u32 }
    /// `fuse_kstatfs`.
    Kstatfs, 80 { blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6] }
    /// `fuse_release_in`.
    ReleaseIn, 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `fuse_flush_in`.
    FlushIn, 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `fuse_fsync_in`.
    FsyncIn, 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// `fuse_setxattr_in` with SETXATTR_EXT.
    SetxattrIn, 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// `fuse_setxattr_in` without SETXATTR_EXT.
    SetxattrCompatIn, 8 { size: u32, flags: u32 }
    /// `fuse_getxattr_in`; also LISTXATTR.
    GetxattrIn, 8 { size: u32, padding: u32 }
    /// `fuse_getxattr_out`.
    GetxattrOut, 8 { size: u32, padding: u32 }
    /// `fuse_lk_in`.
    LkIn, 48 { fh: u64, owner: u64, start: u64, end: u64, kind: u32, pid: u32, lk_flags: u32, padding: u32 }
    /// `fuse_lk_out`.
    LkOut, 24 { start: u64, end: u64, kind: u32, pid: u32 }
    /// `fuse_access_in`.
    AccessIn, 8 { mask: u32, padding: u32 }
    /// `fuse_init_in` before 7.36.
    InitCompatIn, 16 { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// What `fuse_init_in` grew by in 7.36.
    InitExtIn, 48 { flags2: u32, unused: [u32; 11] }
    /// `fuse_init_out`.
    InitOut, 64 { major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16, max_write: u32,
        time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32, request_timeout: u16, unused: [u16; 11] }
    /// `fuse_interrupt_in`.
    InterruptIn, 8 { unique: u64 }
    /// `fuse_bmap_in`.
    BmapIn, 16 { block: u64, blocksize: u32, padding: u32 }
    /// `fuse_ioctl_in`.
    IoctlIn, 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// `fuse_ioctl_out`; output bytes follow.
    IoctlOut, 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// `fuse_poll_in`.
    PollIn, 24 { fh: u64, kh: u64, flags: u32, events: u32 }
    /// `fuse_fallocate_in`.
    FallocateIn, 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `fuse_lseek_in`.
    LseekIn, 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `fuse_lseek_out`.
    LseekOut, 8 { offset: u64 }
    /// `fuse_copy_file_range_in`.
    CopyFileRangeIn, 56 { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    /// `fuse_copy_file_range_out`, the reply of COPY_FILE_RANGE_64.
    CopyFileRangeOut, 8 { bytes_copied: u64 }
    /// `fuse_setupmapping_in`.
    SetupmappingIn, 40 { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64 }
    /// `fuse_removemapping_in`.
    RemovemappingIn, 4 { count: u32 }
    /// `fuse_dirent` without its name.
    Dirent, 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// `fuse_ext_header`: begins each extension; `size` includes it.
    ExtHeader, 8 { size: u32, kind: u32 }
    /// `fuse_secctx`: begins a security context, before its name and value. `size` is that of the value.
    Secctx, 8 { size: u32, padding: u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_backend_rs::abi::fuse_abi as theirs;
    use std::mem::offset_of;

    #[test]
    fn sizes_agree_with_fuse_backend_rs() {
        macro_rules! same {
            ($($name:ident),*) => { $(assert_eq!(size_of::<$name>(), size_of::<theirs::$name>(), stringify!($name));)* };
        }
        same!(
            InHeader,
            OutHeader,
            Attr,
            EntryOut,
            AttrOut,
            GetattrIn,
            SetattrIn,
            ForgetIn,
            ForgetOne,
            BatchForgetIn,
            MknodIn,
            MkdirIn,
            RenameIn
        );
        same!(Rename2In, LinkIn, OpenIn, CreateIn, OpenOut, ReadIn, WriteIn, WriteOut, Kstatfs, ReleaseIn, FlushIn, FsyncIn, GetxattrIn);
        same!(LkIn, AccessIn, InitOut, InterruptIn, BmapIn, IoctlIn, FallocateIn, LseekIn, CopyFileRangeIn, Dirent);
    }

    #[test]
    fn offsets_agree_with_fuse_backend_rs() {
        macro_rules! same {
            ($($name:ident . $field:ident),*) => {
                $(assert_eq!(offset_of!($name, $field), offset_of!(theirs::$name, $field), concat!(stringify!($name), ".", stringify!($field)));)*
            };
        }
        same!(InHeader.unique, InHeader.nodeid, InHeader.uid, InHeader.pid, Attr.mode, Attr.blksize, EntryOut.attr, AttrOut.attr);
        same!(SetattrIn.mode, SetattrIn.size, WriteIn.lock_owner, WriteIn.flags, ReadIn.size, InitOut.max_pages, InitOut.max_write);
    }

    #[test]
    fn flags_agree_with_fuse_backend_rs() {
        use theirs::FsOptions as F;
        let pairs = [
            (init_flags::ASYNC_READ, F::ASYNC_READ),
            (init_flags::ATOMIC_O_TRUNC, F::ATOMIC_O_TRUNC),
            (init_flags::BIG_WRITES, F::BIG_WRITES),
            (init_flags::AUTO_INVAL_DATA, F::AUTO_INVAL_DATA),
            (init_flags::DO_READDIRPLUS, F::DO_READDIRPLUS),
            (init_flags::READDIRPLUS_AUTO, F::READDIRPLUS_AUTO),
            (init_flags::ASYNC_DIO, F::ASYNC_DIO),
            (init_flags::WRITEBACK_CACHE, F::WRITEBACK_CACHE),
            (init_flags::PARALLEL_DIROPS, F::PARALLEL_DIROPS),
            (init_flags::MAX_PAGES, F::MAX_PAGES),
            (init_flags::SUBMOUNTS, F::SUBMOUNTS),
            (init_flags::INIT_EXT, F::INIT_EXT),
            (init_flags::EXPORT_SUPPORT, F::EXPORT_SUPPORT),
            (init_flags::HAS_IOCTL_DIR, F::HAS_IOCTL_DIR),
            (init_flags::NO_OPEN_SUPPORT, F::ZERO_MESSAGE_OPEN),
            (init_flags::NO_OPENDIR_SUPPORT, F::ZERO_MESSAGE_OPENDIR),
            (init_flags::CACHE_SYMLINKS, F::CACHE_SYMLINKS),
            (init_flags::EXPLICIT_INVAL_DATA, F::EXPLICIT_INVAL_DATA),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs.bits());
        }
    }
}
