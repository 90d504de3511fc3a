//! Locks and waits outlive the worker: each test kills it while locks are held or waited for.

use std::time::Duration;

use gatherfs_support::daemon::{Killer, children_of, eventually, only_child};
use gatherfs_support::guest::fuse::{FlushIn, ReleaseIn};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Kills the worker, and returns when the next one serves.
fn kill_worker(daemon: &Daemon, l: &mut Locker) {
    let worker = only_child(daemon.keeper());
    kill_process(Pid::from_raw(worker.cast_signed()).expect("a process"), Signal::KILL).expect("a kill");
    assert!(eventually(|| matches!(children_of(daemon.keeper())[..], [next] if next != worker)), "another worker");
    l.client.getattr(l.node, Some(l.fh)).expect("GETATTR");
}

/// Waits until as many as `count` requests have waited in the present worker's life.
fn assert_waiting(daemon: &Daemon, count: u64) {
    assert!(eventually(|| daemon.metrics().get("parked") == count), "{count} have waited");
}

#[test]
fn locks_survive() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    assert_eq!((l.set(1, WRITE, 0, 9), l.set(1, READ, 20, 29), l.set(2, READ, 20, 39)), (0, 0, 0));
    for life in 2..5 {
        kill_worker(&daemon, &mut l);
        assert_eq!(host_set(&host, READ), libc::EAGAIN, "life {life}: the host does not get it");
        assert_eq!(l.set(3, READ, 5, 5), libc::EAGAIN, "nor does another process of the guest");
        assert_eq!(l.set(3, WRITE, 25, 25), libc::EAGAIN);
        assert_eq!(l.set(1, WRITE, 0, 9), 0, "its owner has it");
        assert_eq!(l.set(2, READ, 25, 25), 0);
    }
    // Parts of what earlier lives locked, and all of it.
    assert_eq!(l.set(1, NONE, 3, 5), 0);
    kill_worker(&daemon, &mut l);
    assert_eq!((l.set(3, WRITE, 3, 5), l.set(3, WRITE, 2, 2)), (0, libc::EAGAIN));
    let flush = FlushIn { fh: l.fh, lock_owner: 1, ..FlushIn::default() };
    assert_eq!(l.client.raw(opcode::FLUSH, l.node, flush.as_bytes(), 0).expect("FLUSH").header.error, 0);
    assert_eq!((l.set(3, NONE, 0, i64::MAX as u64), l.set(2, NONE, 0, i64::MAX as u64)), (0, 0));
    kill_worker(&daemon, &mut l);
    assert_eq!((host_set(&host, WRITE), host_set(&host, NONE)), (0, 0), "nothing is held");
}

#[test]
fn locks_of_flock_survive_and_end_with_their_file() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    assert_eq!(l.flock(5, WRITE), 0);
    kill_worker(&daemon, &mut l);
    assert_eq!(host_flock(&host, libc::LOCK_SH), libc::EAGAIN);
    assert_eq!((l.flock(6, READ), l.flock(5, READ)), (libc::EAGAIN, 0), "and becomes weaker");
    kill_worker(&daemon, &mut l);
    assert_eq!((host_flock(&host, libc::LOCK_EX), host_flock(&host, libc::LOCK_SH)), (libc::EAGAIN, 0));
    assert_eq!(l.flock(6, READ), 0);
    kill_worker(&daemon, &mut l);
    assert_eq!(l.flock(6, NONE), 0);
    let release = ReleaseIn { fh: l.fh, lock_owner: 5, release_flags: flag::RELEASE_FLOCK_UNLOCK, ..ReleaseIn::default() };
    assert_eq!(l.client.raw(opcode::RELEASE, l.node, release.as_bytes(), 0).expect("RELEASE").header.error, 0);
    assert_eq!(host_flock(&host, libc::LOCK_EX), 0, "nothing is held");
}

#[test]
fn a_lock_whose_description_was_opened_anew_for_writing_survives() {
    let (daemon, mut l) = started(&[], &GuestOptions::default());
    let host = on_host(&daemon);
    let for_reading = l.client.open(l.node, libc::O_RDONLY).expect("OPEN").fh;
    let shared = LkIn { fh: for_reading, ..l.request(1, READ, 0, 9) };
    assert_eq!(errno_of(l.client.setlk(l.node, &shared, false)), 0);
    assert_eq!(l.set(1, WRITE, 20, 29), 0);
    kill_worker(&daemon, &mut l);
    assert_eq!((l.get(2, WRITE).kind, host_set(&host, READ)), (READ as u32, libc::EAGAIN));
    assert_eq!(l.set(1, WRITE, 0, 29), 0);
    kill_worker(&daemon, &mut l);
    assert_eq!(l.get(2, READ), FileLock { start: 0, end: 29, kind: WRITE as u32, pid: 1001 });
}

#[test]
fn getlk_names_the_pid_after_a_restart() {
    let (daemon, mut l) = locker();
    assert_eq!(l.set(7, WRITE, 100, 199), 0);
    assert_eq!(l.set(7, NONE, 120, 129), 0);
    for _ in 0..2 {
        kill_worker(&daemon, &mut l);
        assert_eq!(l.get(8, READ), FileLock { start: 100, end: 119, kind: WRITE as u32, pid: 1007 });
    }
    assert_eq!(l.set(7, NONE, 100, 119), 0);
    assert_eq!(l.get(8, READ), FileLock { start: 130, end: 199, kind: WRITE as u32, pid: 1007 });
}

#[test]
fn waits_survive() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    let (first, second) = (l.wait(2, WRITE), l.wait(3, WRITE));
    assert_waiting(&daemon, 2);
    for _ in 0..2 {
        kill_worker(&daemon, &mut l);
        assert_waiting(&daemon, 2);
        assert!(!l.client.is_answered(&first) && !l.client.is_answered(&second));
    }
    assert_eq!(l.set(1, NONE, 0, 9), 0);
    assert_eq!(l.end_of(first), 0, "in life 3");
    assert_eq!(l.get(1, READ).pid, 1002);
    kill_worker(&daemon, &mut l);
    assert_waiting(&daemon, 1);
    l.client.interrupt(second.unique).expect("INTERRUPT");
    assert_eq!(l.end_of(second), libc::EINTR);
    // One that waits for the host.
    assert_eq!((l.set(2, NONE, 0, i64::MAX as u64), host_set(&host, WRITE)), (0, 0));
    let third = l.wait(3, WRITE);
    assert_waiting(&daemon, 2);
    kill_worker(&daemon, &mut l);
    assert_waiting(&daemon, 1);
    assert_eq!(host_set(&host, NONE), 0);
    assert_eq!(l.end_of(third), 0);
    assert_eq!(host_set(&host, READ), libc::EAGAIN);
}

#[test]
fn a_deadlock_is_found_after_a_restart() {
    let (daemon, mut l) = locker();
    assert_eq!((l.set(1, WRITE, 0, 0), l.set(2, WRITE, 1, 1)), (0, 0));
    let first = l.wait_for(1, WRITE, 1, 1);
    assert_waiting(&daemon, 1);
    kill_worker(&daemon, &mut l);
    assert_waiting(&daemon, 1);
    let second = l.wait_for(2, WRITE, 0, 0);
    assert_eq!(l.end_of(second), libc::EDEADLK);
    assert!(!l.client.is_answered(&first));
    assert_eq!((l.set(2, NONE, 1, 1), l.end_of(first)), (0, 0));
}

#[test]
fn locks_of_a_forgotten_file_and_of_an_ended_session_end() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    kill_worker(&daemon, &mut l);
    l.client.forget(l.node, 1).expect("FORGET");
    assert!(eventually(|| host_set(&host, READ) == 0), "forgotten");
    assert_eq!(host_set(&host, NONE), 0);
    l.node = l.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    l.fh = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    kill_worker(&daemon, &mut l);
    l.guest.reboot(false).expect("a reboot");
    l.client.init().expect("INIT");
    assert!(eventually(|| host_set(&host, READ) == 0), "the session ended");
}

#[test]
fn locks_that_the_guest_keeps_are_not_the_daemons_after_a_restart_either() {
    let daemon = Daemon::start_on_tmpfs(&["--locks", "guest"]);
    daemon.put(FILE, [7; 4096]);
    let mut l = Locker::connect(daemon.socket(), &GuestOptions::default());
    assert_eq!((l.set(1, WRITE, 0, 9), l.flock(5, WRITE)), (libc::ENOSYS, libc::ENOSYS));
    kill_worker(&daemon, &mut l);
    assert_eq!((l.set(1, WRITE, 0, 9), l.flock(5, WRITE)), (libc::ENOSYS, libc::ENOSYS));
}

/// Random changes under kills: what a byte array says is what the guest is told, and what the host sees.
#[test]
fn locks_agree_with_an_array_of_bytes_under_kills() {
    const PROCESSES: usize = 3;
    const BYTES: usize = 40;
    // With a crash point every other step is a death.
    let steps = if std::env::var_os("GATHERFS_FAIL").is_some() { 500 } else { 3000 };
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    let killer = Killer::start(daemon.keeper(), 11, Duration::from_millis(30));
    let mut bytes = [[NONE; BYTES]; PROCESSES];
    let mut random = 5u64;
    let mut below = |count: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % count
    };
    for step in 0..steps {
        let (process, start) = (below(PROCESSES), below(BYTES));
        let end = start + below(BYTES - start);
        let kind = [READ, WRITE, NONE][below(3)];
        let conflicts = |other: &i32| kind != NONE && *other != NONE && (kind == WRITE || *other == WRITE);
        let is_held = (0..PROCESSES).any(|other| other != process && bytes[other][start..=end].iter().any(conflicts));
        let expected = if is_held { libc::EAGAIN } else { 0 };
        assert_eq!(l.set(process as u64, kind, start as u64, end as u64), expected, "step {step}");
        if !is_held {
            bytes[process][start..=end].fill(kind);
        }
        let told = l.get(100, WRITE);
        let holder = (0..PROCESSES).find(|process| told.kind != NONE as u32 && told.pid == 1000 + *process as u32);
        match holder {
            Some(holder) => {
                let kinds = &bytes[holder][told.start as usize..=told.end as usize];
                assert!(kinds.iter().all(|kind| *kind as u32 == told.kind), "step {step}: {told:?} and {kinds:?}");
            }
            None => assert!(told.kind == NONE as u32 && bytes.iter().flatten().all(|kind| *kind == NONE), "step {step}: {told:?}"),
        }
        let of_all: Vec<i32> = bytes.iter().flatten().copied().collect();
        let to_read = if of_all.contains(&WRITE) { libc::EAGAIN } else { 0 };
        assert_eq!((host_set(&host, READ), host_set(&host, NONE)), (to_read, 0), "step {step}");
    }
    let killed = killer.stop();
    assert!(killed > 0, "no worker was killed");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_death_between_two_stores_of_a_lock_loses_nothing() {
    // Later than the stores of one request, or no life would get beyond it.
    for selected in ["lock owner:5", "lock range:7", "lock range:8"] {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "restarts::locks_agree_with_an_array_of_bytes_under_kills"]).env("GATHERFS_FAIL", selected);
        let output = command.output().expect("a run");
        assert!(output.status.success(), "{selected}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
