//! Results of the host's operations as the protocol's structures. Knows neither requests nor where a reply is written.

use std::time::Duration;

use crate::fuse::abi::{ATTR_SUBMOUNT, Attr, AttrOut, EntryOut, Kstatfs, LkIn, LkOut, OpenOut, Statx, StatxOut, SxTime, open_flags};
use crate::host::{Attributes, CacheableAttributes, HeldLock, Lookup, NodeEntry, Opened, Timestamp};
use crate::sys::lock::LockKind;
use crate::sys::stat::StatVfs;

/// A device number as the guest's kernel packs it into 32 bits (new_encode_dev of linux/kdev_t.h).
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The major and minor numbers of a packed device number.
pub(super) fn decode_device(packed: u32) -> (u32, u32) {
    ((packed & 0xf_ff00) >> 8, (packed & 0xff) | ((packed >> 12) & 0xf_ff00))
}

fn attr(a: &Attributes) -> Attr {
    Attr {
        ino: a.ino,
        size: a.size,
        blocks: a.blocks,
        atime: a.atime.sec.cast_unsigned(),
        mtime: a.mtime.sec.cast_unsigned(),
        ctime: a.ctime.sec.cast_unsigned(),
        atimensec: a.atime.nsec,
        mtimensec: a.mtime.nsec,
        ctimensec: a.ctime.nsec,
        mode: u32::from(a.mode),
        nlink: a.links,
        uid: a.uid.0,
        gid: a.gid.0,
        rdev: encode_device(a.rdev),
        blksize: a.block_size,
        flags: if a.is_submount { ATTR_SUBMOUNT } else { 0 },
    }
}

/// The reply of GETATTR and SETATTR.
pub(super) fn attr_out(got: &CacheableAttributes) -> AttrOut {
    let valid = got.timeout;
    AttrOut { attr_valid: valid.as_secs(), attr_valid_nsec: valid.subsec_nanos(), attr: attr(&got.attributes), ..AttrOut::default() }
}

/// The reply of STATX.
pub(super) fn statx_out(got: &CacheableAttributes) -> StatxOut {
    let (a, valid) = (&got.attributes, got.timeout);
    let time = |t: Timestamp| SxTime { sec: t.sec, nsec: t.nsec, reserved: 0 };
    let stat = Statx {
        mask: a.mask,
        blksize: a.block_size,
        attributes: a.flags,
        nlink: a.links,
        uid: a.uid.0,
        gid: a.gid.0,
        mode: a.mode,
        ino: a.ino,
        size: a.size,
        blocks: a.blocks,
        attributes_mask: a.flags_mask,
        atime: time(a.atime),
        btime: time(a.btime),
        ctime: time(a.ctime),
        mtime: time(a.mtime),
        rdev_major: a.rdev.0,
        rdev_minor: a.rdev.1,
        dev_major: a.dev.0,
        dev_minor: a.dev.1,
        ..Statx::default()
    };
    StatxOut { attr_valid: valid.as_secs(), attr_valid_nsec: valid.subsec_nanos(), stat, ..StatxOut::default() }
}

/// The reply of what makes or finds a name.
pub(super) fn entry_out(entry: &NodeEntry) -> EntryOut {
    EntryOut {
        nodeid: entry.node.0,
        generation: entry.generation,
        attr_valid: entry.attr_timeout.as_secs(),
        attr_valid_nsec: entry.attr_timeout.subsec_nanos(),
        attr: attr(&entry.attributes),
        ..negative_out(entry.entry_timeout)
    }
}

/// A negative entry: node 0.
fn negative_out(timeout: Duration) -> EntryOut {
    EntryOut { entry_valid: timeout.as_secs(), entry_valid_nsec: timeout.subsec_nanos(), ..EntryOut::default() }
}

/// The reply of LOOKUP.
pub(super) fn lookup_out(lookup: &Lookup) -> EntryOut {
    match lookup {
        Lookup::Found(entry) => entry_out(entry),
        Lookup::Absent(timeout) => negative_out(*timeout),
    }
}

/// The reply of OPEN and OPENDIR.
pub(super) fn open_out(opened: &Opened) -> OpenOut {
    let caching = opened.caching;
    let flags = [
        (caching.bypass, open_flags::DIRECT_IO | open_flags::PARALLEL_DIRECT_WRITES),
        (caching.keep, open_flags::KEEP_CACHE),
        (caching.entries, open_flags::CACHE_DIR),
        (!opened.needs_flush, open_flags::NOFLUSH),
    ];
    let open_flags = flags.into_iter().filter(|(is_on, _)| *is_on).fold(0, |flags, (_, more)| flags | more);
    OpenOut { fh: opened.handle.0, open_flags, backing_id: 0 }
}

/// The reply of CREATE and TMPFILE.
pub(super) fn created_out((entry, opened): &(NodeEntry, Opened)) -> (EntryOut, OpenOut) {
    (entry_out(entry), open_out(opened))
}

/// The reply of GETLK to `lk`: the conflicting lock, or F_UNLCK.
pub(super) fn lk_out(lk: &LkIn, conflict: Option<HeldLock>) -> LkOut {
    match conflict {
        None => LkOut { start: lk.start, end: lk.end, kind: libc::F_UNLCK.cast_unsigned(), pid: 0 },
        Some(held) => {
            let kind = if held.kind == LockKind::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
            LkOut { start: held.span.start, end: held.span.end, kind: kind.cast_unsigned(), pid: held.pid }
        }
    }
}

/// The reply of STATFS.
pub(super) fn kstatfs(st: &StatVfs) -> Kstatfs {
    let bits32 = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Kstatfs {
        blocks: st.f_blocks,
        bfree: st.f_bfree,
        bavail: st.f_bavail,
        files: st.f_files,
        ffree: st.f_ffree,
        bsize: bits32(st.f_bsize),
        namelen: bits32(st.f_namemax),
        frsize: bits32(st.f_frsize),
        ..Kstatfs::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_packing() {
        for device in [(0, 0), (8, 1), (259, 0x12345), (0xfff, 0xf_ffff)] {
            assert_eq!(decode_device(encode_device(device)), device);
        }
    }
}
