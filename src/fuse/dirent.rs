//! The directory entries of a reply: `fuse_dirent` of READDIR and `fuse_direntplus` of READDIRPLUS, piece by piece. Does not know
//! where the pieces are put, or how much room there is.

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{Dirent, EntryOut};

/// One directory entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Inode number.
    pub ino: u64,
    /// The directory offset of the next entry, at which the next READDIR continues.
    pub next_offset: u64,
    /// File type as in `d_type` (man readdir(3)).
    pub kind: u32,
    /// The name, without NUL, of at most 4 GiB.
    pub name: &'a [u8],
}

/// Bytes of a READDIR entry with a name of `name_len` bytes.
pub fn dirent_len(name_len: usize) -> usize {
    (size_of::<Dirent>() + name_len).next_multiple_of(PADDED)
}

/// Bytes of a READDIRPLUS entry with a name of `name_len` bytes.
pub fn direntplus_len(name_len: usize) -> usize {
    size_of::<EntryOut>() + dirent_len(name_len)
}

/// Entries are padded to a multiple of this.
const PADDED: usize = 8;

/// Calls `put` with the pieces of a READDIR entry, [`dirent_len`] bytes in all. Each piece has a multiple of 8 bytes.
#[inline(always)]
pub fn put_dirent(entry: &Entry<'_>, mut put: impl FnMut(&[u8])) {
    let namelen = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
    put(Dirent { ino: entry.ino, off: entry.next_offset, namelen, kind: entry.kind }.as_bytes());
    let (words, end) = entry.name.as_chunks::<PADDED>();
    put(words.as_flattened());
    if !end.is_empty() {
        let mut last = [0; PADDED];
        last[..end.len()].copy_from_slice(end);
        put(&last);
    }
}

/// Calls `put` with the pieces of a READDIRPLUS entry, [`direntplus_len`] bytes in all, as [`put_dirent`]. A node id of 0 means
/// that the entry was not looked up.
#[inline(always)]
pub fn put_direntplus(entry: &Entry<'_>, looked_up: &EntryOut, mut put: impl FnMut(&[u8])) {
    put(looked_up.as_bytes());
    put_dirent(entry, put);
}

/// The node id of the first READDIRPLUS entry of `reply`, and the bytes behind the entry. `None` where none is there as a whole.
pub fn first_direntplus(reply: &[u8]) -> Option<(u64, &[u8])> {
    let (entry, rest) = EntryOut::read_from_prefix(reply).ok()?;
    let (dirent, _) = Dirent::read_from_prefix(rest).ok()?;
    let name_len = usize::try_from(dirent.namelen).ok()?;
    Some((entry.nodeid, reply.get(direntplus_len(name_len)..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_eight_bytes_and_as_long_as_announced() {
        for len in 1..=255 {
            let name = vec![b'n'; len];
            let entry = Entry { ino: 1, next_offset: 2, kind: 8, name: &name };
            let (mut plain, mut plus) = (Vec::new(), Vec::new());
            put_dirent(&entry, |piece| {
                assert!(piece.len().is_multiple_of(8));
                plain.extend_from_slice(piece);
            });
            put_direntplus(&entry, &EntryOut { nodeid: 7, ..EntryOut::default() }, |piece| plus.extend_from_slice(piece));
            assert_eq!((plain.len(), plus.len()), (dirent_len(len), direntplus_len(len)));
            assert_eq!(&plus[128..], plain);
            assert_eq!((&plus[..8], &plain[16..24]), (7u64.as_bytes(), [len as u32, 8].as_bytes()));
            assert_eq!(&plain[24..24 + len], name);
            assert!(plain[24 + len..].iter().all(|byte| *byte == 0));
            let twice = [&plus[..], &plus[..]].concat();
            let (node, rest) = first_direntplus(&twice).unwrap();
            assert_eq!((node, rest), (7, &plus[..]));
            assert_eq!(first_direntplus(&plus[..plus.len() - 1]), None, "cut off");
        }
    }
}
