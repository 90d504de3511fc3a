//! Live upgrade: the keeper goes on as another program, and the guest notices a pause. What cannot take over is refused, and the worker
//! serves on.

mod descriptors;
mod programs;
mod syslog;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gatherfs_support::daemon::{Daemon, Process, Scratch, built_program, children_of, eventually, gatherfsd, is_root, status_field};
use gatherfs_support::guest::client::{Call, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{FileLock, LkIn, ROOT, ReadIn, opcode};
use gatherfs_support::slow_file::SlowFile;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::IntoBytes;

use programs::{ENDLESS, FAULT, FORBIDDEN, OTHER_VERSION, linked_statically, of_code, of_other_version, older};

/// A sandbox, and the program to upgrade to there.
fn places() -> Vec<(&'static str, std::path::PathBuf)> {
    let mut places = vec![("none", built_program())];
    if is_root("a sandbox") {
        places.extend(["chroot", "namespace"].map(|sandbox| (sandbox, linked_statically().to_owned())));
    }
    places
}

fn mount(socket: &Path) -> (Arc<Guest>, Client) {
    let guest = Guest::connect(socket, &GuestOptions::default()).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (guest, client)
}

/// gatherfsctl upgrade: its exit status, and what it printed.
fn upgrade(socket: &Path, program: &Path) -> (Option<i32>, String) {
    upgrade_with(socket, program, &[])
}

fn upgrade_with(socket: &Path, program: &Path, options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatherfsctl"));
    command.arg("--socket-path").arg(socket).arg("upgrade").arg(program).args(options);
    let output = command.output().expect("gatherfsctl starts");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("text"))
}

fn assert_upgraded(daemon: &Process, socket: &Path, program: &Path) {
    let (status, said) = upgrade(socket, program);
    assert_eq!((status, said.ends_with(" serves now\n")), (Some(0), true), "{said}{}", daemon.log());
}

fn program_of(pid: u32) -> String {
    fs::read_link(format!("/proc/{pid}/exe")).expect("the process is there").to_string_lossy().into_owned()
}

fn lock(fh: u64, owner: u64, kind: i32) -> LkIn {
    LkIn { fh, owner, lk: FileLock { start: 0, end: 9, kind: kind.cast_unsigned(), pid: 1 }, ..LkIn::default() }
}

#[test]
fn what_the_guest_knows_has_open_and_has_locked_goes_on_in_every_sandbox() {
    for (sandbox, program) in places() {
        for handles in ["prefer", "never"] {
            // Landlock, which restricts files in the second case, lets no dynamic linker begin.
            let program = if handles == "never" { linked_statically() } else { &program };
            let options = ["--sandbox", sandbox, "--inode-file-handles", handles, "--locks", "host", "--watch"];
            let mut daemon = Daemon::start(&options);
            // What a program that begins opens is the guest's in there.
            fs::create_dir_all(daemon.share().join("proc/self")).expect("directories");
            for name in ["maps", "cgroup", "status"] {
                let place = daemon.share().join("proc/self").join(name);
                mknodat(CWD, &place, FileType::Fifo, Mode::RWXU, 0).expect("a fifo");
            }
            let (guest, mut client) = mount(daemon.socket());
            let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
            let (node, fh) = (made.entry.nodeid, made.open.fh);
            let directory = client.mkdir(ROOT, "directory", 0o755).expect("MKDIR").nodeid;
            let listing = client.opendir(directory).expect("OPENDIR").fh;
            assert_eq!(client.setlk(node, &lock(fh, 1, libc::F_WRLCK), false).map_err(|e| e.to_string()), Ok(()));
            let (keeper, rights) =
                (daemon.keeper(), |pid| ["Uid", "CapPrm", "CapBnd", "Seccomp", "NoNewPrivs"].map(|f| status_field(pid, f)));
            let (before, of_worker) = (rights(keeper), rights(daemon.serving()));
            for round in 1..=2 {
                let context = || format!("--sandbox {sandbox}, handles {handles}, upgrade {round}: {}", daemon.log());
                client.write(node, fh, 0, &[round; 100]).expect("WRITE");
                assert_upgraded(&daemon, daemon.socket(), program);
                assert_eq!(daemon.keeper(), keeper, "the same process, {}", context());
                assert!(program_of(keeper).contains("memfd:gatherfsd"), "{}", context());
                assert_eq!((rights(keeper), rights(daemon.serving())), (before.clone(), of_worker.clone()), "{}", context());
                assert_eq!(client.read(node, fh, 0, 200).unwrap_or_else(|e| panic!("{e}, {}", context())), [round; 100]);
                assert_eq!(client.lookup(ROOT, "file").expect("LOOKUP").nodeid, node, "{}", context());
                assert_eq!(client.readdir(directory, listing, 0, 4096).expect("READDIR").len(), 2, "{}", context());
                assert!(client.setlk(node, &lock(fh, 2, libc::F_WRLCK), false).is_err(), "it is locked, {}", context());
                // A worker of the new program dies.
                let worker = daemon.serving();
                kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
                assert_eq!(client.read(node, fh, 0, 200).expect("READ"), [round; 100]);
                assert!(eventually(|| matches!(children_of(keeper)[..], [next] if next != worker)), "{}", context());
            }
            // A file that has no name any more.
            client.unlink(ROOT, "file").expect("UNLINK");
            assert_upgraded(&daemon, daemon.socket(), program);
            assert_eq!(client.read(node, fh, 0, 200).expect("READ"), [2; 100]);
            assert!(!daemon.log().contains("named by two"), "{}", daemon.log());
            drop((guest, client));
            assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
            assert!(!daemon.socket().exists());
        }
    }
}

#[test]
fn a_daemon_of_a_user_has_the_same_rights_afterwards() {
    const USER: u32 = 65534;
    if !is_root("becoming another user") {
        return;
    }
    let scratch = Scratch::new();
    let (share, socket) = (scratch.join("share"), scratch.join("s"));
    fs::create_dir(&share).expect("the shared directory");
    [scratch.path(), &share].iter().for_each(|path| chown(path, Some(USER), Some(USER)).expect("root may"));
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket).uid(USER).gid(USER);
    let daemon = Process::spawn(&mut command);
    daemon.wait_for_line("Waiting for vhost-user socket connection");
    let (_guest, mut client) = mount(&socket);
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let keeper = daemon.keeper();
    let rights = |pid| ["Uid", "CapInh", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs"].map(|field| status_field(pid, field));
    let before = (rights(keeper), rights(daemon.serving()));
    for round in [1, 2] {
        assert_upgraded(&daemon, &socket, linked_statically());
        client.write(made.entry.nodeid, made.open.fh, 0, &[round; 10]).expect("WRITE");
        // By its name in /proc/self/fd of the keeper.
        client.open(made.entry.nodeid, libc::O_RDONLY).expect("OPEN");
        assert_eq!((rights(keeper), rights(daemon.serving())), before, "{}", daemon.log());
    }
}

#[test]
fn a_daemon_under_load_is_upgraded_again_and_again() {
    let daemon = Daemon::start(&["--keep-listening"]);
    let (guest, mut client) = mount(daemon.socket());
    let is_over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let load = {
        let (is_over, done) = (Arc::clone(&is_over), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut round = 0u64;
            while !is_over.load(Ordering::Relaxed) {
                let name = format!("file{}", round % 10);
                let made = client.create(ROOT, &name, 0o644, libc::O_RDWR).expect("CREATE");
                client.write(made.entry.nodeid, made.open.fh, 0, &round.to_le_bytes()).expect("WRITE");
                assert_eq!(client.read(made.entry.nodeid, made.open.fh, 0, 8).expect("READ"), round.to_le_bytes());
                client.release(made.entry.nodeid, made.open.fh).expect("RELEASE");
                client.unlink(ROOT, &name).expect("UNLINK");
                round += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for _ in 0..5 {
        let before = done.load(Ordering::Relaxed);
        assert_upgraded(&daemon, daemon.socket(), &built_program());
        assert!(eventually(|| done.load(Ordering::Relaxed) > before + 1), "{}", daemon.log());
    }
    is_over.store(true, Ordering::Relaxed);
    load.join().expect("no request failed");
    drop(guest);
    // Without a VMM, by the signal, to the file from which gatherfsd was started; then for the next VMM.
    assert!(eventually(|| daemon.log().contains("the VMM disconnected")));
    let count = || daemon.log().matches("upgraded: ").count();
    daemon.signal(Signal::USR2);
    assert!(eventually(|| count() == 6), "{}", daemon.log());
    let (_guest, mut client) = mount(daemon.socket());
    client.create(ROOT, "last", 0o644, libc::O_RDWR).expect("CREATE");
}

#[test]
fn a_request_that_waits_for_a_lock_waits_on() {
    let daemon = Daemon::start(&["--locks", "host"]);
    let (_guest, mut client) = mount(daemon.socket());
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    client.setlk(node, &lock(fh, 1, libc::F_WRLCK), false).expect("SETLK");
    let waiting = client.begin(&Call::new(opcode::SETLKW, node, &[lock(fh, 2, libc::F_WRLCK).as_bytes()]));
    assert!(eventually(|| daemon.metrics().get("parked") == 1));
    assert_upgraded(&daemon, daemon.socket(), &built_program());
    assert!(eventually(|| daemon.metrics().get("parked") == 1));
    assert!(!client.is_answered(&waiting), "the lock is held");
    client.setlk(node, &lock(fh, 1, libc::F_UNLCK), false).expect("SETLK");
    assert_eq!(client.finish(waiting).expect("an answer").header.error, 0);
}

#[test]
fn an_older_build_is_upgraded_and_gone_back_to() {
    let Some(older) = older() else { return };
    let scratch = Scratch::new();
    let (share, socket) = (scratch.join("share"), scratch.join("s"));
    fs::create_dir(&share).expect("the shared directory");
    let mut command = Command::new(&older);
    command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket).args(["--sandbox", "none", "--locks", "host"]);
    let daemon = Process::spawn(&mut command);
    daemon.wait_for_line("Waiting for vhost-user socket connection");
    let (_guest, mut client) = mount(&socket);
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    client.setlk(node, &lock(fh, 1, libc::F_WRLCK), false).expect("SETLK");
    for (round, program) in [(1u8, built_program()), (2, older.clone()), (3, built_program())] {
        client.write(node, fh, 0, &[round; 100]).expect("WRITE");
        assert_upgraded(&daemon, &socket, &program);
        assert_eq!(client.read(node, fh, 0, 200).unwrap_or_else(|e| panic!("{e}, upgrade {round}: {}", daemon.log())), [round; 100]);
        assert_eq!(client.lookup(ROOT, "file").expect("LOOKUP").nodeid, node);
        assert!(client.setlk(node, &lock(fh, 2, libc::F_WRLCK), false).is_err(), "it is locked: {}", daemon.log());
        client.create(ROOT, &format!("file{round}"), 0o644, libc::O_RDWR).expect("CREATE");
    }
}

fn status(socket: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatherfsctl"));
    let output = command.arg("--socket-path").arg(socket).arg("status").output().expect("gatherfsctl starts");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn status_says_which_version_serves_and_how_often_workers_were_restarted_before() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut client) = mount(daemon.socket());
    let (own, scratch) = (env!("CARGO_PKG_VERSION"), Scratch::new());
    let worker = daemon.serving();
    kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
    client.lookup(ROOT, "missing").expect_err("ENOENT");
    let restarted = "the worker was restarted once";
    assert!(eventually(|| status(daemon.socket()).contains(restarted)));
    assert_upgraded(&daemon, daemon.socket(), &of_other_version(&scratch));
    let text = status(daemon.socket());
    assert!(text.contains(&format!("\nversion: {OTHER_VERSION}\nouter_version: {own}\n")) && text.contains(restarted), "{text}");
    assert_upgraded(&daemon, daemon.socket(), &built_program());
    let text = status(daemon.socket());
    assert!(text.contains(&format!("\nversion: {own}\ntag: ")) && text.contains(restarted), "{text}");
}

#[test]
fn what_cannot_take_over_is_refused_and_the_worker_serves_on() {
    for (sandbox, _) in places() {
        let daemon = Daemon::start(&["--sandbox", sandbox]);
        let (_guest, mut client) = mount(daemon.socket());
        let scratch = Scratch::new();
        let worker = daemon.serving();
        let text = scratch.join("text");
        fs::write(&text, "no program").expect("a file");
        let mut cases = vec![
            (of_code(&scratch, "fault", FAULT), "it was ended by signal 4 (SIGILL) before it said that it can take over"),
            (of_code(&scratch, "forbidden", FORBIDDEN), "it makes a system call that the running program's sandbox forbids"),
            (text, "may not be executed"),
        ];
        if sandbox == "none" {
            cases.push(("/bin/true".into(), "it was ended by itself with status 0"));
        } else {
            cases.push((built_program(), "dynamically linked"));
        }
        for (program, why) in cases {
            let (status, said) = upgrade(daemon.socket(), &program);
            assert!(status == Some(1) && said.contains(why), "--sandbox {sandbox}, {}: {said}{}", program.display(), daemon.log());
            client.lookup(ROOT, "missing").expect_err("ENOENT");
            assert_eq!(daemon.serving(), worker, "{}", daemon.log());
        }
        // With those that nobody has waited for.
        let keeper = daemon.keeper();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("the keeper is there");
        assert_eq!(children.trim(), worker.to_string(), "nothing is left of the examinations");
    }
}

#[test]
fn a_request_that_the_host_holds_up_delays_the_upgrade_and_not_the_guest() {
    let daemon = Daemon::start(&[]);
    let Some(slow) = SlowFile::new(&daemon.put("slow", "text")) else { return };
    let (_guest, mut client) = mount(daemon.socket());
    let node = client.lookup(ROOT, "slow").expect("LOOKUP").nodeid;
    let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
    let request = ReadIn { fh, size: 4, ..ReadIn::default() };
    let waiting = client.begin(&Call { room: 4, ..Call::new(opcode::READ, node, &[request.as_bytes()]) });
    let read = slow.wait_for_read();
    let worker = daemon.serving();
    let (status, said) = upgrade(daemon.socket(), &built_program());
    assert!(status == Some(1) && said.contains("has not finished requests of the guest within 1 s"), "{said}{}", daemon.log());
    client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    assert!(daemon.serving() == worker && !client.is_answered(&waiting), "{}", daemon.log());
    slow.let_go(read);
    assert_eq!(client.finish(waiting).expect("an answer").header.error, 0);
    assert_upgraded(&daemon, daemon.socket(), &built_program());
}

#[test]
fn a_forced_upgrade_ends_a_worker_that_the_host_holds_up_and_its_request_is_executed_again() {
    let daemon = Daemon::start(&[]);
    let Some(slow) = SlowFile::new(&daemon.put("slow", "text")) else { return };
    let (_guest, mut client) = mount(daemon.socket());
    let node = client.lookup(ROOT, "slow").expect("LOOKUP").nodeid;
    let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
    let request = ReadIn { fh, size: 4, ..ReadIn::default() };
    let waiting = client.begin(&Call { room: 4, ..Call::new(opcode::READ, node, &[request.as_bytes()]) });
    let first = slow.wait_for_read();
    let (status, said) = upgrade_with(daemon.socket(), &built_program(), &["--force"]);
    assert_eq!((status, said.ends_with(" serves now\n")), (Some(0), true), "{said}{}", daemon.log());
    daemon.wait_for_line("the worker is ended for the upgrade");
    slow.let_go(first);
    let again = slow.wait_for_read();
    assert!(!client.is_answered(&waiting), "{}", daemon.log());
    slow.let_go(again);
    let reply = client.finish(waiting).expect("an answer");
    assert_eq!((reply.header.error, &reply.payload[..]), (0, &b"text"[..]), "{}", daemon.log());
}

/// As one that a guest has taken over, which does not end when it is asked to.
#[test]
fn a_worker_that_does_not_drain_vetoes_an_upgrade_and_not_a_forced_one() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut client) = mount(daemon.socket());
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let worker = Pid::from_raw(daemon.serving().cast_signed()).expect("an id");
    kill_process(worker, Signal::STOP).expect("the process is there");
    let (status, said) = upgrade(daemon.socket(), &built_program());
    assert!(status == Some(1) && said.contains("gatherfsctl upgrade --force"), "{said}{}", daemon.log());
    let (status, said) = upgrade_with(daemon.socket(), &built_program(), &["--force"]);
    assert_eq!((status, said.ends_with(" serves now\n")), (Some(0), true), "{said}{}", daemon.log());
    client.write(made.entry.nodeid, made.open.fh, 0, b"text").expect("WRITE");
}

#[test]
fn two_upgrades_at_a_time_are_one() {
    let daemon = Daemon::start(&[]);
    let (_guest, _client) = mount(daemon.socket());
    let scratch = Scratch::new();
    let (endless, socket) = (of_code(&scratch, "endless", ENDLESS), daemon.socket().to_owned());
    let first = std::thread::spawn(move || upgrade(&socket, &endless));
    assert!(eventually(|| children_of(daemon.keeper()).len() == 2));
    let (status, said) = upgrade(daemon.socket(), &built_program());
    assert!(status == Some(1) && said.contains("another upgrade is under way"), "{said}");
    // The worker may die meanwhile.
    let worker = children_of(daemon.keeper())[0];
    kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
    let (status, said) = first.join().expect("no panic");
    assert!(status == Some(1) && said.contains("within 10 s"), "{said}");
    assert_upgraded(&daemon, daemon.socket(), &built_program());
}
