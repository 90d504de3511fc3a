//! Polling: a leader looks at its ring before it sleeps, as `--poll-us` says.

use gatherfs_support::daemon::eventually;
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::ROOT;

use super::{assert_serves, mounted};

/// The longest look, so that a slow machine does not end it.
const SECOND: &str = "--poll-us=1000000";

fn send(client: &mut Client, requests: usize) {
    for _ in 0..requests {
        client.statfs(ROOT).expect("STATFS");
    }
}

#[test]
fn a_leader_looks_at_its_ring_before_it_sleeps_unless_it_is_told_not_to() {
    for (option, looks_expected) in [("--poll-us=0", false), ("--poll-us=20", true), ("--poll-us=auto", true)] {
        let (daemon, _guest, mut client) = mounted(&[option], &GuestOptions::default());
        send(&mut client, 200);
        let has_looked = || {
            let metrics = daemon.metrics();
            metrics.get("polls_found") + metrics.get("polls_in_vain") > 0
        };
        if looks_expected {
            assert!(eventually(has_looked), "{option}");
        } else {
            assert!(!has_looked(), "{option}");
        }
    }
}

#[test]
fn a_leader_that_polls_needs_no_kicks() {
    for event_idx in [false, true] {
        let (daemon, guest, mut client) = mounted(&[SECOND], &GuestOptions { event_idx, ..GuestOptions::default() });
        send(&mut client, 1);
        let before = guest.lock(FIRST_REQUEST).notifications().0;
        send(&mut client, 1000);
        let kicks = guest.lock(FIRST_REQUEST).notifications().0 - before;
        // Each of them needs a pause of a second.
        assert!(kicks < 100, "{kicks} kicks for 1000 requests, event_idx {event_idx}");
        let of_daemon = daemon.metrics().get("kicks");
        assert!(of_daemon < 100, "{of_daemon} wake-ups by a kick");
    }
}

#[test]
fn a_ring_that_is_polled_stops_and_starts_and_its_memory_can_go() {
    let (_daemon, guest, mut client) = mounted(&[SECOND], &GuestOptions::default());
    for _ in 0..50 {
        send(&mut client, 1);
        let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
        guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
        send(&mut client, 1);
        guest.send_memory().expect("SET_MEM_TABLE");
    }
    assert_serves(&mut client);
}

#[test]
fn queues_for_which_no_cpu_is_left_are_served_while_another_is_polled() {
    let (_daemon, _guest, mut client) = mounted(&[SECOND], &GuestOptions { request_queues: 4, ..GuestOptions::default() });
    let mut clients: Vec<_> = [HIPRIO, FIRST_REQUEST + 1, FIRST_REQUEST + 2, FIRST_REQUEST + 3].map(|queue| client.on_queue(queue)).into();
    for _ in 0..20 {
        send(&mut client, 1);
        clients.iter_mut().for_each(|client| send(client, 1));
    }
}
