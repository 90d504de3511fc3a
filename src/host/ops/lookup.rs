//! LOOKUP, FORGET and BATCH_FORGET.

use std::ffi::CStr;
use std::os::fd::AsFd;

use zerocopy::FromBytes;

use crate::fuse::abi::{EntryOut, ForgetOne};
use crate::host::Share;
use crate::types::{Errno, NodeId};

impl Share {
    /// LOOKUP: the file `name` in `parent`, counted once more. Where there is none, ENOENT, or node 0 with the
    /// time for which the guest may keep that. "." is the node itself and ".." its parent, as an NFS server in
    /// the guest asks for them; no other operation takes these names.
    pub fn lookup(&self, parent: NodeId, name: &CStr) -> Result<EntryOut, Errno> {
        match name.to_bytes() {
            b"." => return self.look_up_self(parent),
            b".." => return self.look_up_parent(parent),
            _ => {}
        }
        match self.look_up_at(parent, self.path_fd(parent)?.as_fd(), name) {
            Err(Errno::ENOENT) => self.no_entry(parent).ok_or(Errno::ENOENT),
            found => found,
        }
    }

    /// BATCH_FORGET: `nodes` are `fuse_forget_one` structures.
    pub fn batch_forget(&self, nodes: &[u8]) {
        let mut rest = nodes;
        while let Ok((one, more)) = ForgetOne::read_from_prefix(rest) {
            self.forget(NodeId(one.nodeid), one.nlookup);
            rest = more;
        }
    }
}
