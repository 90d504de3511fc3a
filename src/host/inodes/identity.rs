//! What tells one file of the host from another: statx fields and file handles. Does not know nodes.

pub(in crate::host) use crate::state::FileKey;
use crate::state::InodeIdentity;
use crate::sys::file_handle::Handle;
use crate::sys::stat::{self, Statx};

impl FileKey {
    /// The key of the file that `st` describes.
    pub fn of(st: &Statx) -> FileKey {
        FileKey { device: device_of(st), ino: st.stx_ino, mount_id: st.stx_mnt_id }
    }

    /// The key in a record.
    pub fn of_record(identity: &InodeIdentity) -> FileKey {
        FileKey { device: identity.device, ino: identity.ino, mount_id: identity.mount_id }
    }
}

/// Device: major in the upper half, minor in the lower.
pub(in crate::host) fn device_of(st: &Statx) -> u64 {
    stat::device(st)
}

/// S_IFMT bits.
pub(in crate::host) fn kind_of(st: &Statx) -> u32 {
    u32::from(st.stx_mode) & libc::S_IFMT
}

/// Birth time in nanoseconds; 0 where the file system has none.
pub(super) fn birth_ns(st: &Statx) -> u64 {
    stat::birth_ns(st)
}

/// The identity of a file of which `st` and `handle` were taken through one descriptor.
pub(super) fn identity_of(st: &Statx, handle: Option<Handle>) -> InodeIdentity {
    let key = FileKey::of(st);
    let (birth_ns, kind) = (birth_ns(st), kind_of(st));
    InodeIdentity { device: key.device, ino: key.ino, mount_id: key.mount_id, birth_ns, kind, type_seen: true, handle }
}

/// The inode number in a handle, for the file systems whose encoding is known (linux/exportfs.h). With it a handle and a statx
/// of one name can be compared without another system call.
pub(super) fn ino_in_handle(handle: &Handle) -> Option<u64> {
    let u32_at = |at: usize| handle.bytes[at..at + 4].try_into().ok().map(u32::from_ne_bytes).map(u64::from);
    let u64_at = |at: usize| handle.bytes[at..at + 8].try_into().ok().map(u64::from_ne_bytes);
    match (handle.kind, handle.len) {
        // FILEID_INO32_GEN: ext4 and others.
        (1, 8) => u32_at(0),
        // tmpfs: generation, then the number in two halves.
        (1, 12) => Some(u32_at(4)? | u32_at(8)? << 32),
        // XFS with 64-bit numbers.
        (0x81, 12..) => u64_at(0),
        // btrfs: FILEID_BTRFS_WITHOUT_PARENT.
        (0x4d, 20) => u64_at(0),
        _ => None,
    }
}
