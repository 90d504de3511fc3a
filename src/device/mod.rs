//! The only floor that connects transport, protocol and file system.
//!
//! | file | what it holds |
//! |---|---|
//! | `server.rs`, `session.rs`, `vring.rs` | frontends one after the other; one connection; what it says of its queues |
//! | `service.rs` | what the queues of a session share: export, guest memory, the FUSE session |
//! | `queue.rs`, `late.rs`, `stop.rs` | a queue's state; answers that no serving thread brings; how it stops |
//! | `recorded.rs`, `recovery.rs` | the ring with the records of what is in flight; how it starts, also behind a process that died |
//! | `alone.rs` | requests that are executed one after the other, behind a process that a fault has ended |
//! | `in_flight.rs`, `in_flight_table.rs`, `claim.rs` | a request from its pop to its answer; the list of them; who answers |
//! | `leadership.rs`, `worker.rs`, `watchdog.rs` | which thread watches the ring; the threads; relief of a slow leader |
//! | `pace.rs`, `overlap.rs` | how slow a queue's requests are, and whether they wait for the host; how many threads serve them |
//! | `spares.rs` | storage that threads keep for requests to come |
//! | `queue_cpus.rs` | the CPUs on which the threads of each queue run |
//! | `calling.rs`, `collecting.rs` | when the call is signalled, of a request queue and of hiprio |
//! | `polling.rs` | whether and how long a leader looks at its ring before it sleeps |
//! | `serve.rs`, `transfer.rs` | a request becomes an operation on the share, or a transfer of an I/O engine |
//! | `answer.rs`, `reply.rs` | a result becomes the answer; its bytes in guest memory |
//! | `wire.rs`, `features.rs` | results and features of the share as structures and flags of the protocol |
#![forbid(unsafe_code)]

mod activity;
mod alone;
mod answer;
mod calling;
mod claim;
mod collecting;
mod config_space;
mod context;
mod features;
mod in_flight;
mod in_flight_table;
mod late;
mod leadership;
mod overlap;
mod pace;
mod polling;
mod queue;
mod queue_cpus;
mod queue_engine;
mod recorded;
mod recorded_model;
mod recovery;
mod reply;
mod serve;
mod served;
mod server;
mod service;
mod session;
mod spares;
mod stop;
mod transfer;
mod vring;
mod watchdog;
mod wire;
mod worker;

pub use config_space::{ConfigSpace, REQUEST_QUEUES_MAX, TAG_LEN_MAX, TagError};
pub use in_flight::InFlight;
pub use polling::PollTime;
pub use queue_cpus::QueueCpus;
pub use queue_engine::QueueEngine;
pub use server::{Frontends, ServeError, Server, ServerOptions, ServerStopper};
pub use service::{Finishing, Options, Resumed, Service};
pub use session::{Session, SessionError, Stopper};
