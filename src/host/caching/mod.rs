//! What the guest may cache and for how long: the cache policy, and with `--watch` the changes that other processes make.
//! Does not know requests or the FUSE session.

mod freshness;
mod policy;
mod watch;

pub(super) use freshness::Freshness;
pub use policy::{CachePolicy, OpenCaching, Timeouts};
pub use watch::FileSystemWatch;
pub(super) use watch::Watch;
