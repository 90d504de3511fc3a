//! What statx says, as the protocol's structures.

use crate::fuse::abi::{Attr, Statx as WireStatx, SxTime};
use crate::host::rights::id_map::Translation;
use crate::sys::stat::{self, Statx};

/// A device number as the guest's kernel packs it into 32 bits (new_encode_dev of linux/kdev_t.h).
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The major and minor numbers of a packed device number.
pub fn decode_device(packed: u32) -> (u32, u32) {
    ((packed & 0xf_ff00) >> 8, (packed & 0xff) | ((packed >> 12) & 0xf_ff00))
}

/// `fuse_attr` of a file that the guest knows by the inode number `ino`, its owner as the guest knows it.
pub fn attr(st: &Statx, ino: u64, ids: &Translation) -> Attr {
    let (uid, gid) = stat::owner(st);
    Attr {
        ino,
        size: st.stx_size,
        blocks: st.stx_blocks,
        atime: st.stx_atime.tv_sec.cast_unsigned(),
        mtime: st.stx_mtime.tv_sec.cast_unsigned(),
        ctime: st.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: st.stx_atime.tv_nsec,
        mtimensec: st.stx_mtime.tv_nsec,
        ctimensec: st.stx_ctime.tv_nsec,
        mode: u32::from(st.stx_mode),
        nlink: st.stx_nlink,
        uid: ids.guest_uid(uid).0,
        gid: ids.guest_gid(gid).0,
        rdev: encode_device(st.stx_rdev_major, st.stx_rdev_minor),
        blksize: st.stx_blksize,
        flags: 0,
    }
}

/// `fuse_statx` of a file that the guest knows by the inode number `ino`, its owner as the guest knows it. Only fields that the
/// protocol carries stay in the mask.
pub fn statx(st: &Statx, ino: u64, ids: &Translation) -> WireStatx {
    let (uid, gid) = stat::owner(st);
    let time = |t: &rustix::fs::StatxTimestamp| SxTime { sec: t.tv_sec, nsec: t.tv_nsec, reserved: 0 };
    let carried = (rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME).bits();
    WireStatx {
        mask: st.stx_mask & carried,
        blksize: st.stx_blksize,
        attributes: st.stx_attributes.bits(),
        nlink: st.stx_nlink,
        uid: ids.guest_uid(uid).0,
        gid: ids.guest_gid(gid).0,
        mode: st.stx_mode,
        ino,
        size: st.stx_size,
        blocks: st.stx_blocks,
        attributes_mask: st.stx_attributes_mask.bits(),
        atime: time(&st.stx_atime),
        btime: time(&st.stx_btime),
        ctime: time(&st.stx_ctime),
        mtime: time(&st.stx_mtime),
        rdev_major: st.stx_rdev_major,
        rdev_minor: st.stx_rdev_minor,
        dev_major: st.stx_dev_major,
        dev_minor: st.stx_dev_minor,
        ..WireStatx::default()
    }
}

/// S_IFMT bits of a file.
pub fn kind(st: &Statx) -> u32 {
    u32::from(st.stx_mode) & libc::S_IFMT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_packing() {
        for (major, minor) in [(0, 0), (8, 1), (259, 0x12345), (0xfff, 0xf_ffff)] {
            assert_eq!(decode_device(encode_device(major, minor)), (major, minor));
        }
    }
}
