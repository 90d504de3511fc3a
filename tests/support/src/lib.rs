//! What the tests and examples of gatherfs share. The synthetic guest knows nothing of the daemon's code, so that it can
//! judge the daemon; nothing here holds a test of its own.

pub mod daemon;
pub mod failing_disk;
pub mod guest;
pub mod in_process;
pub mod manual;
pub mod operations;
pub mod places;
pub mod private_mounts;
pub mod reference;
pub mod scratch;
pub mod share;
pub mod slow_file;

mod removal;
