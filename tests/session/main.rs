//! The vhost-user session: what the device offers, how queues start, stop and start again, memory that
//! comes and goes, the log of a migration, and the order of completions.

#[path = "../daemon/mod.rs"]
mod daemon;
#[path = "../../examples/guest/mod.rs"]
mod guest;
#[path = "../slow_file/mod.rs"]
mod slow_file;

mod log;
mod memory;
mod offers;
mod order;
mod queues;
mod restart;

use std::sync::Arc;

use daemon::Daemon;
use guest::client::Client;
use guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use guest::fuse::ROOT;

/// A file in the share, and what it holds.
const FILE: &str = "witness";

/// Three pages and a half, no two bytes in a row alike.
fn content() -> Vec<u8> {
    (0..14_336u32).map(|i| (i % 251) as u8).collect()
}

/// A daemon that shares the file, and a guest of `options` that has mounted it.
fn mounted(daemon_options: &[&str], options: &GuestOptions) -> (Daemon, Arc<Guest>, Client) {
    let daemon = Daemon::start(daemon_options);
    daemon.put(FILE, content());
    let guest = Guest::connect(daemon.socket(), options).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (daemon, guest, client)
}

/// The open file: node and handle.
fn open(client: &mut Client, name: &str, flags: i32) -> (u64, u64) {
    let node = client.lookup(ROOT, name).expect("LOOKUP").nodeid;
    (node, client.open(node, flags).expect("OPEN").fh)
}

/// Panics unless the file can be looked up, opened, read and released.
fn assert_serves(client: &mut Client) {
    let (node, fh) = open(client, FILE, libc::O_RDONLY);
    assert_eq!(client.read(node, fh, 0, 16_384), Ok(content()), "READ on queue {}", client.queue());
    assert_eq!(client.release(node, fh), Ok(()));
}
