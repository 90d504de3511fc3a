//! The guest's locks on the host. Does not know how requests are encoded.

pub(super) mod early_interrupts;
pub(super) mod ranges;
pub(super) mod table;
pub(super) mod waits;
