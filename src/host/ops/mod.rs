//! The operations, one file for each family, each a method of `Share`. Errors are what the guest gets.

mod attributes;
mod create;
mod data;
mod directories;
mod ioctl;
mod locks;
mod lookup;
mod open;
mod remove;
mod session;
mod statfs;
mod target;
mod xattr;

pub use attributes::{AttributeChange, NewTime};
pub use create::{CreateContext, Label};
pub use data::{CopyRange, PreparedTransfer, WriteRequest};
pub use directories::{DirectoryEntry, Listing};
pub use ioctl::IoctlRequest;
pub use lookup::{Lookup, NodeEntry};
pub use open::Opened;
