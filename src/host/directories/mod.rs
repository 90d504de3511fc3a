//! Open directories and where the guest is in each. Does not know inodes or how entries are encoded.

mod open_directories;
mod stream;

pub(super) use open_directories::{OpenDirectories, OpenDirectory};
pub(super) use stream::DirectoryStream;
