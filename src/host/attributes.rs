//! Attributes of a file as the guest sees them. Does not know how requests and replies encode them.

use std::time::Duration;

use rustix::fs::{StatxFlags, StatxTimestamp};

use super::rights::Translation;
use crate::sys::stat::{self, Statx};
use crate::types::{GuestGid, GuestUid};

/// A point in time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, less than a second.
    pub nsec: u32,
}

impl From<&StatxTimestamp> for Timestamp {
    fn from(t: &StatxTimestamp) -> Timestamp {
        Timestamp { sec: t.tv_sec, nsec: t.tv_nsec }
    }
}

/// A file's attributes, its inode number and owner as the guest knows them. Device numbers are major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attributes {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub block_size: u32,
    /// Type and permission bits.
    pub mode: u16,
    pub links: u32,
    pub uid: GuestUid,
    pub gid: GuestGid,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    /// The device that a device file stands for.
    pub rdev: (u32, u32),
    /// The device that the file is on.
    pub dev: (u32, u32),
    /// STATX_ bits of the fields above that are valid; basic ones and the birth time only.
    pub mask: u32,
    /// STATX_ATTR_ bits, and which of them the file system supports.
    pub flags: u64,
    pub flags_mask: u64,
    /// The root of a mount that is announced to the guest.
    pub is_submount: bool,
}

impl Attributes {
    /// Attributes of the file that `st` describes, shown with the inode number `ino`.
    pub(super) fn new(st: &Statx, ino: u64, is_submount: bool, ids: &Translation) -> Attributes {
        let (uid, gid) = stat::owner(st);
        Attributes {
            ino,
            size: st.stx_size,
            blocks: st.stx_blocks,
            block_size: st.stx_blksize,
            mode: st.stx_mode,
            links: st.stx_nlink,
            uid: ids.guest_uid(uid),
            gid: ids.guest_gid(gid),
            atime: (&st.stx_atime).into(),
            mtime: (&st.stx_mtime).into(),
            ctime: (&st.stx_ctime).into(),
            btime: (&st.stx_btime).into(),
            rdev: (st.stx_rdev_major, st.stx_rdev_minor),
            dev: (st.stx_dev_major, st.stx_dev_minor),
            mask: st.stx_mask & (StatxFlags::BASIC_STATS | StatxFlags::BTIME).bits(),
            flags: st.stx_attributes.bits(),
            flags_mask: st.stx_attributes_mask.bits(),
            is_submount,
        }
    }
}

/// Attributes, and how long the guest may cache them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheableAttributes {
    /// The attributes.
    pub attributes: Attributes,
    /// Attribute timeout.
    pub timeout: Duration,
}
