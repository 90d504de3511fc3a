//! The exported directory: what an operation of the guest means on the host. Knows nothing of queues or
//! of how requests are encoded beyond the protocol's own structures.
//!
//! `share.rs` is what the guest sees as a file system; `ops/` holds one file for each family of
//! operations, all of them methods of [`Share`].
#![forbid(unsafe_code)]

mod attributes;
mod by_node;
mod cache;
mod caller;
mod directory;
mod entries;
mod handleless;
mod inode_numbers;
mod inodes;
mod lacks;
mod mounts;
mod ops;
mod share;

pub use cache::{CachePolicy, Timeouts};
pub use caller::Caller;
pub use lacks::Lack;
pub use ops::{IoctlRequest, WriteRequest};
pub use share::{Descriptors, FileHandles, Options, Share, ShareError};
