//! Open files and descriptors: the guest's handles, O_PATH descriptors and lock descriptions, in one budget. Knows nodes by
//! their id only, not inodes, names or paths.

mod by_node;
mod counted;
mod descriptors;
mod no_open;
mod open_files;
mod target;

pub(super) use counted::Counted;
pub use descriptors::Descriptors;
pub(super) use open_files::OpenFiles;
pub use target::FileInUse;
pub(super) use target::OpenTarget;
