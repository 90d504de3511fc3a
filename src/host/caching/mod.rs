//! What the guest may cache and for how long, and the watch for changes that other processes make. Does not know requests.

pub(super) mod freshness;
pub(super) mod policy;
pub(super) mod watch;
