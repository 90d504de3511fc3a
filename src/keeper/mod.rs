//! The keeper: the process that owns the listening socket and the frontend's connection. It starts the worker, the process that
//! serves, passes the messages of vhost-user between the two, and records the session that they set up (docs/RECOVERY.md). Both
//! have one table of descriptors and no memory in common. It never maps guest memory, is on the path of no request, and does not
//! know the share.
//!
//! | file | what it holds |
//! |---|---|
//! | `process.rs` | the start of the worker, the wait for connections, signals and the worker's end |
//! | `worker_end.rs`, `connection.rs` | where the worker gets its frontends; a connection whose other end can be accepted |
//! | `relay.rs` | two directions of messages with their descriptors |
//! | `message.rs`, `incoming.rs`, `outgoing.rs` | a message of vhost-user; from and to a socket that must not block |
//! | `session.rs`, `ring.rs` | what the frontend has set up: features, memory, log, rings |
#![forbid(unsafe_code)]

mod connection;
mod incoming;
mod message;
mod outgoing;
mod process;
mod relay;
mod ring;
mod session;
mod worker_end;

pub use process::{Keeper, Role, start};
pub use ring::Ring;
pub use session::{DirtyLog, Region, Session};
pub use worker_end::WorkerEnd;
