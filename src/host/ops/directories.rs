//! OPENDIR, READDIR, READDIRPLUS and RELEASEDIR.

use super::lookup::NodeEntry;
use super::open::Opened;
use crate::host::caching::OpenCaching;
use crate::host::inodes::FileKey;
use crate::host::request_context::RequestContext;
use crate::host::share::Share;
use crate::state::RequestRecord;
use crate::sys::dirent::HostEntry;
use crate::types::{Errno, FileHandle, NodeId};

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Directory offset of the entry that follows.
    pub next_offset: u64,
    /// File type as in `d_type` (man readdir(3)).
    pub kind: u32,
    /// The name, without NUL.
    pub name: &'a [u8],
}

/// Takes the entries of a directory, as many as there is room for.
pub trait Listing {
    /// Whether there is room for an entry with a name of `name_len` bytes.
    fn has_room(&self, name_len: usize) -> bool;

    /// Adds an entry that there is room for, with the lookup of its node if it was looked up.
    fn push(&mut self, entry: &DirectoryEntry<'_>, looked_up: Option<&NodeEntry>);

    /// Whether no entry was added.
    fn is_empty(&self) -> bool;
}

impl Share {
    /// OPENDIR. ENOTDIR where the node is no directory; ENOSYS where the guest need not send OPENDIR; ESTALE where the directory
    /// is gone; ENFILE where too many files are open.
    pub fn opendir(&self, node: NodeId, context: &RequestContext<'_>) -> Result<Opened, Errno> {
        if self.session.has_no_opendir() {
            return Err(Errno::ENOSYS);
        }
        if self.inodes.kind(node)? != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        let handle = match self.opened_before(context) {
            Some(handle) => handle,
            None => {
                let file = self.inodes.open_node(node, libc::O_RDONLY | libc::O_DIRECTORY)?;
                self.files.insert(file, node, libc::O_DIRECTORY, context.record, || self.session.has_ended())?
            }
        };
        self.directories.insert(handle);
        let by_policy = self.policy.cache.of_directory();
        let is_unchanged = self.freshness.is_unchanged(node);
        let caching = OpenCaching { keep: by_policy.keep || is_unchanged, entries: by_policy.entries || is_unchanged, ..by_policy };
        Ok(Opened { handle, caching, needs_flush: true })
    }

    /// RELEASEDIR. EBADF for a file's handle, which has RELEASE.
    pub fn releasedir(&self, handle: FileHandle, context: &RequestContext<'_>) -> Result<(), Errno> {
        let released = self.directories.get(handle).and_then(|_| context.once(0, || self.files.remove(handle)));
        let _ = self.directories.remove(handle);
        match released {
            Err(Errno::EBADF) if context.is_repeated() => Ok(()),
            released => released,
        }
    }

    /// READDIR: entries from `offset` on, as many as `listing` takes; about `read_len` bytes of host entries are read for it.
    /// EINVAL where not even one fits; EBADF where no directory is open; the errno of getdents(2).
    pub fn readdir(&self, node: NodeId, handle: FileHandle, offset: u64, read_len: usize, listing: &mut impl Listing) -> Result<(), Errno> {
        let mut too_small = false;
        let within = self.key_of_directory(node);
        self.with_directory(node, handle, |file, stream| {
            stream.each(file, offset, read_len, |e| {
                let fits = listing.has_room(e.name.count_bytes());
                if fits {
                    listing.push(&self.listed(within, e), None);
                }
                too_small = !fits && listing.is_empty();
                fits
            })
        })?;
        // An empty reply is the end of the directory: a buffer that is too small for one entry must not look like it.
        if too_small { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// READDIRPLUS: as [`Share::readdir`], with each entry looked up and counted. An entry that is gone meanwhile is left out;
    /// one that cannot be looked up is listed without attributes. `record` names the last one that was counted.
    pub fn readdirplus(
        &self,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        read_len: usize,
        listing: &mut impl Listing,
        record: &RequestRecord,
    ) -> Result<(), Errno> {
        let mut too_small = false;
        let within = self.key_of_directory(node);
        self.with_directory(node, handle, |file, stream| {
            stream.each(file, offset, read_len, |e| {
                if !listing.has_room(e.name.count_bytes()) {
                    too_small = listing.is_empty();
                    return false;
                }
                let looked_up = match e.name.to_bytes() {
                    b"." | b".." => None,
                    _ => match self.look_up_at(node, file, e.name, record) {
                        Err(Errno::ENOENT) => return true,
                        looked_up => looked_up.ok(),
                    },
                };
                let mut entry = self.listed(within, e);
                // The inode number of a mount's root is that of another device in the guest.
                if let Some(found) = looked_up.as_ref().filter(|found| !found.attributes.is_submount) {
                    entry.ino = found.attributes.ino;
                }
                listing.push(&entry, looked_up.as_ref());
                true
            })
        })?;
        if too_small { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// The key of the directory `node`; the root's where the node is gone.
    fn key_of_directory(&self, node: NodeId) -> FileKey {
        self.inodes.identity(node).map_or_else(|_| self.inodes.root_key(), |identity| FileKey::of_record(&identity))
    }

    /// An entry of the directory `within`, taken to be on that one's device: the host reports no more of it.
    #[inline(always)]
    fn listed<'a>(&self, within: FileKey, e: &'a HostEntry<'_>) -> DirectoryEntry<'a> {
        let ino = self.inodes.number(&FileKey { ino: e.ino, ..within }, self.announces_submounts());
        DirectoryEntry { ino, next_offset: e.next_offset, kind: u32::from(e.kind), name: e.name.to_bytes() }
    }
}
