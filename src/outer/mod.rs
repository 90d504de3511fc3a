//! The outer process: the one that the user started, which waits outside the sandbox for the one inside and does what only a process
//! outside can do. It passes signals on, serves the control socket, opens the program of a live upgrade by its path, and tells the service
//! manager what the keeper says. It has one thread: after unshare(CLONE_NEWPID) a process cannot start another one (man
//! pid_namespaces(7)). It knows nothing of guests and of what is shared.
//!
//! | file | what it holds |
//! |---|---|
//! | `waiting.rs` | the wait for the process inside, signals, the channel, clients |
//! | `upgrade.rs` | an upgrade that is asked for, until it is answered |
//! | `program.rs` | the program of an upgrade: which it is, and whether it can be executed |
//! | `channel.rs`, `herald.rs` | messages between the outer process and the keeper, or a process that serves without one |
//! | `deadline.rs` | a moment that both of them know |
//! | `control.rs`, `protocol.rs` | clients of the control socket; what they and the daemon say to each other |
//! | `store.rs` | descriptors that the service manager keeps for the next process |
//! | `report.rs`, `notify.rs` | what is known of the daemon and when it is told; datagrams to the service manager |
#![forbid(unsafe_code)]

mod channel;
mod control;
mod deadline;
mod herald;
mod notify;
mod program;
mod protocol;
mod report;
mod store;
mod upgrade;
mod waiting;

pub use channel::{Asked, Heard, KeeperEnd, OuterEnd, Said, TEXT_MAX, channel};
pub use control::ControlSocket;
pub use deadline::Deadline;
pub use herald::Herald;
pub use notify::{Notify, alive_every};
pub use protocol::{Answer, AskError, STATUS, UPGRADE, UPGRADE_FORCE, ask, path_beside};
pub use store::{KEPT_MAX, NAME_BEGIN, forget, keep};
pub use waiting::{Options, Outer};
