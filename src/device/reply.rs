//! The bytes of a reply in guest memory: used.len always equals the length in the reply's header, because newer guests
//! turn a difference into EIO (`fs/fuse/virtio_fs.c`). Does not know requests or who answers them.

use zerocopy::IntoBytes;

use crate::fuse::abi::{OUT_HEADER_LEN, OutHeader};
use crate::types::{Errno, Unique};
use crate::virtqueue::Chain;

/// Writes a reply of `first` and `second`, one behind the other: bytes used. The caller checked that there is room, and that
/// the length fits in 32 bits.
pub(super) fn write_parts(chain: &mut Chain, unique: Unique, first: &[u8], second: &[u8]) -> u32 {
    write(chain, unique, 0, [first, second], 0)
}

/// Writes an error: bytes used.
pub(super) fn write_error(chain: &mut Chain, unique: Unique, errno: Errno) -> u32 {
    write(chain, unique, -errno.raw(), [&[], &[]], 0)
}

/// Writes the header of a reply whose payload, `filled_len` bytes, is behind it already: bytes used.
pub(super) fn write_filled(chain: &mut Chain, unique: Unique, filled_len: usize) -> u32 {
    write(chain, unique, 0, [&[], &[]], filled_len)
}

/// Writes header and payload in one pass, and marks both and what was filled as dirty. Returns 0 if the reply buffers have no
/// room for a header.
fn write(chain: &mut Chain, unique: Unique, error: i32, payload: [&[u8]; 2], filled_len: usize) -> u32 {
    if chain.writable_bytes() < OUT_HEADER_LEN as u64 {
        return 0;
    }
    let whole_len = OUT_HEADER_LEN + payload[0].len() + payload[1].len() + filled_len;
    let len = u32::try_from(whole_len).unwrap_or(u32::MAX);
    let mut writer = chain.writable_from(0);
    writer.write(OutHeader { len, error, unique: unique.0 }.as_bytes());
    for part in payload {
        writer.write(part);
    }
    chain.writable().mark_dirty(0, whole_len);
    len
}
