//! A program that cannot serve: its worker ends at its start, wherever that is, or comes to no end there, and the program before goes on.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use gatherfs::sys::crash_plan::CrashPlan;
use gatherfs_support::daemon::{Daemon, PATIENCE, Scratch, built_program, eventually};
use gatherfs_support::guest::client::{CallError, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;

use crate::bench::wait_until_at_rest;
use crate::quarantine::POISON;

/// gatherfsctl upgrade to the program that runs: its exit status, and what it printed.
fn upgrade(daemon: &Daemon) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatherfsctl"));
    let output = command.arg("--socket-path").arg(daemon.socket()).arg("upgrade").arg(built_program()).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A daemon whose workers die as the plan says, and a guest that has a file open.
fn started() -> (CrashPlan, Daemon, Client, (u64, u64)) {
    let scratch = Scratch::on_tmpfs();
    let path = scratch.join("plan");
    let plan = CrashPlan::map(&path).unwrap();
    let daemon = Daemon::start_with(scratch, &["--log-level=info"], &[("GATHERFS_CRASHES", &path)]);
    let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).unwrap();
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().unwrap();
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
    let file = (made.entry.nodeid, made.open.fh);
    client.write(file.0, file.1, 0, b"contents").unwrap();
    (plan, daemon, client, file)
}

#[test]
fn a_program_that_cannot_serve_is_followed_by_the_one_before() {
    let (plan, daemon, mut client, (node, fh)) = started();
    wait_until_at_rest(&daemon);
    plan.begin(&[], false);
    assert_eq!(upgrade(&daemon).0, Some(0), "{}", daemon.log());
    wait_until_at_rest(&daemon);
    let points = plan.passed();
    let ready = points.iter().position(|name| name.contains("ready")).unwrap_or_else(|| panic!("{points:?}"));
    assert!(ready > 2, "{points:?}");
    let keeper = daemon.keeper();
    for at in 0..=u32::try_from(ready).unwrap() {
        wait_until_at_rest(&daemon);
        plan.begin(&[(at, libc::SIGABRT)], false);
        let (status, said) = upgrade(&daemon);
        let name = &points[at as usize];
        assert!(eventually(|| plan.deaths() == 1), "{name}: {said}{}", daemon.log());
        plan.end();
        if at as usize == ready {
            // It had said that it serves. It is gone back from all the same.
            assert!(eventually(|| daemon.log().contains("the program before takes over again")), "{name}: {said}{}", daemon.log());
            assert!(eventually(|| daemon.log().matches("the upgrade is refused").count() == ready + 1), "{name}: {}", daemon.log());
        } else {
            let is_refused = status == Some(1) && said.contains("signal 6 (SIGABRT); the program before serves on");
            assert!(is_refused, "{name}: {status:?} {said}{}", daemon.log());
        }
        assert_eq!(client.read(node, fh, 0, 100).unwrap_or_else(|e| panic!("{name}: {e}, {}", daemon.log())), b"contents");
        assert_eq!((client.lookup(ROOT, "file").unwrap().nodeid, daemon.keeper()), (node, keeper), "{name}");
    }
    assert_eq!(upgrade(&daemon).0, Some(0), "{}", daemon.log());
}

/// A worker that stops itself hangs: nothing lets it go on.
#[test]
fn a_program_whose_worker_hangs_is_followed_by_the_one_before() {
    let (plan, daemon, mut client, (node, fh)) = started();
    wait_until_at_rest(&daemon);
    plan.begin(&[(0, libc::SIGSTOP)], false);
    let (status, said) = upgrade(&daemon);
    plan.end();
    let is_refused = status == Some(1) && said.contains("for it was not ready after 10 s; the program before serves on");
    assert!(is_refused && plan.deaths() == 1, "{status:?} {said}{}", daemon.log());
    assert_eq!(client.read(node, fh, 0, 100).unwrap_or_else(|e| panic!("{e}, {}", daemon.log())), b"contents");
    assert_eq!(upgrade(&daemon).0, Some(0), "{}", daemon.log());
}

/// The request may be to blame, and not the program: it ends two workers, of whichever, and no third one.
#[test]
fn a_request_that_ends_a_worker_of_each_program_is_answered_with_an_error() {
    let daemon = Daemon::start_with(Scratch::on_tmpfs(), &["--log-level=info"], &[("GATHERFS_FAULT", Path::new(POISON))]);
    let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).unwrap();
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().unwrap();
    assert_eq!(upgrade(&daemon).0, Some(0), "{}", daemon.log());
    assert_eq!(client.lookup(ROOT, POISON).map_err(|e| e.to_string()).err(), Some(CallError::Errno(libc::EIO).to_string()));
    // Behind this line the log has all that was logged before.
    assert_eq!(daemon.metrics().get("quarantined"), 1);
    let log = daemon.log();
    assert_eq!(log.matches("by signal 11 (SIGSEGV); the program before takes over again").count(), 1, "{log}");
    assert_eq!(log.matches("by signal 11 (SIGSEGV) while it executed one request alone").count(), 1, "{log}");
    assert_eq!(log.matches("ERROR the worker was ended by signal 11 (SIGSEGV)").count(), 2, "{log}");
}

/// Whatever becomes of its first worker.
#[test]
fn a_service_manager_is_told_that_the_daemon_is_ready_where_the_first_worker_was_not() {
    let scratch = Scratch::on_tmpfs();
    let (path, notify) = (scratch.join("plan"), scratch.join("notify"));
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let plan = CrashPlan::map(&path).unwrap();
    plan.begin(&[(0, libc::SIGKILL)], false);
    let daemon = Daemon::start_with(scratch, &["--log-level=info"], &[("GATHERFS_CRASHES", &path), ("NOTIFY_SOCKET", &notify)]);
    daemon.wait_for_line("the worker was ended by signal 9 (SIGKILL)");
    assert_eq!(plan.passed()[0], "rings");
    let (mut heard, mut len) = ([0; 4096], 0);
    while &heard[..len] != b"READY=1" {
        len = manager.recv(&mut heard).unwrap_or_else(|e| panic!("no READY=1: {e}, {}", daemon.log()));
    }
}
