//! The exported directory: what an operation of the guest means on the host. Knows nothing of queues or
//! of how requests are encoded beyond the protocol's own structures.
//!
//! `share.rs` is what the guest sees as a file system; `ops/` holds one file for each family of
//! operations, all of them methods of [`Share`].
#![forbid(unsafe_code)]

mod attributes;
mod caching;
mod directories;
mod export;
mod features;
mod files;
mod fs_limits;
mod inodes;
mod locks;
mod ops;
mod options;
mod policy;
mod request_context;
mod rights;
mod session;
mod share;
mod share_error;

pub use attributes::{Attributes, CacheableAttributes, Timestamp};
pub use caching::{CachePolicy, FileSystemWatch, OpenCaching, Timeouts};
pub use export::{Closing, Export};
pub use features::{Feature, Features};
pub use files::{Descriptors, FileInUse};
pub use fs_limits::FsLimit;
pub use inodes::FileHandles;
pub use locks::{HeldLock, LockAnswer, LockFamily, LockOwner, LockRequest, LockWait, Locked};
pub use ops::{
    AttributeChange, CopyRange, CreateContext, DirectoryEntry, IoctlRequest, Label, Listing, Lookup, NewTime, NodeEntry, Opened,
    PreparedTransfer, WriteRequest,
};
pub use options::{Options, TmpfilePolicy};
pub use request_context::{Pending, RequestContext};
pub use rights::{
    CATCH_ALL, IdMap, IdRule, IdRuleError, KillPriv, Rights, Support, Translation, UnsupportedGuest, XattrMap, XattrMapError,
};
pub use share::Share;
pub use share_error::ShareError;
