//! OPENDIR, READDIR, READDIRPLUS and RELEASEDIR.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fuse::abi::{ATTR_SUBMOUNT, EntryOut, OpenOut};
use crate::fuse::dirent::{self, Entry};
use crate::host::Share;
use crate::host::directories::stream::Directory;
use crate::host::inodes::table::FileKey;
use crate::sys::dirent::HostEntry;
use crate::types::{Errno, FileHandle, NodeId};

/// Bytes of a typical entry: on the host (name of 16 bytes), and as READDIRPLUS packs it.
const HOST_ENTRY_LEN: usize = 40;
const PLUS_ENTRY_LEN: usize = 168;

impl Share {
    /// The stream behind a directory handle, EBADF where there is none.
    pub(in crate::host) fn directory(&self, handle: FileHandle) -> Result<Arc<Mutex<Directory>>, Errno> {
        self.directories.read().get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// OPENDIR. ENOTDIR where the node is no directory; ENOSYS where the guest can do without.
    pub fn opendir(&self, node: NodeId) -> Result<OpenOut, Errno> {
        if self.has_no_opendir() {
            return Err(Errno::ENOSYS);
        }
        if self.kind(node)? != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        let file = self.open_node(node, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let handle = self.keep_open(file, node, libc::O_DIRECTORY)?;
        self.directories.write().insert(handle, Arc::default());
        Ok(OpenOut { fh: handle.0, open_flags: self.options.cache.directory_flags() | self.kept_directory_flags(node), backing_id: 0 })
    }

    /// RELEASEDIR. EBADF for a file's handle, which has RELEASE.
    pub fn releasedir(&self, handle: FileHandle) -> Result<(), Errno> {
        self.directories.write().remove(&handle).ok_or(Errno::EBADF)?;
        self.end_handle(handle)
    }

    /// READDIR: entries from `offset` on, in at most `size` bytes, appended to `reply`.
    pub fn readdir(&self, node: NodeId, handle: FileHandle, offset: u64, size: usize, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut too_small = false;
        let within = FileKey::of(&self.inodes.identity(node).unwrap_or(self.root));
        self.with_directory(node, handle, |file, directory| {
            directory.each(file, offset, size, |e| {
                let fits = dirent::push_dirent(reply, size, &self.wire_entry(within, e));
                too_small = !fits && reply.is_empty();
                fits
            })
        })?;
        // An empty reply means the end: a buffer too small for one entry must not look like it.
        if too_small { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// READDIRPLUS: as READDIR, with each entry looked up. An entry that vanished meanwhile is left out; one
    /// that cannot be looked up is listed without attributes.
    pub fn readdirplus(&self, node: NodeId, handle: FileHandle, offset: u64, size: usize, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut too_small = false;
        let within = FileKey::of(&self.inodes.identity(node).unwrap_or(self.root));
        self.with_directory(node, handle, |file, directory| {
            directory.each(file, offset, size / PLUS_ENTRY_LEN * HOST_ENTRY_LEN, |e| {
                if reply.len() + dirent::direntplus_len(e.name.count_bytes()) > size {
                    too_small = reply.is_empty();
                    return false;
                }
                let looked_up = match e.name.to_bytes() {
                    b"." | b".." => EntryOut::default(),
                    _ => match self.look_up_at(node, file, e.name) {
                        Ok(entry) => entry,
                        Err(Errno::ENOENT) => return true,
                        Err(_) => EntryOut::default(),
                    },
                };
                let mut listed = self.wire_entry(within, e);
                // The number of a mount's root is that of another device in the guest.
                if looked_up.nodeid != 0 && looked_up.attr.flags & ATTR_SUBMOUNT == 0 {
                    listed.ino = looked_up.attr.ino;
                }
                dirent::push_direntplus(reply, size, &listed, &looked_up)
            })
        })?;
        if too_small { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Takes back the lookups of a listing that [`Share::readdirplus`] made and that did not reach the guest.
    pub fn forget_listed(&self, reply: &[u8]) {
        for entry in dirent::looked_up(reply) {
            self.forget(NodeId(entry.nodeid), 1);
        }
    }

    /// An entry of the directory `within`, taken to be on that one's device: the host tells no more of it.
    fn wire_entry<'a>(&self, within: FileKey, e: &'a HostEntry<'_>) -> Entry<'a> {
        let ino = self.number_of(&FileKey { ino: e.ino, ..within });
        Entry { ino, next_offset: e.next_offset, kind: u32::from(e.kind), name: e.name.to_bytes() }
    }
}
