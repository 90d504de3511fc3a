//! The outcome of serving a request.

use super::in_flight::{Answered, InFlight, Vacant};

/// The outcome of serving a request.
#[derive(Debug)]
pub(super) enum Served {
    /// Its reply is in guest memory.
    Answered(Answered),
    /// It is answered later: an engine has it, or it is suspended. A suspended request gives its storage back.
    Submitted(Option<Vacant>),
    /// The engine has no room for it: it is served again later.
    Throttled(InFlight),
}
