//! Inodes: which file of the host a node id is, how a file gets one, and how a node is opened. Does not know requests, the
//! guest's caches or the FUSE session.

mod adding;
mod guest_inodes;
mod holding;
mod identity;
mod known;
mod mounts;
mod numbers;
mod opening;
mod root;
mod table;

pub(super) use adding::open_path;
pub(super) use guest_inodes::{Attached, Inodes};
pub(super) use identity::{FileKey, device_of, kind_of};
pub use root::FileHandles;
pub(super) use root::{Root, RootFault};
