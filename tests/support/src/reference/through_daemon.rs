//! The side of the guest: each operation as the requests that a guest's kernel would send.

use std::collections::HashMap;

use crate::guest::client::{Client, Result};
use crate::guest::fuse::{Attr, CopyFileRangeIn, EntryOut, FallocateIn, ROOT, SetattrIn, flag};
use crate::reference::operation::{Attributes, Directory, Operation, Outcome, Place, SLOTS, identity};

/// A file that the guest has open.
#[derive(Clone, Copy)]
struct Open {
    node: u64,
    fh: u64,
    flags: i32,
}

/// The guest, which has mounted the share and works below one directory.
pub struct ThroughDaemon<'c> {
    client: &'c mut Client,
    root: u64,
    slots: [Option<Open>; SLOTS as usize],
    /// Nobody else works on the tree.
    pub alone: bool,
    /// What is removed or moved is looked up before, as every guest's kernel does: a daemon that goes on where another one died needs
    /// that.
    pub looks_first: bool,
    /// The node of each inode number.
    numbers: HashMap<u64, u64>,
    /// Lookups that the daemon counts for each node.
    lookups: HashMap<u64, u64>,
}

fn attributes(attr: &Attr) -> Attributes {
    Attributes::new(attr.mode, attr.uid, attr.gid, attr.nlink, attr.size)
}

fn settle(result: Result<Outcome>) -> Outcome {
    match result {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Errno(error.errno().unwrap_or_else(|| panic!("{error}"))),
    }
}

impl<'c> ThroughDaemon<'c> {
    /// Begins in the share's directory `name`.
    pub fn begin(client: &'c mut Client, name: &str) -> ThroughDaemon<'c> {
        client.umask = 0;
        let root = client.lookup(ROOT, name).unwrap().nodeid;
        ThroughDaemon {
            client,
            root,
            slots: Default::default(),
            alone: true,
            looks_first: false,
            numbers: HashMap::new(),
            lookups: HashMap::from([(root, 1)]),
        }
    }

    /// Closes what is open and forgets every node.
    pub fn end(mut self) {
        for slot in 0..SLOTS {
            self.close(slot);
        }
        self.forget();
        self.client.forget(self.root, 1).unwrap();
    }

    fn count(&mut self, entry: EntryOut) -> EntryOut {
        *self.lookups.entry(entry.nodeid).or_default() += 1;
        // The guest has one page cache for each node: two of one file would not agree. (Elsewhere the host may give a number again.)
        if self.looks_first
            && let Some(other) = self.numbers.insert(entry.attr.ino, entry.nodeid).filter(|other| *other != entry.nodeid)
        {
            assert!(!self.lookups.contains_key(&other), "nodes {other:#x} and {:#x} are one file", entry.nodeid);
        }
        entry
    }

    fn act_as(&mut self, caller: u8) {
        let (uid, gid, group) = identity(caller);
        (self.client.caller.uid, self.client.caller.gid) = (uid, gid);
        self.client.groups = group.into_iter().collect();
    }

    fn directory(&mut self, directory: Directory) -> Result<u64> {
        let mut node = self.root;
        for name in directory {
            let entry = self.client.lookup(node, name)?;
            node = self.count(entry).nodeid;
        }
        Ok(node)
    }

    fn look_first(&mut self, parent: u64, place: Place) -> Result<()> {
        if self.looks_first {
            let entry = self.client.lookup(parent, place.name)?;
            self.count(entry);
        }
        Ok(())
    }

    fn look_up(&mut self, place: Place) -> Result<EntryOut> {
        let parent = self.directory(place.directory)?;
        let entry = self.client.lookup(parent, place.name)?;
        Ok(self.count(entry))
    }

    fn slot(&self, slot: u8) -> Option<Open> {
        self.slots[usize::from(slot)]
    }

    fn close(&mut self, slot: u8) {
        if let Some(open) = self.slots[usize::from(slot)].take() {
            self.client.flush(open.node, open.fh).unwrap();
            self.client.release(open.node, open.fh).unwrap();
        }
    }

    /// Puts an open file into a slot.
    fn keep(&mut self, slot: u8, open: Open) {
        self.close(slot);
        self.slots[usize::from(slot)] = Some(open);
    }

    fn forget(&mut self) {
        let held: Vec<u64> = self.slots.iter().flatten().map(|open| open.node).chain([self.root]).collect();
        let gone: Vec<(u64, u64)> = self.lookups.iter().filter(|(node, _)| !held.contains(node)).map(|(n, c)| (*n, *c)).collect();
        for (node, count) in gone {
            self.lookups.remove(&node);
            self.client.forget(node, count).unwrap();
        }
    }

    /// Does `operation`.
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        let outcome = self.make(operation).unwrap_or_else(|| self.on_open(operation).unwrap_or_else(|| self.on_names(operation)));
        settle(outcome)
    }

    /// What makes names, as the caller. `None` for other operations.
    fn make(&mut self, operation: &Operation) -> Option<Result<Outcome>> {
        let caller = match *operation {
            Operation::Create { caller, .. }
            | Operation::Tmpfile { caller, .. }
            | Operation::Mkdir { caller, .. }
            | Operation::Fifo { caller, .. }
            | Operation::Symlink { caller, .. } => caller,
            _ => return None,
        };
        self.act_as(caller);
        let made = self.make_as_caller(operation);
        self.act_as(0);
        Some(made)
    }

    fn make_as_caller(&mut self, operation: &Operation) -> Result<Outcome> {
        let entry = match *operation {
            Operation::Create { place, slot, mode, flags, .. } => {
                let parent = self.directory(place.directory)?;
                let made = self.client.create(parent, place.name, mode, flags)?;
                self.keep(slot, Open { node: made.entry.nodeid, fh: made.open.fh, flags });
                made.entry
            }
            Operation::Tmpfile { directory, slot, mode, .. } => {
                let parent = self.directory(directory)?;
                let made = self.client.tmpfile(parent, mode, libc::O_RDWR)?;
                self.keep(slot, Open { node: made.entry.nodeid, fh: made.open.fh, flags: libc::O_RDWR });
                made.entry
            }
            Operation::Mkdir { place, mode, .. } => {
                let parent = self.directory(place.directory)?;
                self.client.mkdir(parent, place.name, mode)?
            }
            Operation::Fifo { place, mode, .. } => {
                let parent = self.directory(place.directory)?;
                self.client.mknod(parent, place.name, libc::S_IFIFO | mode, 0)?
            }
            Operation::Symlink { place, target, .. } => {
                let parent = self.directory(place.directory)?;
                self.client.symlink(parent, place.name, target)?
            }
            _ => unreachable!("not an operation that makes a name"),
        };
        self.count(entry);
        // A file that was opened may have been emptied after it was looked up.
        Ok(Outcome::Attributes(attributes(&self.client.getattr(entry.nodeid, None)?.attr)))
    }

    /// What goes to an open file. `None` for other operations.
    fn on_open(&mut self, operation: &Operation) -> Option<Result<Outcome>> {
        let slot = match *operation {
            Operation::Close { slot } => {
                self.close(slot);
                return Some(Ok(Outcome::Nothing));
            }
            Operation::Copy { from, from_offset, to, to_offset, len } => return Some(self.copy((from, from_offset), (to, to_offset), len)),
            Operation::Read { slot, .. }
            | Operation::Write { slot, .. }
            | Operation::TruncateOpen { slot, .. }
            | Operation::Allocate { slot, .. }
            | Operation::Seek { slot, .. }
            | Operation::LookOpen { slot }
            | Operation::Sync { slot, .. }
            | Operation::LinkOpen { slot, .. } => slot,
            _ => return None,
        };
        let Some(open) = self.slot(slot) else { return Some(Ok(Outcome::Nothing)) };
        self.client.file_flags = open.flags.cast_unsigned();
        Some(self.on_file(open, operation))
    }

    fn on_file(&mut self, Open { node, fh, .. }: Open, operation: &Operation) -> Result<Outcome> {
        let c = &mut *self.client;
        Ok(match *operation {
            Operation::Read { offset, len, .. } => Outcome::Bytes(c.read(node, fh, offset, len)?),
            Operation::Write { offset, len, seed, .. } => {
                Outcome::Number(c.write(node, fh, offset, &crate::share::noise(seed.into(), len as usize))?.into())
            }
            Operation::TruncateOpen { len, .. } => Outcome::Attributes(attributes(&c.truncate(node, Some(fh), len)?.attr)),
            Operation::Allocate { mode, offset, len, .. } => {
                c.fallocate(node, &FallocateIn { fh, offset, length: len, mode: mode.cast_unsigned(), padding: 0 })?;
                Outcome::Nothing
            }
            Operation::Seek { offset, whence, .. } => Outcome::Number(c.lseek(node, fh, offset, whence)?),
            Operation::LookOpen { .. } => {
                let by_node = c.getattr(node, None)?.attr;
                let by_handle = c.getattr(node, Some(fh))?.attr;
                assert!(by_node == by_handle || !self.alone, "{by_node:?} by node and {by_handle:?} by handle");
                Outcome::Attributes(attributes(&by_handle))
            }
            Operation::Sync { data_only, .. } => {
                c.fsync(node, fh, data_only)?;
                Outcome::Nothing
            }
            Operation::LinkOpen { to, .. } => {
                let parent = self.directory(to.directory)?;
                // A guest's kernel ends here where there is something.
                if self.looks_first && self.look_first(parent, to).is_ok() {
                    return Ok(Outcome::Errno(libc::EEXIST));
                }
                let entry = self.client.link(node, parent, to.name)?;
                Outcome::Attributes(attributes(&self.count(entry).attr))
            }
            _ => unreachable!("not an operation on an open file"),
        })
    }

    fn copy(&mut self, (from, off_in): (u8, u64), (to, off_out): (u8, u64), len: u64) -> Result<Outcome> {
        let (Some(from), Some(to)) = (self.slot(from), self.slot(to)) else { return Ok(Outcome::Nothing) };
        if to.flags & libc::O_APPEND != 0 {
            // The guest's kernel refuses that itself (man copy_file_range(2), EBADF).
            return Ok(Outcome::Errno(libc::EBADF));
        }
        let copy = CopyFileRangeIn { fh_in: from.fh, off_in, nodeid_out: to.node, fh_out: to.fh, off_out, len, flags: 0 };
        Ok(Outcome::Number(self.client.copy_file_range_64(from.node, &copy)?))
    }

    fn on_names(&mut self, operation: &Operation) -> Result<Outcome> {
        match *operation {
            Operation::Open { place, slot, flags } => {
                let node = self.look_up(place)?.nodeid;
                let fh = self.client.open(node, flags)?.fh;
                self.keep(slot, Open { node, fh, flags });
            }
            Operation::Unlink { place } => {
                let parent = self.directory(place.directory)?;
                self.look_first(parent, place)?;
                self.client.unlink(parent, place.name)?;
            }
            Operation::Rmdir { place } => {
                let parent = self.directory(place.directory)?;
                self.look_first(parent, place)?;
                self.client.rmdir(parent, place.name)?;
            }
            Operation::Rename { from, to, flags } => {
                let (from_node, to_node) = (self.directory(from.directory)?, self.directory(to.directory)?);
                let found = self.look_first(from_node, from);
                // There need be nothing.
                let _ = self.look_first(to_node, to);
                self.client.rename2((from_node, from.name), (to_node, to.name), flags)?;
                // A guest's kernel ends here where there is nothing to move, but for errors that come first.
                found?;
            }
            Operation::Link { from, to } => {
                let node = self.look_up(from)?.nodeid;
                let parent = self.directory(to.directory)?;
                let entry = self.client.link(node, parent, to.name)?;
                assert_eq!(entry.nodeid, node, "hard links are one node");
                return Ok(Outcome::Attributes(attributes(&self.count(entry).attr)));
            }
            Operation::Readlink { place } => {
                let node = self.look_up(place)?.nodeid;
                return Ok(Outcome::Bytes(self.client.readlink(node)?));
            }
            Operation::List { directory, with_attributes } => return self.list(directory, with_attributes),
            Operation::Forget => self.forget(),
            _ => return self.on_attributes(operation),
        }
        Ok(Outcome::Nothing)
    }

    fn on_attributes(&mut self, operation: &Operation) -> Result<Outcome> {
        let (place, set) = match *operation {
            Operation::Look { place } => return Ok(Outcome::Attributes(attributes(&self.look_up(place)?.attr))),
            Operation::Truncate { place, len } => (place, SetattrIn { valid: flag::FATTR_SIZE, size: len, ..SetattrIn::default() }),
            Operation::Chmod { place, mode } => (place, SetattrIn { valid: flag::FATTR_MODE, mode, ..SetattrIn::default() }),
            Operation::Chown { place, uid, gid } => {
                let valid = uid.map_or(0, |_| flag::FATTR_UID) | gid.map_or(0, |_| flag::FATTR_GID);
                (place, SetattrIn { valid, uid: uid.unwrap_or(7), gid: gid.unwrap_or(7), ..SetattrIn::default() })
            }
            Operation::SetTimes { place, seconds } => {
                let valid = flag::FATTR_ATIME | flag::FATTR_MTIME;
                (place, SetattrIn { valid, atime: seconds, mtime: seconds + 1, ..SetattrIn::default() })
            }
            _ => unreachable!("every operation has its place"),
        };
        let node = self.look_up(place)?.nodeid;
        let attr = self.client.setattr(node, &set)?.attr;
        Ok(match operation {
            Operation::SetTimes { .. } => Outcome::Times(attributes(&attr), attr.atime, attr.mtime),
            _ => Outcome::Attributes(attributes(&attr)),
        })
    }

    /// Lists a directory in small parts.
    fn list(&mut self, directory: Directory, with_attributes: bool) -> Result<Outcome> {
        let node = self.directory(directory)?;
        let fh = self.client.opendir(node)?.fh;
        let names = self.list_open(node, fh, with_attributes);
        self.client.releasedir(node, fh)?;
        names.map(Outcome::Names)
    }

    fn list_open(&mut self, node: u64, fh: u64, with_attributes: bool) -> Result<Vec<(Vec<u8>, u32)>> {
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let c = &mut *self.client;
            let part = if with_attributes { c.readdirplus(node, fh, offset, 400)? } else { c.readdir(node, fh, offset, 100)? };
            let Some(last) = part.last() else { break };
            offset = last.off;
            for entry in part {
                if let Some(looked_up) = entry.entry.filter(|e| e.nodeid != 0) {
                    self.count(looked_up);
                    // Between the two another worker may put something else there.
                    let same = looked_up.attr.mode & libc::S_IFMT == entry.kind << 12;
                    assert!(same || !self.alone, "attributes of {entry:?}");
                }
                names.push((entry.name, entry.kind));
            }
        }
        names.sort();
        Ok(names)
    }
}
