//! The only floor that connects transport, protocol and file system.
//!
//! `session.rs` is one frontend's connection; `vring.rs` sees what the frontend says of its queues; `queue.rs` is a queue's state,
//! `in_flight.rs` a request from its pop to its answer, `leadership.rs` which thread watches the ring, `worker.rs` the threads,
//! `stop.rs` how a queue stops; `serve.rs` turns one request into an operation on the share, `transfer.rs` those that move data.
#![forbid(unsafe_code)]

mod activity;
mod answer;
mod claim;
mod config_space;
mod in_flight;
mod in_flight_table;
mod leadership;
mod queue;
mod reply;
mod serve;
mod served;
mod service;
mod session;
mod stop;
mod transfer;
mod vring;
mod watchdog;
mod worker;

pub use config_space::{ConfigSpace, REQUEST_QUEUES_MAX, TAG_LEN_MAX, TagError};
pub use in_flight::InFlight;
pub use service::{Options, Service};
pub use session::{Session, SessionError, Stopper};
