//! The conductor: the only floor that joins transport, protocol and files.
//!
//! `session.rs` is one frontend's connection; `vring.rs` sees what the frontend says of its queues;
//! `queue.rs` is a queue's state, `stop.rs` how it stops, `worker.rs` the threads that serve it, `relief.rs` what keeps a slow
//! request from holding up the others; `serve.rs` turns one request into an operation on the share.
#![forbid(unsafe_code)]

mod answer;
mod config_space;
mod parked;
mod queue;
mod relief;
mod serve;
mod service;
mod session;
mod stop;
mod vring;
mod worker;

pub use config_space::{ConfigSpace, REQUEST_QUEUES_MAX, TAG_LEN_MAX, TagError};
pub use service::{Options, Service};
pub use session::{Session, SessionError, Stopper};
