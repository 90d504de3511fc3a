//! FORGETs that come close together are collected: fewer kicks, fewer calls, and none is left over.

use std::time::Duration;

use gatherfs_support::daemon::eventually;
use gatherfs_support::guest::frontend::{GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::ROOT;

use super::{assert_serves, mounted};

const COUNT: u64 = 1000;

#[test]
fn forgets_that_come_close_together_need_few_kicks() {
    let (daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let node = client.mkdir(ROOT, "d", 0o755).expect("MKDIR").nodeid;
    for _ in 1..COUNT {
        client.lookup(ROOT, "d").expect("LOOKUP");
    }
    let before = guest.lock(HIPRIO).notifications().0;
    for _ in 0..COUNT {
        client.forget_unwaited(node, 1).expect("FORGET");
    }
    let kicks = guest.lock(HIPRIO).notifications().0 - before;
    // Each of them needs a pause of two milliseconds.
    assert!(kicks < COUNT / 2, "{kicks} kicks for {COUNT} FORGETs");
    assert!(eventually(|| daemon.metrics().requests("FORGET") == COUNT), "all are served without another request");
}

#[test]
fn the_guest_is_called_for_the_last_forget_without_another_request() {
    for event_idx in [false, true] {
        let (_daemon, _guest, mut client) = mounted(&[], &GuestOptions { event_idx, ..GuestOptions::default() });
        // The first is served at once, and the second collected, unless this thread is slow.
        for _ in 0..200 {
            client.forget_unwaited(ROOT, 0).expect("FORGET");
            client.forget(ROOT, 0).expect("FORGET: the guest sleeps until it is called");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn a_queue_that_collects_stops_and_starts() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    for _ in 0..50 {
        for _ in 0..3 {
            client.forget_unwaited(ROOT, 0).expect("FORGET");
        }
        let base = guest.stop_queue(HIPRIO).expect("GET_VRING_BASE");
        guest.restart_queue(HIPRIO, base).expect("the queue starts");
        client.forget(ROOT, 0).expect("FORGET");
    }
    assert_serves(&mut client);
}
