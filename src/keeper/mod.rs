//! The keeper: the process that owns the listening socket and the frontend's connection. It starts the worker, the process that
//! serves, passes the messages of vhost-user between the two, and records the session that they set up (docs/RECOVERY.md). Both
//! have one table of descriptors and no memory in common. It never maps guest memory, is on the path of no request, and does not
//! know the share.
//!
//! | file | what it holds |
//! |---|---|
//! | `process.rs`, `deaths.rs` | the wait for connections, signals and the worker's end; when another worker is started |
//! | `life.rs`, `worker_end.rs`, `control.rs` | the start of a worker, what it begins with, and where it gets its frontends; what the two say to each other |
//! | `watching.rs` | in a process that serves: signals, and the sign that it lives |
//! | `relay.rs`, `connection.rs` | two directions of messages with their descriptors; a connection whose other end can be accepted |
//! | `message.rs`, `incoming.rs`, `outgoing.rs` | a message of vhost-user; from and to a socket that must not block |
//! | `inflight.rs`, `retention.rs` | the feature by which a frontend is known again; a session that waits for it |
//! | `session.rs`, `ring.rs`, `pending.rs` | what the frontend has set up: features, memory, log, rings; what is not answered yet |
//! | `upgrade.rs`, `program.rs` | the course of a live upgrade; the other program, which is examined and executed |
//! | `handover.rs`, `descriptors.rs`, `held.rs` | what the other program gets; descriptors in it; those that a worker must not replace |
//! | `keeping.rs` | the session, as it is kept for a process that follows this one's death |
#![forbid(unsafe_code)]

mod connection;
mod control;
mod deaths;
mod descriptors;
mod handover;
mod held;
mod incoming;
mod inflight;
mod keeping;
mod life;
mod message;
mod outgoing;
mod pending;
mod process;
mod program;
mod relay;
mod retention;
mod ring;
mod session;
mod upgrade;
mod watching;
mod worker_end;

pub use deaths::SHORTAGE;
pub use handover::{Cause, Examiner, FileIdentity, HandOverError, Start, Taken, handed_over};
pub use keeping::{Kept, KeptError};
pub use process::{Keeper, Turn};
pub use ring::Ring;
pub use session::{DirtyLog, Region, Session};
pub use watching::Watching;
pub use worker_end::{Beginning, Inheritance, Witness, WorkerEnd};
