//! The exported directory: what each operation of the guest does on the host. Does not know queues or how requests and replies
//! are encoded.
//!
//! | group | what it knows |
//! |---|---|
//! | `inodes` | which file a node id is, and how it is opened |
//! | `files`, `directories` | open files and descriptors; the streams of open directories |
//! | `locks` | the guest's locks on the host |
//! | `rights` | credentials, ids, extended attributes |
//! | `caching` | what the guest may cache, and changes by other processes |
//! | `repeating` | what a process that died has done of a request that is executed again |
//! | `restored.rs` | the share of a process that is gone with its descriptors |
//! | `session.rs`, `policy.rs` | what INIT negotiated; what is in force of the options |
//!
//! [`Share`] puts them together. `ops/` holds one file for each family of operations, all of them methods of [`Share`].
#![forbid(unsafe_code)]

mod attributes;
mod caching;
mod directories;
mod export;
mod features;
mod files;
mod fs_limits;
#[cfg(feature = "failpoints")]
mod holdings;
mod inodes;
mod locks;
mod ops;
mod options;
mod policy;
mod repeating;
mod request_context;
mod restored;
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
#[cfg(feature = "failpoints")]
pub use holdings::Holdings;
pub use inodes::FileHandles;
pub use locks::{HeldLock, LockAnswer, LockFamily, LockOwner, LockRequest, LockWait, Locked};
pub use ops::{
    AttributeChange, CopyRange, CreateContext, DirectoryEntry, IoctlRequest, Label, Listing, Lookup, NewTime, NodeEntry, Opened,
    PreparedTransfer, WriteRequest,
};
pub use options::{Options, TmpfilePolicy};
pub use repeating::Appended;
pub use request_context::{Left, Pending, RequestContext};
pub use restored::Lost;
pub use rights::{
    CATCH_ALL, IdMap, IdRule, IdRuleError, KillPriv, Rights, Support, Translation, UnsupportedGuest, XattrMap, XattrMapError,
};
pub use share::Share;
pub use share_error::ShareError;
