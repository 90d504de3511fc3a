//! Random sequences of operations, and the side of the guest that carries them out: for tests that compare with the host.

pub mod operation;
pub mod through_daemon;
