//! What a guest can get wrong: each mistake is answered with its errno, or the chain goes back with
//! length 0 where there is no room for a reply; it is counted, and the next request is served.
//!
//! `chains.rs` has mistakes of the virtqueue, `requests.rs` those of a FUSE request, `session.rs` those
//! of their order, `fuzz.rs` whatever comes out of a random generator.

mod chains;
mod fuzz;
mod requests;
mod session;

use std::sync::Arc;

use gatherfs_support::daemon::Daemon;
use gatherfs_support::guest::client::{Client, Reply};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::ROOT;

/// The queues a mistake is made on.
const QUEUES: [usize; 2] = [HIPRIO, FIRST_REQUEST];
/// A file that is always in the share, and what it holds.
const FILE: &str = "witness";
const CONTENT: &[u8] = b"still here";

/// A daemon with a guest that has mounted its share.
struct Mounted {
    daemon: Daemon,
    guest: Arc<Guest>,
    client: Client,
}

impl Mounted {
    fn new(daemon_options: &[&str]) -> Self {
        let mut mounted = Self::before_init(Daemon::start(daemon_options));
        mounted.client.init().expect("INIT");
        mounted
    }

    fn before_init(daemon: Daemon) -> Self {
        daemon.put(FILE, CONTENT);
        let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).expect("a connection");
        let client = Client::new(&guest, FIRST_REQUEST);
        Self { daemon, guest, client }
    }

    /// A client of the same mount on `queue`.
    fn on(&self, queue: usize) -> Client {
        self.client.on_queue(queue)
    }

    /// Panics unless an ordinary lookup, open, read and release work on both queues.
    fn assert_serves(&mut self, after: &str) {
        assert!(self.daemon.is_running(), "the daemon ended after {after}");
        for queue in QUEUES {
            let mut client = self.on(queue);
            let entry = client.lookup(ROOT, FILE).unwrap_or_else(|e| panic!("LOOKUP on queue {queue} after {after}: {e}"));
            let open = client.open(entry.nodeid, libc::O_RDONLY).unwrap_or_else(|e| panic!("OPEN after {after}: {e}"));
            let read = client.read(entry.nodeid, open.fh, 0, 4096);
            assert_eq!(read.as_deref(), Ok(CONTENT), "READ on queue {queue} after {after}");
            assert_eq!(client.release(entry.nodeid, open.fh), Ok(()), "RELEASE after {after}");
        }
    }

    /// The counter `name`.
    fn count(&self, name: &str) -> u64 {
        self.daemon.metrics().get(name)
    }
}

/// The errno of a reply.
fn errno(reply: &Reply) -> i32 {
    -reply.header.error
}
