//! The rules for a request that is executed again because the process that had begun it died (docs/RECOVERY.md, section 5): what
//! it has done already, and what is still to be done. An operation that can simply be repeated needs none.
//!
//! | file | whose rules |
//! |---|---|
//! | `counts.rs` | what the guest counts and closes: lookups and handles |
//! | `creates.rs` | MKNOD, MKDIR, SYMLINK, CREATE, LINK |
//! | `removals.rs` | UNLINK, RMDIR, RENAME |
//! | `contents.rs` | appending WRITE, FALLOCATE that moves data, FSYNC |
//!
//! The functions that are called before a call answer what it would: `None` where it is still to be made.

mod contents;
mod counts;
mod creates;
mod removals;

pub use contents::Appended;
pub(in crate::host) use contents::{moved_before, size_word};
pub(in crate::host) use creates::NewFile;
pub(in crate::host) use removals::ino_word;
