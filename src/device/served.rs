//! What becomes of a request that a thread serves.

use super::in_flight::{Answered, InFlight, Vacant};

/// What became of a request.
#[derive(Debug)]
pub(super) enum Served {
    /// Its reply is in guest memory.
    Answered(Answered),
    /// Somebody else has it, an engine or whoever it waits for, and answers it later. Its storage comes back where they need none.
    Submitted(Option<Vacant>),
    /// The engine has no room for it: it is served again later.
    Throttled(InFlight),
}
