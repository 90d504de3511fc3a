//! The keeper: the process that owns the VMM's connection, and its worker, which serves. What a VMM sees must not depend on whether
//! there is one.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use gatherfs_support::daemon::{Daemon, children_of, eventually, is_root, is_there, status_field};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process};
use vhost::vhost_user::message::FrontendReq;

/// The ways to run the daemon that a VMM must not tell apart.
const WAYS: [&[&str]; 2] = [&[], &["--no-keeper"]];

fn mount(daemon: &Daemon) -> (Arc<Guest>, Client) {
    let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (guest, client)
}

fn assert_serves(client: &mut Client) {
    assert!(client.getattr(ROOT, None).is_ok(), "GETATTR");
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process id"), signal).expect("the process is there");
}

/// The sandboxes that this user may have.
fn sandboxes() -> &'static [&'static str] {
    if is_root("a sandbox") { &["none", "chroot", "namespace"] } else { &["none"] }
}

/// The keeper of a daemon in `sandbox`, and its worker.
fn processes(daemon: &Daemon, sandbox: &str) -> (u32, u32) {
    let keeper = daemon.keeper();
    let workers = children_of(keeper);
    assert_eq!(workers.len(), 1, "--sandbox {sandbox}: one worker");
    (keeper, workers[0])
}

/// Whether there is a worker.
fn is_serving(daemon: &Daemon) -> bool {
    children_of(daemon.keeper()).len() == 1
}

fn guest_memory(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process is there");
    maps.lines().filter(|line| line.contains("guest-memory")).count()
}

#[test]
fn the_worker_is_a_child_of_the_keeper_and_shares_its_table_of_descriptors() {
    for sandbox in sandboxes() {
        let daemon = Daemon::start(&["--sandbox", sandbox]);
        let (_guest, mut client) = mount(&daemon);
        assert_serves(&mut client);
        let (keeper, worker) = processes(&daemon, sandbox);
        // KCMP_FILES and KCMP_VM (man kcmp(2)): 0 where both have the same.
        let is_same = |kind: libc::c_long| {
            // SAFETY: the call takes integers only.
            unsafe { libc::syscall(libc::SYS_kcmp, keeper, worker, kind, 0, 0) }
        };
        if is_root("kcmp(2)") {
            assert_eq!(is_same(2), 0, "--sandbox {sandbox}: one table");
            assert!(is_same(1) > 0, "--sandbox {sandbox}: two memories");
        }
        let first = status_field(keeper, "NSpid").split_whitespace().last().map(str::to_owned);
        assert_eq!(first.as_deref() == Some("1"), *sandbox == "namespace", "the keeper is the init of the pid namespace");
    }
}

#[test]
fn the_keeper_has_one_thread_no_guest_memory_and_no_rights_in_effect() {
    for sandbox in sandboxes() {
        let daemon = Daemon::start(&["--sandbox", sandbox]);
        let (_guest, mut client) = mount(&daemon);
        assert_serves(&mut client);
        let (keeper, worker) = processes(&daemon, sandbox);
        assert_eq!((guest_memory(keeper), guest_memory(worker) > 0), (0, true), "--sandbox {sandbox}");
        assert_eq!(status_field(keeper, "Threads"), "1", "--sandbox {sandbox}");
        assert_eq!(status_field(keeper, "CapEff"), "0000000000000000", "--sandbox {sandbox}");
        assert_eq!((status_field(keeper, "Seccomp"), status_field(keeper, "NoNewPrivs")), ("2".into(), "1".into()), "--sandbox {sandbox}");
    }
}

#[test]
fn each_worker_has_a_list_of_system_calls_beyond_the_keepers() {
    for sandbox in sandboxes() {
        let daemon = Daemon::start(&["--sandbox", sandbox]);
        let filters = |pid: u32| status_field(pid, "Seccomp_filters").parse::<u32>().expect("a number");
        let (_, first) = processes(&daemon, sandbox);
        kill(first, Signal::KILL);
        assert!(eventually(|| !is_there(first) && is_serving(&daemon)), "--sandbox {sandbox}: {}", daemon.log());
        let (_guest, mut client) = mount(&daemon);
        assert_serves(&mut client);
        let (keeper, second) = processes(&daemon, sandbox);
        // Two filters are one list, and where the root directory is the share, one more keeps its paths away (sandbox/seccomp.rs).
        let here = filters(std::process::id()) + u32::from(*sandbox != "none");
        assert_eq!((filters(keeper), filters(second)), (here + 2, here + 4), "--sandbox {sandbox}");
    }
}

#[test]
fn without_a_keeper_there_is_one_process() {
    let mut daemon = Daemon::start(&["--no-keeper"]);
    let (guest, mut client) = mount(&daemon);
    assert_serves(&mut client);
    assert!(daemon.children().is_empty());
    assert!(guest_memory(daemon.pid()) > 0);
    drop((guest, client));
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

#[test]
fn a_worker_that_is_killed_before_a_vmm_comes_is_replaced() {
    for sandbox in sandboxes() {
        let mut daemon = Daemon::start(&["--sandbox", sandbox]);
        let mut dead = 0;
        for signal in [Signal::KILL, Signal::ABORT, Signal::SYS, Signal::ILL] {
            let (_, worker) = processes(&daemon, sandbox);
            assert_ne!(worker, dead);
            dead = worker;
            kill(worker, signal);
            assert!(eventually(|| !is_there(worker) && is_serving(&daemon)), "--sandbox {sandbox}: {}", daemon.log());
        }
        let (guest, mut client) = mount(&daemon);
        assert_serves(&mut client);
        drop((guest, client));
        assert_eq!(daemon.wait().code(), Some(0), "--sandbox {sandbox}: {}", daemon.log());
        assert_eq!(daemon.log().matches("another one is started").count(), 4, "--sandbox {sandbox}: {}", daemon.log());
    }
}

#[test]
fn the_worker_ends_with_its_keeper() {
    for sandbox in sandboxes() {
        let mut daemon = Daemon::start(&["--sandbox", sandbox]);
        let (guest, mut client) = mount(&daemon);
        assert_serves(&mut client);
        let (keeper, worker) = processes(&daemon, sandbox);
        kill(keeper, Signal::KILL);
        assert!(eventually(|| !is_there(worker)), "--sandbox {sandbox}: worker {worker} lives on");
        assert!(!daemon.wait().success(), "--sandbox {sandbox}");
        drop((guest, client));
    }
}

#[test]
fn every_kind_of_message_is_passed_on_with_its_descriptors() {
    for way in WAYS {
        let daemon = Daemon::start(&[&["--tag", "witness", "--keep-listening"], way].concat());
        for _ in 0..2 {
            let (guest, mut client) = mount(&daemon);
            let tag = guest.info().config.as_ref().map(|(tag, _)| tag.as_str());
            assert_eq!(tag, Some("witness"), "{way:?}: GET_CONFIG");
            // The table with a region more, one less, and as a whole.
            guest.add_region(1 << 40, 1 << 20).expect("ADD_MEM_REG");
            guest.remove_region(1 << 40).expect("REM_MEM_REG");
            guest.send_memory().expect("SET_MEM_TABLE");
            guest.set_log(true).expect("SET_LOG_BASE");
            assert_serves(&mut client);
            assert!(!guest.take_dirty_pages().is_empty(), "{way:?}: the log is written");
            guest.set_log(false).expect("SET_FEATURES");
            let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
            guest.restart_queue(FIRST_REQUEST, base).expect("SET_VRING_BASE, SET_VRING_KICK");
            guest.set_call(FIRST_REQUEST).expect("SET_VRING_CALL");
            guest.enable_queue(FIRST_REQUEST, false).expect("SET_VRING_ENABLE");
            guest.enable_queue(FIRST_REQUEST, true).expect("SET_VRING_ENABLE");
            assert_serves(&mut client);
            guest.reboot(true).expect("RESET_DEVICE");
            client.init().expect("INIT");
            assert_serves(&mut client);
        }
    }
}

/// A message: header and payload.
fn message(request: FrontendReq, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = [u32::from(request), flags, u32::try_from(payload.len()).expect("a short payload")];
    header.iter().flat_map(|word| word.to_ne_bytes()).chain(payload.iter().copied()).collect()
}

/// Sends `bytes` with `count` descriptors.
fn send(stream: &UnixStream, bytes: &[u8], count: usize) {
    let fds: Vec<OwnedFd> = (0..count).map(|_| fs::File::open("/dev/null").expect("a descriptor").into()).collect();
    send_with(stream, bytes, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>());
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    assert_eq!(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL), Ok(bytes.len()));
}

#[test]
fn the_channel_for_requests_of_the_backend_is_held_as_long_as_the_connection() {
    // VHOST_USER_F_PROTOCOL_FEATURES with VIRTIO_F_VERSION_1, and VHOST_USER_PROTOCOL_F_BACKEND_REQ.
    let (features, protocol_features) = (1u64 << 30 | 1 << 32, 1u64 << 5);
    for way in WAYS {
        let daemon = Daemon::start(&[&["--keep-listening"], way].concat());
        let mut stream = UnixStream::connect(daemon.socket()).expect("a connection");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        stream.write_all(&message(FrontendReq::SET_FEATURES, 1, &features.to_ne_bytes())).expect("a message");
        stream.write_all(&message(FrontendReq::SET_PROTOCOL_FEATURES, 1, &protocol_features.to_ne_bytes())).expect("a message");
        send_with(&stream, &message(FrontendReq::SET_BACKEND_REQ_FD, 1, &[]), &[theirs.as_fd()]);
        drop(theirs);
        stream.write_all(&message(FrontendReq::GET_FEATURES, 1, &[])).expect("a message");
        stream.read_exact(&mut [0; 20]).expect("its reply, after the others");
        ours.set_nonblocking(true).expect("a socket");
        let read = || (&ours).read(&mut [0]).map_err(|e| e.kind());
        assert_eq!(read(), Err(std::io::ErrorKind::WouldBlock), "{way:?}: the other end is held");
        drop(stream);
        assert!(eventually(|| read() == Ok(0)), "{way:?}: the other end is closed");
    }
}

/// SET_MEM_TABLE of `count` regions.
fn memory_table(count: u32) -> Vec<u8> {
    let regions = (0..u64::from(count)).flat_map(|at| [at << 20, 1 << 20, at << 20, 0]).flat_map(u64::to_ne_bytes);
    let payload: Vec<u8> = count.to_ne_bytes().into_iter().chain([0; 4]).chain(regions).collect();
    message(FrontendReq::SET_MEM_TABLE, 1, &payload)
}

/// What the daemon says of each frontend that breaks the protocol, without time and level.
fn complaints(log: &str) -> Vec<String> {
    log.lines().filter_map(|line| line.find("the frontend broke").map(|at| line[at..].to_owned())).collect()
}

fn open_descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.serving())).expect("the process is there").count()
}

#[test]
fn what_is_no_message_ends_its_connection_as_without_a_keeper() {
    let reserved = message(FrontendReq::GET_FEATURES, 0x101, &[]);
    let version = message(FrontendReq::GET_FEATURES, 2, &[]);
    let mut unknown = message(FrontendReq::GET_FEATURES, 1, &[]);
    unknown[..4].copy_from_slice(&9999u32.to_ne_bytes());
    let mut huge = message(FrontendReq::GET_FEATURES, 1, &[]);
    huge[8..].copy_from_slice(&u32::MAX.to_ne_bytes());
    let short = message(FrontendReq::SET_FEATURES, 1, &[0; 3]);
    // Bytes, and descriptors with them; more than 32 have no place in a message.
    let cases: [(&[u8], usize); 10] = [
        (&reserved, 0),
        (&version, 0),
        (&unknown, 0),
        (&huge, 0),
        (&short, 0),
        (&[0xff; 4096], 0),
        (&message(FrontendReq::SET_OWNER, 1, &[]), 9),
        (&memory_table(2), 9),
        (&memory_table(9), 2),
        (&memory_table(8), 40),
    ];
    let said = WAYS.map(|way| {
        let daemon = Daemon::start(&[&["--keep-listening"], way].concat());
        // A daemon that has just started still opens some.
        drop(mount(&daemon));
        assert!(eventually(|| daemon.log().contains("the VMM disconnected")));
        (0..3).for_each(|_| _ = daemon.metrics());
        let before = open_descriptors(&daemon);
        for (number, (bytes, fds)) in cases.iter().enumerate() {
            let mut stream = UnixStream::connect(daemon.socket()).expect("a connection");
            send(&stream, bytes, *fds);
            // A reset is an end too: bytes were left unread.
            let ended = stream.read_to_end(&mut Vec::new());
            assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
            assert!(eventually(|| complaints(&daemon.log()).len() == number + 1), "{way:?}, case {number}: {}", daemon.log());
        }
        let (guest, mut client) = mount(&daemon);
        assert_serves(&mut client);
        drop((guest, client));
        // One that a starting worker has for a moment may have been counted.
        assert!(eventually(|| open_descriptors(&daemon) <= before), "{way:?}: {} descriptors, {before} before", open_descriptors(&daemon));
        complaints(&daemon.log())
    });
    assert_eq!(said[0], said[1]);
}

#[test]
fn a_frontend_that_stops_within_a_message_keeps_only_itself_waiting() {
    let whole = message(FrontendReq::GET_FEATURES, 1, &[]);
    let with_payload = message(FrontendReq::SET_FEATURES, 1, &[0; 8]);
    let said = WAYS.map(|way| {
        let mut daemon = Daemon::start(&[&["--keep-listening"], way].concat());
        for part in [&whole[..1], &whole[..11], &with_payload[..12], &with_payload[..15]] {
            let mut stream = UnixStream::connect(daemon.socket()).expect("a connection");
            stream.write_all(&whole).expect("a message");
            stream.read_exact(&mut [0; 20]).expect("its reply");
            stream.write_all(part).expect("a part of one");
            // Signals come through while the rest is awaited.
            let _counters = daemon.metrics();
            drop(stream);
        }
        let (guest, mut client) = mount(&daemon);
        assert_serves(&mut client);
        let mut stream = UnixStream::connect(daemon.socket()).expect("a place in the queue");
        stream.write_all(&whole[..5]).expect("a part of a message");
        drop((guest, client));
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait().code(), Some(0), "{way:?}: {}", daemon.log());
        complaints(&daemon.log())
    });
    assert_eq!(said[0], said[1]);
}

#[test]
fn a_flood_of_messages_takes_no_memory_of_the_keeper() {
    let daemon = Daemon::start(&[]);
    let mut stream = UnixStream::connect(daemon.socket()).expect("a connection");
    let resident = || -> u64 { status_field(daemon.keeper(), "VmRSS").split(' ').next().and_then(|kib| kib.parse().ok()).expect("a size") };
    let ask = message(FrontendReq::GET_FEATURES, 1, &[]);
    let before = resident();
    for _ in 0..1000 {
        stream.write_all(&ask).expect("a message");
        stream.read_exact(&mut [0; 20]).expect("its reply");
    }
    // Replies that nobody reads: the socket fills, and the keeper reads no further.
    stream.set_nonblocking(true).expect("a socket");
    let mut sent = 0u64;
    let is_full = eventually(|| {
        while let Ok(len) = stream.write(&ask) {
            sent += len as u64;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        stream.write(&ask).is_err()
    });
    assert!(is_full, "{sent} bytes were taken");
    assert!(resident() < before + 1024, "{before} KiB before, {} KiB after", resident());
}
