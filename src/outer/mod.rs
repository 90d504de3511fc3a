//! The outer process: the one that the user started, which waits outside the sandbox for the one inside and does what only a process
//! outside can do. It passes signals on, opens the program of a live upgrade by its path, and tells the keeper by a channel. It has one
//! thread: after unshare(CLONE_NEWPID) a process cannot start another one (man pid_namespaces(7)). It knows nothing of guests and of
//! what is shared.
//!
//! | file | what it holds |
//! |---|---|
//! | `waiting.rs` | the wait for the process inside, signals, the channel |
//! | `upgrade.rs` | an upgrade that is asked for, until it is answered |
//! | `program.rs` | the program of an upgrade: which it is, and whether it can be executed |
//! | `channel.rs` | messages between the outer process and the keeper |
#![forbid(unsafe_code)]

mod channel;
mod program;
mod upgrade;
mod waiting;

pub use channel::{Asked, Heard, KeeperEnd, OuterEnd, Said, TEXT_MAX, channel};
pub use waiting::{Options, Outer};
