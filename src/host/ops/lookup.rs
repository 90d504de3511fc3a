//! LOOKUP and FORGET: from a name to a node, which the guest counts.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::host::attributes::Attributes;
use crate::host::features::Feature;
use crate::host::inodes::{FileKey, kind_of, open_path};
use crate::host::request_context::{Left, RequestContext};
use crate::host::share::Share;
use crate::state::{InodeIdentity, RequestRecord};
use crate::sys::failpoint::{crash_point, fault_point};
use crate::sys::open;
use crate::sys::stat::{self, Statx};
use crate::types::{Errno, NodeId};

/// Directories above one another that LOOKUP of ".." goes through: as many as a path can name (PATH_MAX).
const DEPTH_MAX: usize = 2048;

/// A node that was looked up; the guest has one lookup of it more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeEntry {
    /// The node.
    pub node: NodeId,
    /// The generation that goes with its id.
    pub generation: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// How long the guest may cache that the name leads to the node.
    pub entry_timeout: Duration,
    /// How long the guest may cache the attributes.
    pub attr_timeout: Duration,
}

/// Result of a LOOKUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// There is such a file.
    Found(NodeEntry),
    /// There is none, which the guest may cache for this time: a negative entry.
    Absent(Duration),
}

impl Share {
    /// LOOKUP: the file `name` in `parent`, counted once more. "." is the node itself and ".." its parent, as an NFS server in
    /// the guest looks them up; no other operation takes these names.
    ///
    /// # Errors
    /// ENOENT where there is no such file and the guest may not cache that; ENOTDIR for ".." of a file; ESTALE where the parent
    /// is gone, or moved out of the share; and for a file that the guest does not know, ENFILE where there are too many nodes
    /// or descriptors, and EOPNOTSUPP where file handles are mandatory and it has none.
    pub fn lookup(&self, parent: NodeId, name: &CStr, context: &RequestContext<'_>) -> Result<Lookup, Errno> {
        fault_point!(name);
        self.take_lookup_back(context);
        match name.to_bytes() {
            b"." => return self.look_up_self(parent, context.record).map(Lookup::Found),
            b".." => return self.look_up_parent(parent, context.record).map(Lookup::Found),
            _ => {}
        }
        match self.look_up_at(parent, self.inodes.path_fd(parent)?.as_fd(), name, context.record) {
            Err(Errno::ENOENT) => self.negative_entry(parent),
            found => found.map(Lookup::Found),
        }
    }

    /// Looks `name` up in the directory `within`, which is open behind `parent`, and counts the lookup for the request with `record`:
    /// one system call for a file that the guest knows, where files are not held (`inodes/holding.rs`).
    ///
    /// # Errors
    /// The errno of statx(2); for a file that the guest does not know, ENFILE where there are too many nodes or descriptors, and
    /// EOPNOTSUPP where file handles are mandatory and it has none.
    pub(in crate::host) fn look_up_at(
        &self,
        within: NodeId,
        parent: BorrowedFd<'_>,
        name: &CStr,
        record: &RequestRecord,
    ) -> Result<NodeEntry, Errno> {
        if self.inodes.holds_files() {
            let fd = open_path(parent, name)?;
            let entry = self.look_up_open(within, fd.as_fd(), record)?;
            self.inodes.hold(entry.node, fd);
            return Ok(entry);
        }
        let mut room = stat::Room::empty();
        let st = room.at(parent, name)?;
        if let Some(node) = self.inodes.count_lookup(st) {
            record.note_counted(node);
            return Ok(self.entry(within, node, st));
        }
        let (node, st) = self.inodes.add_named(parent, name, *st)?;
        record.note_counted(node);
        Ok(self.entry(within, node, &st))
    }

    /// As [`Share::look_up_at`], for a file that was just opened: `fd` is the file itself.
    pub(in crate::host) fn look_up_open(&self, within: NodeId, fd: BorrowedFd<'_>, record: &RequestRecord) -> Result<NodeEntry, Errno> {
        let mut room = stat::Room::empty();
        let st = room.of(fd)?;
        if let Some(node) = self.inodes.count_lookup(st) {
            record.note_counted(node);
            return Ok(self.entry(within, node, st));
        }
        let (node, st) = self.inodes.add_open(fd, *st)?;
        record.note_counted(node);
        Ok(self.entry(within, node, &st))
    }

    /// The entry of `node`, found in the directory `within`.
    pub(in crate::host) fn entry(&self, within: NodeId, node: NodeId, st: &Statx) -> NodeEntry {
        let attributes = self.attributes(st);
        if kind_of(st) == libc::S_IFDIR {
            self.freshness.watch_directory(node);
        }
        NodeEntry {
            node,
            generation: self.inodes.generation(node),
            attributes,
            entry_timeout: self.freshness.entry_timeouts(within).entry,
            attr_timeout: self.freshness.attr_timeout(node, st),
        }
    }

    /// A negative entry in `parent`; ENOENT where the guest may not cache one.
    fn negative_entry(&self, parent: NodeId) -> Result<Lookup, Errno> {
        let timeout = self.freshness.entry_timeouts(parent).negative;
        if timeout.is_zero() { Err(Errno::ENOENT) } else { Ok(Lookup::Absent(timeout)) }
    }

    /// LOOKUP of ".": the node itself, also one that the guest forgot.
    fn look_up_self(&self, node: NodeId, record: &RequestRecord) -> Result<NodeEntry, Errno> {
        let st = self.inodes.look_up_node(node)?;
        record.note_counted(node);
        Ok(self.entry(node, node, &st))
    }

    /// LOOKUP of "..": a directory's parent; the root is its own.
    fn look_up_parent(&self, node: NodeId, record: &RequestRecord) -> Result<NodeEntry, Errno> {
        if node == NodeId::ROOT {
            return self.look_up_self(node, record);
        }
        if self.inodes.kind(node)? != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        let parent = open::parent(self.inodes.path_fd(node)?.as_fd())?;
        self.check_below_root(parent.as_fd())?;
        let entry = self.look_up_open(NodeId::ROOT, parent.as_fd(), record)?;
        // Linux gives the root of an announced mount no generation (fs/fuse/inode.c, fuse_fill_super_submount). With another
        // one it would take the root for stale, and with it the whole mount.
        Ok(NodeEntry { generation: if entry.attributes.is_submount { 0 } else { entry.generation }, ..entry })
    }

    /// Goes up from `directory` to the share's root; ESTALE where it is not above.
    fn check_below_root(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let root = self.inodes.root_key();
        let mut key = FileKey::of(&stat::of(directory)?);
        let mut above = None;
        for _ in 0..DEPTH_MAX {
            if key == root {
                return Ok(());
            }
            let next = open::parent(above.as_ref().map_or(directory, OwnedFd::as_fd))?;
            let next_key = FileKey::of(&stat::of(next.as_fd())?);
            if next_key == key {
                return Err(Errno::ESTALE);
            }
            (above, key) = (Some(next), next_key);
        }
        Err(Errno::ESTALE)
    }

    /// FORGET and BATCH_FORGET: takes lookups off nodes, so many off each. What a process that died has begun is not repeated: a lookup
    /// too many is kept until the session ends, and one too few would end a node that the guest uses.
    pub fn forget_each(&self, forgets: impl Iterator<Item = (NodeId, u64)>, context: &RequestContext<'_>) {
        let begun = if let Left::Begun(count) = context.left() { usize::try_from(count).unwrap_or(usize::MAX) } else { 0 };
        for (number, (node, count)) in (1..).zip(forgets).skip(begun) {
            context.record.begin(number);
            crash_point!("forgetting");
            self.forget(node, count);
            crash_point!("forgotten");
        }
    }

    /// Takes `count` lookups off `node`; an unknown node is ignored.
    pub fn forget(&self, node: NodeId, count: u64) {
        let watched = self.freshness.watched(node);
        let mut locks = None;
        let forgotten = self.inodes.forget(node, count, |identity| {
            // Under the same lock as the last lookup: a retained node may be looked up and locked again at once. Ended later,
            // as the host may take long to close a file.
            locks = self.locks.detach(node);
            self.retains(identity)
        });
        if let Some(locks) = locks {
            self.locks.end(locks, Errno::ESTALE);
        }
        self.inodes.close_forgotten(node, &forgotten);
        if forgotten.is_last {
            self.freshness.unwatch(watched);
        }
    }

    /// Whether a forgotten file is retained: where the guest may use its id later, and its handle finds it then. Not on other
    /// mounts than the share's, which the host must be able to unmount.
    fn retains(&self, identity: &InodeIdentity) -> bool {
        let root = &self.inodes.root().identity;
        self.session.negotiated(Feature::Export) && identity.handle.is_some() && identity.mount_id == root.mount_id
    }
}
