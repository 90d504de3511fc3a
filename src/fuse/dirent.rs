//! The directory entries of a reply: `fuse_dirent` of READDIR and `fuse_direntplus` of READDIRPLUS, in at most as many bytes as
//! the guest has room for.

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
    /// The name, without NUL.
    pub name: &'a [u8],
}

/// Bytes of a READDIR entry with a name of `name_len` bytes.
pub fn dirent_len(name_len: usize) -> usize {
    (size_of::<Dirent>() + name_len).next_multiple_of(8)
}

/// Bytes of a READDIRPLUS entry with a name of `name_len` bytes.
pub fn direntplus_len(name_len: usize) -> usize {
    size_of::<EntryOut>() + dirent_len(name_len)
}

/// Appends a READDIR entry to `reply`, which may have at most `len_max` bytes then. False, and nothing appended, where the entry
/// does not fit, or where its name is longer than 4 GiB.
pub fn push_dirent(reply: &mut Vec<u8>, len_max: usize, entry: &Entry<'_>) -> bool {
    let Ok(namelen) = u32::try_from(entry.name.len()) else { return false };
    if reply.len() + dirent_len(entry.name.len()) > len_max {
        return false;
    }
    let header = Dirent { ino: entry.ino, off: entry.next_offset, namelen, kind: entry.kind };
    reply.extend_from_slice(header.as_bytes());
    reply.extend_from_slice(entry.name);
    reply.resize(reply.len().next_multiple_of(8), 0);
    true
}

/// Appends a READDIRPLUS entry as [`push_dirent`]. A node id of 0 means that the entry was not looked up.
pub fn push_direntplus(reply: &mut Vec<u8>, len_max: usize, entry: &Entry<'_>, looked_up: &EntryOut) -> bool {
    if reply.len() + direntplus_len(entry.name.len()) > len_max {
        return false;
    }
    reply.extend_from_slice(looked_up.as_bytes());
    push_dirent(reply, len_max, entry)
}

/// The nodes of the entries of a READDIRPLUS reply, in order.
pub fn looked_up(mut reply: &[u8]) -> impl Iterator<Item = EntryOut> {
    std::iter::from_fn(move || {
        let (entry, rest) = EntryOut::read_from_prefix(reply).ok()?;
        let (header, _) = Dirent::read_from_prefix(rest).ok()?;
        reply = rest.get(dirent_len(header.namelen as usize)..)?;
        Some(entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_eight_bytes_and_never_exceed_the_limit() {
        let entry = Entry { ino: 1, next_offset: 2, kind: 8, name: b"abc" };
        let mut reply = Vec::new();
        assert!(push_dirent(&mut reply, 64, &entry));
        assert_eq!(reply.len(), 32);
        assert!(push_dirent(&mut reply, 64, &entry));
        assert!(!push_dirent(&mut reply, 64, &entry));
        assert_eq!(reply.len(), 64);
        assert!(!push_direntplus(&mut reply, 64 + 159, &entry, &EntryOut::default()));
        assert!(push_direntplus(&mut reply, 64 + 160, &entry, &EntryOut::default()));
        assert_eq!(reply.len(), 224);
        let two = [EntryOut { nodeid: 7, ..EntryOut::default() }, EntryOut { nodeid: 8, ..EntryOut::default() }];
        let mut reply = Vec::new();
        assert!(two.iter().all(|looked_up| push_direntplus(&mut reply, 1024, &entry, looked_up)));
        assert_eq!(looked_up(&reply).map(|entry| entry.nodeid).collect::<Vec<_>>(), [7, 8]);
    }
}
