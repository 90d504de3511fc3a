//! Request extensions (FUSE 7.38): blocks behind the arguments, each with its length and type.

use super::abi::{EXT_GROUPS, ExtHeader};
use super::cursor::Cursor;
use crate::types::{Errno, GuestGid};

/// The group that a create needs beside the caller's own: that of the parent directory, when the
/// caller is a member of it. Linux sends at most this one (`fs/fuse/dir.c`).
pub type SupplementaryGroup = Option<GuestGid>;

/// Reads the supplementary group out of a request's extension area; other extensions are passed over.
/// EINVAL where a block's length is not possible.
pub fn supplementary_group(area: &[u8]) -> Result<SupplementaryGroup, Errno> {
    let mut cursor = Cursor::new(area);
    let mut group = None;
    while !cursor.rest().is_empty() {
        let header: ExtHeader = cursor.take()?;
        let body_len = (header.size as usize).checked_sub(size_of::<ExtHeader>()).ok_or(Errno::EINVAL)?;
        let mut body = Cursor::new(cursor.take_bytes(body_len)?);
        if header.kind == EXT_GROUPS {
            let count: u32 = body.take()?;
            if count > 1 {
                return Err(Errno::EINVAL);
            }
            if count == 1 {
                group = Some(GuestGid(body.take()?));
            }
        }
    }
    Ok(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(size: u32, kind: u32, words: &[u32]) -> Vec<u8> {
        [size, kind].iter().chain(words).flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn one_group_is_read_and_impossible_lengths_are_refused() {
        assert_eq!(supplementary_group(&[]), Ok(None));
        assert_eq!(supplementary_group(&block(16, EXT_GROUPS, &[1, 77])), Ok(Some(GuestGid(77))));
        let two = [block(16, 3, &[0, 0]), block(16, EXT_GROUPS, &[1, 5])].concat();
        assert_eq!(supplementary_group(&two), Ok(Some(GuestGid(5))));
        assert_eq!(supplementary_group(&block(4, EXT_GROUPS, &[1, 5])), Err(Errno::EINVAL));
        assert_eq!(supplementary_group(&block(4096, EXT_GROUPS, &[1, 5])), Err(Errno::EINVAL));
        assert_eq!(supplementary_group(&block(16, EXT_GROUPS, &[2, 5])), Err(Errno::EINVAL));
    }
}
