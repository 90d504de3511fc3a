//! Open files and descriptors: one budget for all that the guest holds open. Does not know names or paths.

pub(super) mod by_node;
pub(super) mod descriptors;
pub(super) mod held_file;
pub(super) mod no_open;
