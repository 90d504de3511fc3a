//! Files and directories that are open for a guest that does not open them (FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT):
//! its requests carry handle 0, and the descriptor is found by node. Both sets are bounded; what was evicted is opened again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::by_node::ByNode;
use crate::host::directories::OpenDirectory;
use crate::state::Budget;
use crate::types::NodeId;

/// Directories that are kept open by node: each keeps up to 32 KiB of entries, so these are 8 MiB.
const DIRECTORIES_MAX: usize = 256;

/// What is open by node.
#[derive(Debug)]
pub(super) struct NoOpen {
    pub files: ByNode<OwnedFd>,
    pub directories: ByNode<OpenDirectory>,
}

impl NoOpen {
    /// Keeps about `recent_max` files open in place of handles, and fewer directories, as files may have handles beside them.
    pub fn new(recent_max: usize, budget: &Arc<Budget>) -> NoOpen {
        let files = ByNode::new(recent_max, Arc::clone(budget));
        NoOpen { files, directories: ByNode::new((recent_max / 4).min(DIRECTORIES_MAX), Arc::clone(budget)) }
    }

    /// Closes one that was not used recently. False where there is none.
    pub fn close_recent(&self) -> bool {
        self.files.close_recent() || self.directories.close_recent()
    }

    /// Closes what is open of `node`.
    pub fn remove(&self, node: NodeId) {
        self.files.remove(node);
        self.directories.remove(node);
    }
}
