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
mod files;
mod fs_limits;
mod inodes;
mod locks;
mod ops;
mod request_context;
mod rights;
mod share;
mod share_error;

pub use caching::policy::{CachePolicy, Timeouts};
pub use caching::watch::FileSystemWatch;
pub use export::{Closing, Export};
pub use files::descriptors::Descriptors;
pub use files::held_file::HeldFile;
pub use fs_limits::Lack;
pub use locks::{LockAnswer, LockWait, Locked};
pub use ops::{CreateContext, IoctlRequest, PreparedTransfer, WriteRequest};
pub use request_context::{Pending, RequestContext};
pub use rights::caller::Caller;
pub use rights::id_map::{IdMap, IdMapError, IdRule, Translation};
pub use rights::policy::{GuestLacks, KillPriv, Rights, Wanted};
pub use rights::xattr_map::{CATCH_ALL, XattrMap, XattrMapError};
pub use share::{FileHandles, Options, Share, Tmpfile};
pub use share_error::ShareError;
