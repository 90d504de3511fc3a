//! Frontends that come and go, one after the other, some of them badly.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use gatherfs_support::daemon::{Daemon, PATIENCE, eventually};
use gatherfs_support::guest::client::{Call, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{ROOT, opcode};
use zerocopy::IntoBytes;

use super::{assert_serves, mount};

#[test]
fn the_daemon_ends_with_its_frontend() {
    let mut daemon = Daemon::start(&[]);
    let (guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.socket().exists(), "the socket is removed");
}

#[test]
fn a_daemon_that_keeps_listening_gives_the_next_frontend_a_session_of_its_own() {
    let daemon = Daemon::start(&["--keep-listening"]);
    daemon.put("file", "content");
    for _ in 0..3 {
        let (guest, mut client) = mount(daemon.socket());
        let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
        let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
        drop((guest, client));
        let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).expect("a connection");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        assert_eq!(client.statfs(ROOT).err(), Some(libc::EIO.into()), "no session before INIT");
        client.init().expect("INIT");
        assert_eq!(client.read(node, fh, 0, 16).err(), Some(libc::EBADF.into()));
        assert_eq!(client.getattr(node, None).err(), Some(libc::ESTALE.into()));
        assert_serves(&mut client, "dir");
    }
    assert_eq!(daemon.metrics().get("connections"), 6);
}

#[test]
fn a_second_frontend_waits_until_the_first_has_left() {
    let daemon = Daemon::start(&["--keep-listening"]);
    let (guest, mut client) = mount(daemon.socket());
    // Connected, as far as the kernel is concerned, before the first one does anything more.
    let stream = UnixStream::connect(daemon.socket()).expect("the socket has a queue");
    let second = std::thread::spawn(move || {
        let guest = Guest::from_stream(stream, &GuestOptions::default()).expect("a session");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.init().expect("INIT");
        assert_serves(&mut client, "second");
    });
    for i in 0..50 {
        assert_serves(&mut client, &format!("first {i}"));
    }
    assert!(!second.is_finished());
    drop((guest, client));
    second.join().expect("the second one is served");
}

/// A vhost-user message header: request, flags (version 1) and the length of what follows.
fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size].as_bytes().to_vec()
}

/// What bad frontends send before they leave.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", vec![]),
        ("a byte", vec![1]),
        ("half a header", header(1, 1, 0)[..7].to_vec()),
        ("a header whose body is missing", header(2, 1, 8)),
        ("a header with half of its body", [header(2, 1, 8), vec![0; 3]].concat()),
        ("an unknown request", header(9999, 1, 0)),
        ("a request of another version", header(1, 3, 0)),
        ("a body of four gigabytes", header(2, 1, u32::MAX)),
        ("a body of the wrong length", [header(2, 1, 3), vec![0; 3]].concat()),
        ("a memory table without descriptors", [header(5, 1, 40), vec![0xff; 40]].concat()),
        ("a kick of a queue that is not there", [header(12, 1, 8), 0x1ffu64.as_bytes().to_vec()].concat()),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("zeroes", vec![0; 10_000]),
        ("ones", vec![0xff; 10_000]),
    ]
}

/// Sends `bytes` and waits until the daemon hangs up.
fn say(daemon: &Daemon, what: &str, bytes: &[u8]) {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap_or_else(|e| panic!("a connection for {what}: {e}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // The daemon may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let end = stream.read_to_end(&mut Vec::new());
    let reset = end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
    assert!(end.is_ok() || reset, "{what}: the daemon does not hang up: {end:?}");
}

#[test]
fn a_frontend_that_speaks_garbage_ends_its_connection_and_no_other() {
    let mut daemon = Daemon::start(&["--keep-listening"]);
    for (what, bytes) in garbage() {
        say(&daemon, what, &bytes);
        assert!(daemon.is_running(), "after {what}");
    }
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
    assert_eq!(daemon.metrics().get("connections"), garbage().len() as u64 + 1);
}

#[test]
fn a_single_frontend_that_speaks_garbage_ends_the_daemon_with_a_sentence() {
    let mut daemon = Daemon::start(&[]);
    say(&daemon, "text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("vhost-user protocol"), "{}", daemon.log());
    assert!(!daemon.socket().exists());
}

#[test]
fn a_frontend_that_leaves_in_the_middle_of_requests_ends_its_connection_only() {
    let daemon = Daemon::start(&["--keep-listening"]);
    for _ in 0..10 {
        let (guest, mut client) = mount(daemon.socket());
        for _ in 0..100 {
            client.begin(&Call { room: 80, ..Call::new(opcode::STATFS, ROOT, &[]) });
        }
        drop((guest, client));
    }
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
}

/// Descriptors, threads and mappings of guest memory that a process has.
fn held(pid: u32) -> (usize, usize, usize) {
    let count = |list: &str| fs::read_dir(format!("/proc/{pid}/{list}")).expect("the process is there").count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process is there");
    (count("fd"), count("task"), maps.lines().filter(|line| line.contains("guest-memory")).count())
}

#[test]
fn frontends_that_come_and_go_leave_no_descriptor_thread_or_mapping_behind() {
    let daemon = Daemon::start(&["--keep-listening"]);
    daemon.put("file", "content");
    // The keeper has opened what it watches the worker by: it takes what the worker says after it has passed each signal on.
    for _ in 0..3 {
        let _counters = daemon.metrics();
    }
    let before = held(daemon.serving());
    for _ in 0..20 {
        let (_guest, mut client) = mount(daemon.socket());
        let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
        client.open(node, libc::O_RDONLY).expect("OPEN");
        client.opendir(ROOT).expect("OPENDIR");
        assert_serves(&mut client, "dir");
    }
    let mut after = before;
    let same = eventually(|| {
        after = held(daemon.serving());
        after == before
    });
    assert!(same, "descriptors, threads and mappings were {before:?} and are {after:?}");
}
