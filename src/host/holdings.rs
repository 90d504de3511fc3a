//! How much the guest's objects hold, for tests of leaks. Only with the feature `failpoints`.

use std::sync::Arc;

use super::share::Share;

/// What the guest's objects hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Nodes, the root among them.
    pub nodes: usize,
    /// Lookups that were not forgotten, of all nodes together.
    pub lookups: u64,
    /// Open handles.
    pub handles: usize,
    /// Places that are taken in the budget of descriptors.
    pub descriptors: usize,
}

impl Share {
    /// Tells later, when the share has been given away, what it holds.
    pub fn holdings(&self) -> impl Fn() -> Holdings + Send + Sync + use<> {
        let (inodes, files) = (Arc::clone(&self.inodes), Arc::clone(&self.files));
        move || {
            let nodes = inodes.nodes();
            let lookups = nodes.iter().map(|node| inodes.lookups(*node)).sum();
            Holdings { nodes: nodes.len(), lookups, handles: files.handle_count(), descriptors: files.budget().held() }
        }
    }

    /// Ends what a file that was gone has begun: that files which are looked up are held for a while.
    pub fn end_holding(&self) -> impl Fn() + Send + Sync + use<> {
        let inodes = Arc::clone(&self.inodes);
        move || inodes.end_holding()
    }
}
