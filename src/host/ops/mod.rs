//! The operations, one file for each family. Each is a method of `Share`; errors are what the guest sees.

mod attr;
mod create;
mod data;
mod dir;
mod ioctl;
mod lock;
mod lookup;
mod open;
mod remove;
mod statfs;
mod xattr;

pub use create::CreateContext;
pub use data::{PreparedTransfer, WriteRequest};
pub use ioctl::IoctlRequest;
