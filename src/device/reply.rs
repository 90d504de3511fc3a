//! The bytes of a reply in guest memory: used.len always equals the length in the reply's header, because newer guests
//! turn a difference into EIO (`fs/fuse/virtio_fs.c`). Does not know requests or who answers them.

use zerocopy::IntoBytes;

use crate::fuse::abi::{OUT_HEADER_LEN, OutHeader};
use crate::types::{Errno, Unique};
use crate::virtqueue::Chain;

/// Writes a reply of `first` and `second`, one behind the other: bytes used. The caller checked that there is room, and that
/// the length fits in 32 bits.
pub(super) fn write_parts(chain: &mut Chain, unique: Unique, first: &[u8], second: &[u8]) -> u32 {
    let mut writable = chain.writable();
    let skip = OUT_HEADER_LEN as u64;
    writable.copy_from(skip, first);
    writable.copy_from(skip + first.len() as u64, second);
    write_header(chain, unique, 0, first.len() + second.len())
}

/// Writes an error: bytes used.
pub(super) fn write_error(chain: &mut Chain, unique: Unique, errno: Errno) -> u32 {
    write_header(chain, unique, -errno.raw(), 0)
}

/// Writes the header of a reply whose payload, `payload_len` bytes, the kernel has put behind it: bytes used.
pub(super) fn write_filled(chain: &mut Chain, unique: Unique, payload_len: usize) -> u32 {
    chain.writable().mark_dirty(OUT_HEADER_LEN as u64, payload_len);
    write_header(chain, unique, 0, payload_len)
}

/// Returns 0 if the reply buffers have no room for a header.
fn write_header(chain: &mut Chain, unique: Unique, error: i32, payload_len: usize) -> u32 {
    if chain.writable_bytes() < OUT_HEADER_LEN as u64 {
        return 0;
    }
    let len = u32::try_from(OUT_HEADER_LEN + payload_len).unwrap_or(u32::MAX);
    chain.writable().copy_from(0, OutHeader { len, error, unique: unique.0 }.as_bytes());
    len
}
