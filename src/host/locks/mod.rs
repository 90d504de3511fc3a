//! The guest's locks on the host: owners, byte ranges, waits. Does not know inodes, FUSE sessions or how requests are encoded.

mod early_interrupts;
mod guest_locks;
mod node;
mod owner;
mod ranges;
mod request;
mod retry;
mod table;
mod waits;

pub use crate::state::HeldLock;
pub(super) use guest_locks::GuestLocks;
pub(super) use owner::LockFile;
pub use request::{LockAnswer, LockFamily, LockOwner, LockRequest, LockWait, Locked};
