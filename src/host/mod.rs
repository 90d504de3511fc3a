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
mod descriptors;
mod directory;
mod early_interrupts;
mod entries;
mod export;
mod freshness;
mod handleless;
mod held_file;
mod id_map;
mod inode_numbers;
mod inodes;
mod lacks;
mod lock_ranges;
mod lock_waits;
mod locks;
mod mounts;
mod opening;
mod ops;
mod request_context;
mod rights;
mod share;
mod share_error;
mod watch;
mod xattr_map;

pub use cache::{CachePolicy, Timeouts};
pub use caller::Caller;
pub use descriptors::Descriptors;
pub use export::{Closing, Export};
pub use held_file::HeldFile;
pub use id_map::{IdMap, IdMapError, IdRule, Translation};
pub use lacks::Lack;
pub use locks::{LockAnswer, LockWait, Locked};
pub use ops::{CreateContext, IoctlRequest, PreparedTransfer, WriteRequest};
pub use request_context::{Pending, RequestContext};
pub use rights::{GuestLacks, KillPriv, Rights, Wanted};
pub use share::{FileHandles, Options, Share, Tmpfile};
pub use share_error::ShareError;
pub use watch::FileSystemWatch;
pub use xattr_map::{CATCH_ALL, XattrMap, XattrMapError};
