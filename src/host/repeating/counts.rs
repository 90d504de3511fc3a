//! Lookups that a request counted, and handles that it made, before the process died: the guest has not heard of them.

use std::os::fd::AsFd;

use crate::host::ops::NodeEntry;
use crate::host::request_context::RequestContext;
use crate::host::share::Share;
use crate::state::RequestRecord;
use crate::sys::failpoint::crash_point;
use crate::sys::stat;
use crate::types::{FileHandle, NodeId};

impl Share {
    /// Takes the lookup back that the request counted, and has it count anew.
    pub(in crate::host) fn take_lookup_back(&self, context: &RequestContext<'_>) {
        if let Some(node) = counted(context) {
            self.uncount(node, context.record);
        }
    }

    /// Takes a lookup of `node` back that the request with `record` counted.
    pub fn uncount(&self, node: NodeId, record: &RequestRecord) {
        // In this order, a death leaves a lookup too many, and never one too few.
        record.note_counted(NodeId(0));
        crash_point!("uncounting");
        self.forget(node, 1);
    }

    /// The handle that the request made. One that was noted and not made is never valid.
    pub(in crate::host) fn opened_before(&self, context: &RequestContext<'_>) -> Option<FileHandle> {
        let handle = context.earlier.as_ref()?.handle;
        (handle != FileHandle::NONE && self.files.get(handle).is_ok()).then_some(handle)
    }

    /// The entry in `parent` whose lookup the request counted: all that it was to do is done. A lookup of a file that is gone is
    /// taken back.
    pub(in crate::host) fn entry_before(&self, parent: NodeId, context: &RequestContext<'_>) -> Option<NodeEntry> {
        let node = counted(context)?;
        let st = self.inodes.path_fd(node).and_then(|fd| stat::of(fd.as_fd()));
        if st.is_err() {
            self.take_lookup_back(context);
        }
        st.ok().map(|st| self.entry(parent, node, &st))
    }
}

/// The node whose lookup the request counted.
fn counted(context: &RequestContext<'_>) -> Option<NodeId> {
    context.earlier.as_ref().map(|earlier| earlier.counted).filter(|node| node.0 != 0)
}
