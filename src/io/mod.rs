//! How bytes come and go between guest pages and a host file. Knows nothing of queues or FUSE.
#![forbid(unsafe_code)]

mod sync;
mod transfer;

pub use sync::run;
pub use transfer::{Direction, Transfer};
