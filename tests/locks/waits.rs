//! SETLKW: waits that hold no thread, and what ends them.

use gatherfs_support::daemon::{eventually, status_field};
use gatherfs_support::guest::fuse::{FlushIn, ReleaseIn};

use super::*;

/// Waits until `count` requests wait for a lock.
fn assert_waiting(daemon: &Daemon, count: u64) {
    assert!(eventually(|| daemon.metrics().get("parked") == count), "{count} wait");
}

fn threads(daemon: &Daemon) -> usize {
    status_field(daemon.serving(), "Threads").parse().expect("a number")
}

#[test]
fn a_wait_ends_when_the_holder_unlocks() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let waiting = l.wait(2, WRITE);
    for _ in 0..20 {
        assert_eq!(l.get(3, READ).pid, 1001, "the queue is served meanwhile");
    }
    assert!(!l.client.is_answered(&waiting));
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    assert_eq!(l.end_of(waiting), 0);
    assert_eq!(l.get(1, READ).pid, 1002);
}

#[test]
fn a_wait_ends_when_the_holders_lock_becomes_weaker() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, i64::MAX as u64), 0);
    let waiting = l.wait(2, READ);
    assert_eq!(l.set(1, READ, 0, i64::MAX as u64), 0);
    assert_eq!(l.end_of(waiting), 0);
}

#[test]
fn a_wait_ends_when_a_process_of_the_host_unlocks() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    assert_eq!(host_set(&host, WRITE), 0);
    let waiting = l.wait(1, WRITE);
    assert_eq!(l.get(2, READ).kind, WRITE as u32);
    assert!(!l.client.is_answered(&waiting));
    drop(host);
    assert_eq!(l.end_of(waiting), 0);
}

#[test]
fn a_wait_ends_when_the_holder_closes_the_file() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let waiting = l.wait(2, WRITE);
    let flush = FlushIn { fh: l.fh, lock_owner: 1, ..FlushIn::default() };
    assert_eq!(l.client.raw(opcode::FLUSH, l.node, flush.as_bytes(), 0).expect("FLUSH").header.error, 0);
    assert_eq!(l.end_of(waiting), 0);
}

#[test]
fn a_wait_ends_with_its_file_and_with_its_node() {
    let (daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let fh = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    let request = LkIn { fh, ..l.request(2, WRITE, 0, 9) };
    let by_other_file = l.client.begin(&Call::new(opcode::SETLKW, l.node, &[request.as_bytes()]));
    let by_node = l.wait(3, WRITE);
    let release = ReleaseIn { fh, ..ReleaseIn::default() };
    assert_waiting(&daemon, 2);
    assert_eq!(l.client.raw(opcode::RELEASE, l.node, release.as_bytes(), 0).expect("RELEASE").header.error, 0);
    assert_eq!(l.end_of(by_other_file), libc::EBADF);
    assert!(!l.client.is_answered(&by_node));
    l.client.forget(l.node, 1).expect("FORGET");
    assert_eq!(l.end_of(by_node), libc::ESTALE);
}

#[test]
fn processes_that_wait_for_each_other_are_told_so() {
    let (daemon, mut l) = locker();
    assert_eq!((l.set(1, WRITE, 0, 0), l.set(2, WRITE, 1, 1), l.set(3, WRITE, 2, 2)), (0, 0, 0));
    let wait_for = |l: &mut Locker, process, byte| {
        let request = l.request(process, WRITE, byte, byte);
        l.client.begin(&Call::new(opcode::SETLKW, l.node, &[request.as_bytes()]))
    };
    let first = wait_for(&mut l, 1, 1);
    let second = wait_for(&mut l, 2, 2);
    assert_waiting(&daemon, 2);
    let third = wait_for(&mut l, 3, 0);
    assert_eq!(l.end_of(third), libc::EDEADLK);
    assert!(!l.client.is_answered(&first));
    assert_eq!(l.set(3, NONE, 2, 2), 0);
    assert_eq!(l.end_of(second), 0);
    assert_eq!((l.set(2, NONE, 1, 2), l.end_of(first)), (0, 0));
}

#[test]
fn thousands_wait_without_a_thread_each_and_each_is_served_once() {
    const WAITERS: u64 = 2000;
    let options = GuestOptions { queue_size: 8192, ..GuestOptions::default() };
    let (daemon, mut l) = started(&[], &options);
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let mut waiting: Vec<_> = (0..WAITERS).map(|i| (10 + i, l.wait(10 + i, WRITE))).collect();
    assert_waiting(&daemon, WAITERS);
    assert!(threads(&daemon) < 30, "{} threads", threads(&daemon));
    assert_eq!(l.get(2, READ).pid, 1001, "the queue is served");
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    for _ in 0..WAITERS {
        let mut holder = None;
        assert!(eventually(|| {
            holder = waiting.iter().position(|(_, pending)| l.client.is_answered(pending));
            holder.is_some()
        }));
        let (process, pending) = waiting.swap_remove(holder.expect("one has it"));
        assert_eq!(l.end_of(pending), 0);
        assert!(waiting.iter().all(|(_, pending)| !l.client.is_answered(pending)), "two hold it");
        assert_eq!(l.set(process, NONE, 0, i64::MAX as u64), 0);
    }
}

#[test]
fn waits_leave_half_of_the_ring_to_the_requests_that_end_them() {
    let options = GuestOptions { queue_size: 64, ..GuestOptions::default() };
    let (daemon, mut l) = started(&[], &options);
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let waiting: Vec<_> = (0..32).map(|i| l.wait(10 + i, READ)).collect();
    assert_waiting(&daemon, 32);
    let one_more = l.wait(100, READ);
    assert_eq!(l.end_of(one_more), libc::ENOLCK);
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    for pending in waiting {
        assert_eq!(l.end_of(pending), 0);
    }
    assert_eq!(l.set(1, WRITE, 0, 9), libc::EAGAIN);
    let again = l.wait(1, READ);
    assert_eq!(l.end_of(again), 0);
}

#[test]
fn a_wait_outlives_a_stop_of_its_queue_and_a_new_guest_hears_nothing_of_it() {
    let (daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let host = on_host(&daemon);
    let waiting = l.wait(2, WRITE);
    assert_waiting(&daemon, 1);
    // The wait does not hold the stop up.
    let base = l.guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
    l.guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    assert!(!l.client.is_answered(&waiting));
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    assert_eq!(l.end_of(waiting), 0);

    // An answer that comes while the queue is stopped is given when it runs again.
    assert_eq!(l.set(2, NONE, 0, i64::MAX as u64), 0);
    assert_eq!(host_set(&host, WRITE), 0);
    let waiting = l.wait(2, WRITE);
    assert_waiting(&daemon, 2);
    let base = l.guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
    assert_eq!(host_set(&host, NONE), 0);
    let is_held = || {
        let held = host_set(&host, READ) == libc::EAGAIN;
        host_set(&host, NONE);
        held
    };
    assert!(eventually(is_held), "the guest has it");
    assert!(!l.client.is_answered(&waiting), "a stopped queue is not written to");
    l.guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    assert_eq!(l.end_of(waiting), 0);

    l.wait(4, WRITE);
    assert_waiting(&daemon, 3);
    l.guest.reboot(false).expect("a reboot");
    l.client.init().expect("INIT");
    let used = l.guest.lock(FIRST_REQUEST).used_idx();
    assert_eq!(used, 1, "INIT is all that was answered");
    assert_eq!(host_set(&host, WRITE), 0);
}

#[test]
fn a_wait_that_did_not_begin_is_no_part_of_a_deadlock() {
    let options = GuestOptions { queue_size: 64, ..GuestOptions::default() };
    let (daemon, mut l) = started(&[], &options);
    let wait = |l: &mut Locker, process, kind, byte| {
        let request = l.request(process, kind, byte, byte);
        l.client.begin(&Call::new(opcode::SETLKW, l.node, &[request.as_bytes()]))
    };
    assert_eq!((l.set(1, WRITE, 0, 0), l.set(2, WRITE, 1, 1)), (0, 0));
    let waiting: Vec<_> = (0..32).map(|i| wait(&mut l, 10 + i, READ, 0)).collect();
    assert_waiting(&daemon, 32);
    let refused = wait(&mut l, 2, READ, 0);
    assert_eq!(l.end_of(refused), libc::ENOLCK);
    assert_eq!(l.set(1, NONE, 0, 0), 0);
    for pending in waiting {
        assert_eq!(l.end_of(pending), 0);
    }
    let waits = wait(&mut l, 1, WRITE, 1);
    assert_eq!(l.set(2, NONE, 1, 1), 0);
    assert_eq!(l.end_of(waits), 0, "process 2 waits for nothing");
}

#[test]
fn who_has_unlocked_is_waited_for_no_more() {
    let (_daemon, mut l) = locker();
    for round in 0..200 {
        assert_eq!((l.set(1, WRITE, 0, 0), l.set(2, WRITE, 1, 1)), (0, 0));
        let first = l.wait_for(1, WRITE, 1, 1);
        assert_eq!(l.set(2, NONE, 1, 1), 0);
        let second = l.wait_for(2, WRITE, 0, 0);
        assert_eq!(l.end_of(first), 0);
        assert_eq!(l.set(1, NONE, 0, 0), 0);
        assert_eq!(l.end_of(second), 0, "round {round}: process 1 has what it waited for");
        assert_eq!((l.set(1, NONE, 0, i64::MAX as u64), l.set(2, NONE, 0, i64::MAX as u64)), (0, 0));
    }
}
