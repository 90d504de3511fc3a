//! Moves bytes between guest pages and a host file: a [`Transfer`] is submitted to an [`Engine`], which
//! finishes it at once or later. Knows nothing of queues or FUSE.
#![forbid(unsafe_code)]

mod engine;
mod pinned;
mod rings;
mod sync;
mod transfer;
mod uring;

pub use engine::{Engine, Finished, Submission};
pub use rings::{NoRings, Rings};
pub use sync::{SyncEngine, run};
pub use transfer::{Action, Thread, Transfer, TransferOwner, Unaligned};
pub use uring::{UringEngine, Which};
