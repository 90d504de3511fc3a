//! A frontend that hangs up and connects again with INFLIGHT_SHMFD, as Cloud Hypervisor does: its guest's session goes on, or ends, as
//! docs/RECOVERY.md says in section 10.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use gatherfs_support::daemon::{Daemon, Killer, Scratch, children_of, eventually, is_root, only_child};
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::{self, CreateIn, FileLock, LkIn, ROOT, ReadIn, WriteIn, opcode};
use gatherfs_support::slow_file::SlowFile;
use rustix::process::{Pid, Signal, kill_process};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use zerocopy::IntoBytes;

const SIZE: u32 = 4096;

fn options() -> GuestOptions {
    let defaults = GuestOptions::default();
    GuestOptions { protocol: defaults.protocol | Protocol::INFLIGHT_SHMFD, ..defaults }
}

fn mount_with(daemon: &Daemon, options: &GuestOptions) -> (Arc<Guest>, Client) {
    let guest = Guest::connect(daemon.socket(), options).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (guest, client)
}

fn mount(daemon: &Daemon) -> (Arc<Guest>, Client) {
    mount_with(daemon, &options())
}

/// A guest of a daemon with `options`, and a file of the share that it has open: node and handle.
fn started(options: &[&str]) -> (Daemon, Arc<Guest>, Client, (u64, u64)) {
    let daemon = Daemon::start_on_tmpfs(&[&["--locks", "host", "--log-level", "info"], options].concat());
    let (guest, mut client) = mount(&daemon);
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    client.write(made.entry.nodeid, made.open.fh, 0, &[7; SIZE as usize]).expect("WRITE");
    (daemon, guest, client, (made.entry.nodeid, made.open.fh))
}

fn lock_of((_, fh): (u64, u64), owner: u64, kind: i32) -> LkIn {
    let lk = FileLock { start: 0, end: i64::MAX as u64, kind: kind as u32, pid: 1 };
    LkIn { fh, owner, lk, lk_flags: 0, padding: 0 }
}

/// Whether a process of the host may lock the file.
fn is_free(daemon: &Daemon) -> bool {
    let file = OpenOptions::new().write(true).open(daemon.share().join("file")).expect("the file");
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads the structure.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) == 0 }
}

/// Files below the share that the daemon has open.
fn open_files(daemon: &Daemon) -> usize {
    let fds = fs::read_dir(format!("/proc/{}/fd", daemon.keeper())).expect("the process is there");
    let below = |path: std::path::PathBuf| path.starts_with(daemon.share()) && path != daemon.share();
    fds.filter_map(|fd| fs::read_link(fd.expect("an entry").path()).ok()).filter(|path| below(path.clone())).count()
}

/// Kills the only worker: where the keeper has just ended it, another one follows in any case.
fn kill_worker(daemon: &Daemon) -> u32 {
    let worker = only_child(daemon.keeper());
    let _ = kill_process(Pid::from_raw(worker.cast_signed()).expect("a process id"), Signal::KILL);
    worker
}

/// As `kill_worker`, and returns when there is another one.
fn replace_worker(daemon: &Daemon) {
    let worker = kill_worker(daemon);
    assert!(eventually(|| matches!(children_of(daemon.keeper())[..], [next] if next != worker)), "{}", daemon.log());
}

fn begin_write(client: &mut Client, (node, fh): (u64, u64), offset: u64, data: &[u8], flags: i32) -> Pending {
    let write = WriteIn { fh, offset, size: data.len() as u32, flags: flags as u32, ..WriteIn::default() };
    client.begin(&Call { room: 8, ..Call::new(opcode::WRITE, node, &[write.as_bytes(), data]) })
}

fn begin_create(client: &mut Client, name: &str) -> Pending {
    let create =
        CreateIn { flags: (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32, mode: libc::S_IFREG | 0o644, ..CreateIn::default() };
    client.begin(&Call { room: 160, ..Call::new(opcode::CREATE, ROOT, &[create.as_bytes(), &fuse::name(name)]) })
}

#[test]
fn a_frontend_that_is_back_goes_on_in_every_sandbox() {
    let sandboxes: &[&str] = if is_root("a sandbox") { &["none", "chroot", "namespace"] } else { &["none"] };
    for sandbox in sandboxes {
        let (mut daemon, guest, mut client, file) = started(&["--sandbox", sandbox]);
        let listing = client.opendir(ROOT).expect("OPENDIR").fh;
        client.setlk(file.0, &lock_of(file, 1, libc::F_WRLCK), false).expect("SETLK");
        let wait = client.begin(&Call::new(opcode::SETLKW, file.0, &[lock_of(file, 2, libc::F_WRLCK).as_bytes()]));
        assert!(eventually(|| daemon.metrics().get("parked") == 1));
        for round in 1..=3 {
            guest.disconnect();
            assert!(eventually(|| daemon.log().matches("its session is kept for 10 s").count() == round), "{}", daemon.log());
            assert!(!is_free(&daemon), "--sandbox {sandbox}");
            // Nobody takes it before the frontend is back, whose base is behind it.
            let read = ReadIn { fh: file.1, size: SIZE, ..ReadIn::default() };
            let read = client.begin(&Call { room: SIZE, ..Call::new(opcode::READ, file.0, &[read.as_bytes()]) });
            guest.reconnect(daemon.socket()).expect("the daemon takes it back");
            assert_eq!(client.finish(read).expect("READ").payload, [7; SIZE as usize], "--sandbox {sandbox}");
            assert_eq!(client.lookup(ROOT, "file").expect("LOOKUP").nodeid, file.0);
            assert_eq!(client.readdir(ROOT, listing, 0, 4096).expect("READDIR").len(), 3);
            assert!(!client.is_answered(&wait) && !is_free(&daemon), "--sandbox {sandbox}");
        }
        client.setlk(file.0, &lock_of(file, 1, libc::F_UNLCK), false).expect("SETLK");
        assert_eq!(client.finish(wait).expect("SETLKW").header.error, 0);
        assert!(!is_free(&daemon), "the one that waited has it");
        assert!(!daemon.log().contains("ERROR"), "--sandbox {sandbox}: {}", daemon.log());
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn a_read_that_the_host_has_not_finished_is_answered_after_the_frontend_is_back() {
    if !is_root("a slow file") {
        return;
    }
    let scratch = Scratch::on_tmpfs();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    fs::write(scratch.join("share/file"), [7; SIZE as usize]).expect("a file");
    let Some(slow) = SlowFile::new(&scratch.join("share/file")) else { return };
    let daemon = Daemon::start_in(scratch, &[]);
    let (guest, mut client) = mount(&daemon);
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
    let read = ReadIn { fh, size: SIZE, ..ReadIn::default() };
    let read = client.begin(&Call { room: SIZE, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
    let first = slow.wait_for_read();
    guest.disconnect();
    guest.reconnect(daemon.socket()).expect("the daemon takes it back");
    let again = slow.wait_for_read();
    assert!(!client.is_answered(&read));
    slow.let_go(again);
    assert_eq!(client.finish(read).expect("READ").payload, [7; SIZE as usize]);
    drop(first);
}

/// Each round has requests under way when the connection ends. What is done twice or never shows in the tree.
fn load(daemon: &Daemon, guest: &Arc<Guest>, clients: &mut [Client], file: (u64, u64), rounds: u64) {
    const APPENDS: u64 = 24;
    let queues = clients.len() as u64;
    // Two appends to one file that are under way at a death are not told apart.
    let mut create = |name: String| {
        let made = clients[0].create(ROOT, &name, 0o644, libc::O_RDWR | libc::O_APPEND).expect("CREATE");
        (made.entry.nodeid, made.open.fh)
    };
    let logs: Vec<(u64, u64)> = (0..queues * APPENDS).map(|at| create(format!("log-{at}"))).collect();
    let number = |round, queue, at| (round * queues + queue) * APPENDS + at;
    for round in 0..rounds {
        let mut pending = Vec::new();
        for at in 0..APPENDS {
            for (queue, client) in (0..).zip(clients.iter_mut()) {
                let number: u64 = number(round, queue, at);
                pending.push((
                    queue,
                    begin_write(client, logs[(queue * APPENDS + at) as usize], 0, &round.to_ne_bytes(), libc::O_RDWR | libc::O_APPEND),
                ));
                let page = [number as u8; SIZE as usize];
                pending.push((queue, begin_write(client, file, (queue * APPENDS + at) * u64::from(SIZE), &page, libc::O_RDWR)));
                pending.push((queue, begin_create(client, &format!("made-{number}"))));
            }
        }
        guest.disconnect();
        guest.reconnect(daemon.socket()).expect("the daemon takes it back");
        for (queue, pending) in pending {
            let answer = clients[queue as usize].finish(pending).unwrap_or_else(|e| panic!("round {round}: {e}\n{}", daemon.log()));
            assert_eq!(answer.header.error, 0, "round {round}, queue {queue}");
        }
        let data = daemon.content("file");
        for (queue, at) in (0..queues).flat_map(|queue| (0..APPENDS).map(move |at| (queue, at))) {
            let place = ((queue * APPENDS + at) * u64::from(SIZE)) as usize;
            assert!(data[place..place + SIZE as usize] == [number(round, queue, at) as u8; SIZE as usize], "round {round}");
        }
    }
    let all: Vec<u8> = (0..rounds).flat_map(u64::to_ne_bytes).collect();
    for at in 0..logs.len() {
        assert!(daemon.content(&format!("log-{at}")) == all, "log {at} has each append once");
    }
    assert_eq!(fs::read_dir(daemon.share()).expect("the share").count(), 1 + logs.len() * (1 + rounds as usize));
}

#[test]
fn a_load_goes_on_over_20_connections() {
    let daemon = Daemon::start_on_tmpfs(&["--num-request-queues", "4", "--log-level", "info"]);
    let (guest, mut client) = mount_with(&daemon, &GuestOptions { request_queues: 4, ..options() });
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let mut clients: Vec<Client> = (FIRST_REQUEST..FIRST_REQUEST + 4).map(|queue| client.on_queue(queue)).collect();
    load(&daemon, &guest, &mut clients, (made.entry.nodeid, made.open.fh), 20);
    let log = daemon.log();
    assert!(!log.contains("ERROR") && !log.contains("died"), "{log}");
    let left = log.lines().filter_map(|line| line.split_once(" requests that the worker before left")?.0.rsplit(' ').next());
    println!("left unfinished, in each queue: {:?}", left.collect::<Vec<_>>());
}

#[test]
fn a_load_goes_on_over_20_connections_while_workers_are_killed() {
    let daemon = Daemon::start_on_tmpfs(&["--num-request-queues", "2"]);
    let (guest, mut client) = mount_with(&daemon, &GuestOptions { request_queues: 2, ..options() });
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let mut clients: Vec<Client> = (FIRST_REQUEST..FIRST_REQUEST + 2).map(|queue| client.on_queue(queue)).collect();
    let killer = Killer::start(daemon.keeper(), 7, Duration::from_millis(30));
    load(&daemon, &guest, &mut clients, (made.entry.nodeid, made.open.fh), 20);
    println!("{} workers were killed", killer.stop());
}

#[test]
fn a_worker_that_dies_while_the_frontend_is_away_or_coming_back_is_replaced() {
    let (daemon, guest, mut client, file) = started(&[]);
    client.setlk(file.0, &lock_of(file, 1, libc::F_WRLCK), false).expect("SETLK");
    let wait = client.begin(&Call::new(opcode::SETLKW, file.0, &[lock_of(file, 2, libc::F_WRLCK).as_bytes()]));
    let is_replaced = |before: &[u32]| eventually(|| matches!(children_of(daemon.keeper())[..], [worker] if !before.contains(&worker)));
    for (when, expected) in [("away", 0), ("connected", 1), ("known", 2)] {
        let workers = children_of(daemon.keeper());
        guest.disconnect();
        assert!(is_replaced(&workers), "{when}: {}", daemon.log());
        let workers = children_of(daemon.keeper());
        let kill = |at| {
            if at == expected {
                kill_worker(&daemon);
            }
        };
        kill(0);
        guest.connect_again(daemon.socket()).expect("a connection");
        kill(1);
        guest.show_inflight().expect("SET_INFLIGHT_FD");
        kill(2);
        guest.go_on().expect("the daemon takes it back");
        assert!(is_replaced(&workers), "{when}: {}", daemon.log());
        assert_eq!(client.read(file.0, file.1, 0, SIZE).expect("READ"), [7; SIZE as usize], "{when}");
        assert!(!client.is_answered(&wait) && !is_free(&daemon), "{when}");
    }
    client.setlk(file.0, &lock_of(file, 1, libc::F_UNLCK), false).expect("SETLK");
    assert_eq!(client.finish(wait).expect("SETLKW").header.error, 0);
}

#[test]
fn a_worker_that_dies_before_every_message_of_the_frontend_loses_no_position() {
    let (daemon, guest, mut client, file) = started(&[]);
    // Offered, and not taken before the frontend says where it is.
    guest.disconnect();
    daemon.wait_for_line("its session is kept");
    let read = ReadIn { fh: file.1, size: SIZE, ..ReadIn::default() };
    let read = client.begin(&Call { room: SIZE, ..Call::new(opcode::READ, file.0, &[read.as_bytes()]) });
    guest.connect_again(daemon.socket()).expect("a connection");
    guest.say_all(|| replace_worker(&daemon)).expect("the daemon takes it back");
    assert_eq!(client.finish(read).expect("READ").payload, [7; SIZE as usize], "{}", daemon.log());
}

#[test]
fn a_worker_that_dies_before_every_message_of_another_guest_takes_nothing_for_its_own() {
    let (daemon, guest, mut client, file) = started(&["--keep-listening"]);
    client.setlk(file.0, &lock_of(file, 1, libc::F_WRLCK), false).expect("SETLK");
    let _wait = client.begin(&Call::new(opcode::SETLKW, file.0, &[lock_of(file, 2, libc::F_WRLCK).as_bytes()]));
    assert!(eventually(|| daemon.metrics().get("parked") == 1));
    guest.disconnect();
    daemon.wait_for_line("its session is kept");
    // Another one in the memory of this one.
    for index in [HIPRIO, FIRST_REQUEST] {
        guest.lock(index).reset();
    }
    *guest.inflight() = None;
    guest.connect_again(daemon.socket()).expect("a connection");
    guest.say_all(|| replace_worker(&daemon)).expect("the daemon serves it");
    assert!(client.getattr(file.0, Some(file.1)).is_err());
    client.init().expect("INIT");
    assert!(client.lookup(ROOT, "file").is_ok() && eventually(|| is_free(&daemon)));
    let ring = guest.lock(FIRST_REQUEST);
    assert_eq!(ring.used_idx(), ring.avail_idx(), "nothing of before was answered: {}", daemon.log());
}

#[test]
fn another_guest_gets_nothing_of_the_session_before() {
    for (what, options) in [("without the feature", GuestOptions::default()), ("with it", options())] {
        let (daemon, guest, mut client, file) = started(&["--keep-listening", "--inode-file-handles", "never"]);
        client.setlk(file.0, &lock_of(file, 1, libc::F_WRLCK), false).expect("SETLK");
        guest.disconnect();
        daemon.wait_for_line("its session is kept");
        assert!(open_files(&daemon) > 0 && !is_free(&daemon), "{what}");
        let (_other, mut other) = mount_with(&daemon, &options);
        daemon.wait_for_line("a VMM connects that is not the one before");
        assert!(other.getattr(file.0, Some(file.1)).is_err(), "{what}: neither the node nor the handle is the other guest's");
        assert!(other.read(file.0, file.1, 0, SIZE).is_err(), "{what}");
        assert!(eventually(|| open_files(&daemon) == 0 && is_free(&daemon)), "{what}");
        let node = other.lookup(ROOT, "file").expect("LOOKUP").nodeid;
        assert!(other.open(node, libc::O_RDONLY).is_ok(), "{what}");
        kill_worker(&daemon);
        assert_eq!(other.lookup(ROOT, "file").expect("LOOKUP").nodeid, node, "{what}: its own session goes on");
        assert!(!daemon.log().contains("is back"), "{what}: {}", daemon.log());
    }
}

#[test]
fn a_file_that_the_daemon_did_not_give_is_accepted_and_begins_a_session() {
    let (mut daemon, guest, mut client, file) = started(&[]);
    let foreign = rustix::fs::memfd_create(c"another", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    guest.inflight().as_mut().expect("a file").1 = File::from(foreign);
    guest.reconnect(daemon.socket()).expect("the daemon serves it");
    daemon.wait_for_line("a VMM connects that is not the one before");
    assert!(client.getattr(file.0, Some(file.1)).is_err(), "its session has ended");
    client.init().expect("another INIT");
    assert!(client.getattr(file.0, Some(file.1)).is_err());
    assert!(client.lookup(ROOT, "file").is_ok());
    drop(client);
    guest.disconnect();
    assert_eq!(daemon.wait().code(), Some(0), "there is nothing to go on with: {}", daemon.log());
}

#[test]
fn a_session_that_nobody_goes_on_with_ends() {
    for keep_listening in [false, true] {
        let more: &[&str] = if keep_listening { &["--keep-listening"] } else { &[] };
        let (mut daemon, guest, mut client, file) = started(&[&["--reconnect-timeout", "0.2"], more].concat());
        client.setlk(file.0, &lock_of(file, 1, libc::F_WRLCK), false).expect("SETLK");
        guest.disconnect();
        daemon.wait_for_line("its session is kept for 0.2 s");
        daemon.wait_for_line("did not connect again in time");
        if keep_listening {
            assert!(eventually(|| is_free(&daemon) && open_files(&daemon) == 0), "{}", daemon.log());
            guest.reconnect(daemon.socket()).expect("the daemon serves it");
            assert!(client.getattr(file.0, Some(file.1)).is_err(), "too late");
            client.init().expect("another INIT");
        } else {
            assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
            assert!(eventually(|| is_free(&daemon)) && !daemon.socket().exists());
        }
    }
}

#[test]
fn one_that_is_connected_and_says_nothing_does_not_keep_the_session() {
    let (daemon, guest, mut client, file) = started(&["--reconnect-timeout", "1", "--keep-listening"]);
    guest.connect_again(daemon.socket()).expect("a connection");
    daemon.wait_for_line("did not connect again in time");
    guest.go_on().expect("the daemon serves it");
    assert!(client.getattr(file.0, Some(file.1)).is_err(), "too late");
    client.init().expect("another INIT");
    assert!(client.lookup(ROOT, "file").is_ok());
}

#[test]
fn one_that_hangs_up_before_it_is_known_leaves_the_session_to_the_next() {
    let (daemon, guest, mut client, file) = started(&[]);
    for _ in 0..3 {
        guest.connect_again(daemon.socket()).expect("a connection");
    }
    guest.reconnect(daemon.socket()).expect("the daemon takes it back");
    assert_eq!(client.read(file.0, file.1, 0, SIZE).expect("READ"), [7; SIZE as usize]);
}

#[test]
fn a_signal_ends_the_daemon_while_the_frontend_is_away() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (mut daemon, guest, _client, _) = started(&["--reconnect-timeout", "3600", "--keep-listening"]);
        guest.disconnect();
        daemon.wait_for_line("its session is kept for 3600 s");
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{signal:?}: {}", daemon.log());
        assert!(eventually(|| is_free(&daemon)), "{signal:?}");
    }
}

fn control(daemon: &Daemon, words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatherfsctl"));
    let output = command.arg("--socket-path").arg(daemon.socket()).args(words).output().expect("gatherfsctl starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_frontend_that_is_away_is_in_the_status_and_outlives_an_upgrade() {
    let (daemon, guest, mut client, file) = started(&[]);
    client.setlk(file.0, &lock_of(file, 1, libc::F_WRLCK), false).expect("SETLK");
    guest.disconnect();
    assert!(eventually(|| control(&daemon, &["status"])
        .contains("status: the VMM has disconnected, and may connect again within 10 s of the disconnection")));
    let program = gatherfs_support::daemon::program().to_str().expect("text");
    control(&daemon, &["upgrade", program]);
    assert!(!is_free(&daemon));
    guest.reconnect(daemon.socket()).expect("the daemon takes it back");
    assert_eq!(client.read(file.0, file.1, 0, SIZE).expect("READ"), [7; SIZE as usize]);
    // And one that is connected, after which it is away.
    control(&daemon, &["upgrade", program]);
    guest.reconnect(daemon.socket()).expect("the daemon takes it back");
    assert_eq!(client.read(file.0, file.1, 0, SIZE).expect("READ"), [7; SIZE as usize]);
    assert!(eventually(|| control(&daemon, &["status"]).contains("status: a VMM is connected")));
}

#[test]
fn what_makes_no_sense_is_refused_and_ends_nothing() {
    let (daemon, guest, mut client, file) = started(&[]);
    for (queues, size) in [(257, 256), (2, 32769), (u16::MAX, u16::MAX)] {
        assert!(guest.get_inflight(queues, size).is_err(), "no file for {queues} queues of {size}");
    }
    // Both, once more, while rings run.
    guest.get_inflight(2, 1024).expect("GET_INFLIGHT_FD");
    guest.show_inflight().expect("SET_INFLIGHT_FD");
    guest.show_inflight().expect("SET_INFLIGHT_FD");
    assert_eq!(client.read(file.0, file.1, 0, SIZE).expect("READ"), [7; SIZE as usize]);
    guest.reconnect(daemon.socket()).expect("the daemon takes it back, by the last one");
    assert_eq!(client.read(file.0, file.1, 0, SIZE).expect("READ"), [7; SIZE as usize]);
}

#[test]
fn a_queue_that_was_stopped_goes_on_where_the_frontend_says() {
    let (daemon, guest, mut client, file) = started(&[]);
    for index in [HIPRIO, FIRST_REQUEST] {
        guest.stop_queue(index).expect("GET_VRING_BASE");
        guest.lock(index).begin_at(1000);
    }
    guest.reconnect(daemon.socket()).expect("the daemon takes it back");
    assert_eq!(client.read(file.0, file.1, 0, SIZE).expect("READ"), [7; SIZE as usize]);
}

#[test]
fn the_feature_is_offered_where_a_session_can_be_kept() {
    let cases: [(&[&str], bool); 5] = [
        (&[], true),
        (&["--reconnect-timeout", "0.5"], true),
        (&["--reconnect-timeout", "0"], false),
        (&["--no-keeper"], false),
        (&["--no-keeper", "--reconnect-timeout", "0"], false),
    ];
    for (words, is_offered) in cases {
        let mut daemon = Daemon::start(words);
        let (guest, client) = mount(&daemon);
        assert_eq!(guest.info().protocol_offered.contains(Protocol::INFLIGHT_SHMFD), is_offered, "{words:?}");
        drop((guest, client));
        if !is_offered {
            assert_eq!(daemon.wait().code(), Some(0), "{words:?}: at once");
        }
    }
}
