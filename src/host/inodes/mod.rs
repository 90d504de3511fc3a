//! Inodes: which file of the host a node id is, and how it is found and opened. Does not know requests or what is cached.

pub(super) mod entries;
pub(super) mod mounts;
pub(super) mod numbers;
pub(super) mod opening;
pub(super) mod table;
