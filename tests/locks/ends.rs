//! What ends a wait before the lock is free: INTERRUPT and the time limit.

use std::time::{Duration, Instant};

use gatherfs_support::daemon::eventually;

use super::*;

/// Waits until `count` requests wait for a lock or have waited.
fn assert_parked(daemon: &Daemon, count: u64) {
    assert!(eventually(|| daemon.metrics().get("parked") == count), "{count} wait");
}

impl Locker {
    /// Sends a SETLKW of the whole file by flock(2).
    fn wait_flock(&mut self, file: u64, kind: i32) -> Pending {
        let request = LkIn { lk_flags: flag::LK_FLOCK, ..self.request(file, kind, 0, i64::MAX as u64) };
        self.client.begin(&Call::new(opcode::SETLKW, self.node, &[request.as_bytes()]))
    }

    /// A SETLKW that carries the identity `unique`.
    fn wait_as(&mut self, unique: u64, process: u64) -> Pending {
        self.guest.use_unique_next(unique);
        let pending = self.wait(process, WRITE);
        assert_eq!(pending.unique, unique);
        pending
    }
}

#[test]
fn an_interrupt_ends_one_wait_with_eintr() {
    let (daemon, mut l) = locker();
    assert_eq!((l.set(1, WRITE, 0, 9), l.flock(1, WRITE)), (0, 0));
    let [first, second] = [2, 3].map(|process| l.wait(process, WRITE));
    let by_flock = l.wait_flock(2, READ);
    assert_parked(&daemon, 3);

    l.client.interrupt(first.unique).expect("INTERRUPT");
    assert_eq!(l.end_of(first), libc::EINTR);
    l.client.interrupt(by_flock.unique).expect("INTERRUPT");
    assert_eq!(l.end_of(by_flock), libc::EINTR);
    assert!(!l.client.is_answered(&second));
    assert_eq!(l.get(2, WRITE).pid, 1001, "the lock stays with its holder");
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    assert_eq!(l.end_of(second), 0);
    assert_eq!(l.get(2, WRITE).pid, 1003, "the process that was interrupted has nothing");
}

#[test]
fn an_interrupt_ends_a_wait_for_a_process_of_the_host() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    assert_eq!(host_set(&host, WRITE), 0);
    let waiting = l.wait(1, WRITE);
    assert_parked(&daemon, 1);
    l.client.interrupt(waiting.unique).expect("INTERRUPT");
    assert_eq!(l.end_of(waiting), libc::EINTR);
    assert_eq!(host_set(&host, NONE), 0);
    assert_eq!(host_set(&host, WRITE), 0, "the guest does not ask for it any more");
}

#[test]
fn an_interrupt_that_overtakes_its_request_ends_the_wait() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let unique = l.guest.next_unique() + 100;
    l.client.interrupt(unique).expect("INTERRUPT");
    let waiting = l.wait_as(unique, 2);
    assert_eq!(l.end_of(waiting), libc::EINTR);
    // It was for one request.
    let again = l.wait_as(unique, 2);
    assert!(!l.client.is_answered(&again));
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    assert_eq!(l.end_of(again), 0);
}

#[test]
fn an_interrupt_of_what_does_not_wait_ends_no_later_wait() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let unique = l.guest.next_unique() + 100;
    let ends: [fn(&mut Locker); 3] = [
        // Another request; a lock that is free; one that cannot be had.
        |l| assert_eq!(l.get(2, WRITE).pid, 1001),
        |l| {
            let free = l.wait_for(2, WRITE, 100, 199);
            assert_eq!(l.end_of(free), 0);
        },
        |l| {
            let senseless = l.wait_for(2, WRITE, 10, 9);
            assert_eq!(l.end_of(senseless), libc::EINVAL);
        },
    ];
    for act in ends {
        l.client.interrupt(unique).expect("INTERRUPT");
        l.guest.use_unique_next(unique);
        act(&mut l);
        let waiting = l.wait_as(unique, 3);
        assert_eq!(l.get(2, READ).pid, 1001, "the queue is served meanwhile");
        assert!(!l.client.is_answered(&waiting));
        l.client.interrupt(unique).expect("INTERRUPT");
        assert_eq!(l.end_of(waiting), libc::EINTR);
    }
}

#[test]
fn a_new_guest_is_not_interrupted_for_an_earlier_one() {
    let (_daemon, mut l) = locker();
    let unique = l.guest.next_unique() + 1000;
    l.client.interrupt(unique).expect("INTERRUPT");
    l.guest.reboot(false).expect("a reboot");
    l.client.init().expect("INIT");
    l.node = l.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    l.fh = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let waiting = l.wait_as(unique, 2);
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    assert_eq!(l.end_of(waiting), 0);
}

#[test]
fn interrupts_without_number_cost_nothing_that_lasts() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let first = l.guest.next_unique() + 1_000_000;
    for unique in (first..).step_by(2).take(2000) {
        l.client.interrupt(unique).expect("INTERRUPT");
    }
    // The oldest ones were forgotten, the last one was not.
    let forgotten = l.wait_as(first, 2);
    let last = l.wait_as(first + 2 * 1999, 3);
    assert_eq!(l.end_of(last), libc::EINTR);
    assert!(!l.client.is_answered(&forgotten));
}

#[test]
fn a_wait_ends_with_enolck_when_its_time_is_over() {
    let limit = Duration::from_millis(300);
    let (daemon, mut l) = started(&["--lock-wait", "0.3"], &GuestOptions::default());
    let host = on_host(&daemon);
    assert_eq!((l.set(1, WRITE, 0, 9), l.flock(1, WRITE)), (0, 0));
    let begun = Instant::now();
    let [record, flock] = [l.wait(2, WRITE), l.wait_flock(2, WRITE)];
    assert_eq!((l.end_of(record), l.end_of(flock)), (libc::ENOLCK, libc::ENOLCK));
    // Nothing else wakes the waiting thread for ten seconds.
    assert!((limit..Duration::from_secs(9)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(l.get(2, WRITE).pid, 1001);
    assert_eq!(l.set(1, NONE, 0, 9), 0);

    assert_eq!(host_set(&host, WRITE), 0);
    let begun = Instant::now();
    let foreign = l.wait(2, WRITE);
    assert_eq!(l.end_of(foreign), libc::ENOLCK);
    assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    assert_eq!(host_set(&host, NONE), 0);
    assert_eq!(host_set(&host, WRITE), 0, "the guest does not ask for it any more");
    assert_eq!(host_set(&host, NONE), 0);
    assert_eq!(l.set(2, WRITE, 0, 9), 0);
}

#[test]
fn a_wait_that_is_over_in_time_is_no_error() {
    let (_daemon, mut l) = started(&["--lock-wait", "3600"], &GuestOptions::default());
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let waiting = l.wait(2, WRITE);
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    assert_eq!(l.end_of(waiting), 0);
    // Not at all is a limit too.
    let (_daemon, mut l) = started(&["--lock-wait", "0"], &GuestOptions::default());
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let waiting = l.wait(2, WRITE);
    assert_eq!(l.end_of(waiting), libc::ENOLCK);
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    let waiting = l.wait(2, WRITE);
    assert_eq!(l.end_of(waiting), 0);
}
