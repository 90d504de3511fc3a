//! The vhost-user session: what the device offers, how queues start, stop and start again, memory that
//! comes and goes, the log of a migration, and the order of completions.

mod collecting;
mod log;
mod memory;
mod offers;
mod order;
mod polling;
mod queues;
mod restart;
mod stuck;

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use gatherfs_support::daemon::Daemon;
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;
use gatherfs_support::guest::memory::Region;

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

/// The addresses at which the daemon has mapped `region`; `None` where it has not.
fn mapping_of(daemon: &Daemon, region: &Region) -> Option<Range<u64>> {
    let inode = std::fs::metadata(format!("/proc/self/fd/{}", region.fd())).expect("the region's memfd").ino().to_string();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.serving())).expect("the daemon is there");
    // Columns: addresses, rights, offset, device, inode, path (man proc_pid_maps(5)).
    let line = maps.lines().find(|line| line.contains("guest-memory") && line.split_whitespace().nth(4) == Some(&inode))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}
