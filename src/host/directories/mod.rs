//! Open directories: the stream of entries. Does not know inodes.

pub(super) mod stream;
