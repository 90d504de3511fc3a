//! A service manager that keeps descriptors (FDSTORE), and starts the daemon again with them after all its processes were killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use gatherfs_support::daemon::{Process, Scratch, eventually, gatherfsd, is_root};
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::fuse::{FileLock, LkIn, ROOT, ReadIn, opcode};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::IntoBytes;

use super::{control, mount};

/// What LISTEN_FDS begins with, and where the test's own copies are, out of the way.
const FIRST: RawFd = 3;
const ASIDE: RawFd = 600;
/// The third word of the arena of requests, behind its header: the changes of the session.
const CHANGES_AT: u64 = (64 << 10) + 16;

/// The socket of a manager, and what it keeps.
struct Manager {
    path: std::path::PathBuf,
    kept: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
}

impl Manager {
    fn start(scratch: &Scratch) -> Manager {
        let path = scratch.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let kept = Arc::new(Mutex::new(BTreeMap::new()));
        let of_thread = Arc::clone(&kept);
        std::thread::spawn(move || {
            loop {
                keep_next(&socket, &of_thread);
            }
        });
        Manager { path, kept }
    }

    fn names(&self) -> Vec<String> {
        self.kept.lock().expect("the lock").keys().cloned().collect()
    }

    /// Waits until all of the session as it is now is kept. Returns how many descriptors that are.
    fn wait_for_session(&self) -> usize {
        let mut count = 0;
        let is_there = eventually(|| {
            let kept = self.kept.lock().expect("the lock");
            count = kept.len();
            session_in(&kept).is_some()
        });
        assert!(is_there, "what is kept is no session: {:?}", self.names());
        count
    }

    /// gatherfsd with what is kept, in another order, and the names of it; from then on the manager keeps nothing but what it is told.
    fn command(&self, scratch: &Scratch, share: &str, options: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(gatherfsd().get_program());
        command.arg("--shared-dir").arg(scratch.join(share)).arg("--socket-path").arg(scratch.join("s")).args(options);
        command.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", "1000");
        let kept = self.kept.lock().expect("the lock");
        let aside: Vec<(String, OwnedFd)> =
            kept.iter().rev().map(|(name, fd)| (name.clone(), rustix::io::fcntl_dupfd_cloexec(fd, ASIDE).expect("a descriptor"))).collect();
        let names: Vec<&str> = aside.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let fds: Vec<OwnedFd> = aside.into_iter().map(|(_, fd)| fd).collect();
        let place = move || {
            for (fd, to) in fds.iter().zip(FIRST..) {
                rustix_dup2(fd.as_raw_fd(), to)?;
            }
            Ok(())
        };
        // SAFETY: dup2(2) may be called between fork and exec.
        unsafe { command.pre_exec(place) };
        command
    }
}

fn rustix_dup2(fd: RawFd, to: RawFd) -> std::io::Result<()> {
    // SAFETY: whatever has the number is of a process that executes another program next.
    if unsafe { libc::dup2(fd, to) } == to { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn keep_next(socket: &UnixDatagram, kept: &Mutex<BTreeMap<String, OwnedFd>>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut rights, RecvFlags::CMSG_CLOEXEC).expect("a datagram");
    let text = String::from_utf8(bytes[..received.bytes].to_vec()).expect("text");
    let fds = rights.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
        _ => None,
    });
    let fds: Vec<OwnedFd> = fds.flatten().collect();
    let Some(name) = text.lines().find_map(|line| line.strip_prefix("FDNAME=")) else { return };
    let mut kept = kept.lock().expect("the lock");
    if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
        kept.remove(name);
    } else if text.lines().any(|line| line == "FDSTORE=1") {
        let [fd] = <[OwnedFd; 1]>::try_from(fds).expect("one descriptor");
        assert!(kept.insert(name.to_owned(), fd).is_none(), "{name} twice");
    }
}

/// The session in what is kept, where that is complete and of now.
fn session_in(kept: &BTreeMap<String, OwnedFd>) -> Option<serde_json::Value> {
    let numbered = |number: u64| kept.get(&format!("gatherfs-session-{number}"));
    let text = fs::read(format!("/proc/self/fd/{}", numbered(0)?.as_raw_fd())).ok()?;
    let session: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let mut places = Vec::new();
    named_in(&session, &mut places);
    places.iter().all(|place| numbered(place + 1).is_some()).then_some(())?;
    let records = File::from(numbered(session["records"].as_u64()? + 1)?.try_clone().expect("a descriptor"));
    let mut changes = [0; 8];
    records.read_exact_at(&mut changes, CHANGES_AT).expect("the arena of requests");
    (session["changes"].as_u64() == Some(u64::from_ne_bytes(changes))).then_some(session)
}

/// The places of descriptors in JSON.
fn named_in(value: &serde_json::Value, places: &mut Vec<u64>) {
    const NAMES: &[&str] = &["witness", "records", "share_arena", "frontend", "file", "kick", "call", "err", "backend_channel"];
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            places.extend(value.as_u64().filter(|_| NAMES.contains(&name.as_str())));
            named_in(value, places);
        }),
        serde_json::Value::Array(values) => values.iter().for_each(|value| named_in(value, places)),
        _ => {}
    }
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process id"), signal).expect("the process is there");
}

/// Kills the outer process, with which all others end, and waits until they have, as a manager does before it starts another one.
fn end(process: &mut Process) {
    process.signal(Signal::KILL);
    process.wait();
}

/// A share with file handles, which takes root.
fn share(test: &str) -> Option<Scratch> {
    is_root(test).then(|| {
        let scratch = Scratch::with_file_handles();
        fs::create_dir(scratch.join("share")).expect("the shared directory");
        scratch
    })
}

fn begin_read(client: &mut Client, node: u64, fh: u64) -> Pending {
    let read = ReadIn { fh, offset: 0, size: 100, ..ReadIn::default() };
    client.begin(&Call { room: 100, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })
}

#[test]
fn a_session_outlives_all_processes_of_the_daemon() {
    for sandbox in ["none", "chroot", "namespace"] {
        let Some(scratch) = share("file handles") else { return };
        let manager = Manager::start(&scratch);
        let options = ["--sandbox", sandbox];
        let mut process = Process::spawn(&mut manager.command(&scratch, "share", &options));
        let (guest, mut client) = mount(&scratch.join("s"));
        let made = client.create(ROOT, "file", 0o644, libc::O_RDWR | libc::O_TRUNC).expect("CREATE");
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        let gone = client.create(ROOT, "gone", 0o644, libc::O_RDWR).expect("CREATE");
        client.unlink(ROOT, "gone").expect("UNLINK");
        let directory = client.mkdir(ROOT, "directory", 0o755).expect("MKDIR").nodeid;
        let listing = client.opendir(directory).expect("OPENDIR").fh;
        let root_listing = client.opendir(ROOT).expect("OPENDIR").fh;
        let kept = manager.wait_for_session();
        for (life, is_outer) in [(1, true), (2, false)] {
            client.write(node, fh, 0, format!("life {life}").as_bytes()).expect("WRITE");
            send(process.serving(), Signal::STOP);
            let waiting: Vec<Pending> = (0..8).map(|_| begin_read(&mut client, node, fh)).collect();
            // With the outer process all others die, with the keeper the worker does.
            send(if is_outer { process.pid() } else { process.keeper() }, Signal::KILL);
            process.wait();
            assert_eq!(manager.names().len(), kept, "--sandbox {sandbox}: {:?}", manager.names());
            process = Process::spawn(&mut manager.command(&scratch, "share", &options));
            for pending in waiting {
                let reply = client.finish(pending).expect("READ");
                assert!(reply.payload.starts_with(format!("life {life}").as_bytes()), "--sandbox {sandbox}: {}", process.log());
            }
            assert_eq!(client.lookup(ROOT, "file").expect("LOOKUP").nodeid, node);
            assert_eq!(client.readdir(directory, listing, 0, 4096).expect("READDIR").len(), 2);
            assert_eq!(client.readdir(ROOT, root_listing, 0, 4096).expect("READDIR").len(), 4);
            client.write(node, fh, 5, b"again").expect("WRITE");
            assert_eq!(fs::read(scratch.join("share/file")).expect("the file"), b"life again");
            let lost = client.read(gone.entry.nodeid, gone.open.fh, 0, 1).expect_err("READ of a file that is gone").errno();
            assert!([Some(libc::EBADF), Some(libc::ESTALE)].contains(&lost), "{lost:?}");
            assert_eq!(manager.wait_for_session(), kept);
            let said = control(&scratch.join("s"), &["status"]).1;
            assert!(said.contains(["outlived the daemon once", "outlived the daemon 2 times"][life - 1]), "--sandbox {sandbox}: {said}");
            process.wait_for_line(if life == 1 { " 1 open files" } else { "nothing that the guest had is lost" });
        }
        drop((guest, client));
        assert_eq!(process.wait().code(), Some(0), "{}", process.log());
        assert!(eventually(|| manager.names().is_empty()), "{:?}", manager.names());
    }
}

#[test]
fn locks_and_inodes_without_file_handles_are_lost_and_the_rest_goes_on() {
    let Some(scratch) = share("a kept session") else { return };
    let manager = Manager::start(&scratch);
    let options = ["--sandbox", "none", "--inode-file-handles", "never", "--locks", "host"];
    let mut process = Process::spawn(&mut manager.command(&scratch, "share", &options));
    let (_guest, mut client) = mount(&scratch.join("s"));
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let lk = FileLock { start: 0, end: 9, kind: libc::F_WRLCK as u32, pid: 1 };
    let lock = LkIn { fh: made.open.fh, owner: 1, lk, lk_flags: 0, padding: 0 };
    client.setlk(made.entry.nodeid, &lock, false).expect("SETLK");
    manager.wait_for_session();
    end(&mut process);
    let process = Process::spawn(&mut manager.command(&scratch, "share", &options));
    assert_eq!(client.getattr(made.entry.nodeid, None).expect_err("GETATTR").errno(), Some(libc::ESTALE), "{}", process.log());
    let read = client.read(made.entry.nodeid, made.open.fh, 0, 1).expect_err("READ");
    assert_eq!(read.errno(), Some(libc::EBADF));
    assert_ne!(client.lookup(ROOT, "file").expect("LOOKUP").nodeid, made.entry.nodeid);
    process.wait_for_line("1 inodes, 1 open files and 1 locks of the guest are lost");
}

#[test]
fn what_cannot_be_gone_on_with_is_forgotten_and_the_daemon_starts_anew() {
    type Change = fn(&Manager, &Scratch);
    static READ: fn(&Manager) -> File = |manager| {
        let kept = manager.kept.lock().expect("the lock");
        File::from(kept["gatherfs-session-0"].try_clone().expect("a descriptor"))
    };
    let cases: &[(&str, &[&str], &str, Change)] = &[
        ("no JSON", &[], "it cannot be taken", |manager, _| READ(manager).write_all_at(b"garbage", 0).expect("a memfd")),
        ("another version", &[], "another layout", |manager, _| {
            let memfd = READ(manager);
            let text = fs::read_to_string(format!("/proc/self/fd/{}", memfd.as_raw_fd())).expect("JSON");
            memfd.write_all_at(text.replace("\"version\":1", "\"version\":9").as_bytes(), 0).expect("a memfd");
        }),
        ("a descriptor is missing", &[], "it cannot be taken", |manager, _| {
            let last = manager.names().len() - 1;
            manager.kept.lock().expect("the lock").remove(&format!("gatherfs-session-{last}"));
        }),
        ("one in between is missing", &[], "descriptors are missing", |manager, _| {
            drop(manager.kept.lock().expect("the lock").remove("gatherfs-session-2"));
        }),
        ("other options", &["--cache", "never"], "the command line is another one", |_, _| ()),
        ("another directory", &[], "another directory or file is shared", |_, scratch| {
            fs::rename(scratch.join("share"), scratch.join("old")).expect("a directory");
            fs::create_dir(scratch.join("share")).expect("a directory");
        }),
        ("a file in place of the text", &[], "it cannot be", |manager, scratch| {
            let file = File::open(scratch.join("share")).expect("a directory");
            manager.kept.lock().expect("the lock").insert("gatherfs-session-0".to_owned(), file.into());
        }),
        ("an old session", &[], "was being changed", |manager, _| {
            let session = session_in(&manager.kept.lock().expect("the lock")).expect("a session");
            let name = format!("gatherfs-session-{}", session["records"].as_u64().expect("a place") + 1);
            let records = File::from(manager.kept.lock().expect("the lock")[&name].try_clone().expect("a descriptor"));
            records.write_all_at(&u64::MAX.to_ne_bytes(), CHANGES_AT).expect("the arena of requests");
        }),
        ("the arena of requests is damaged", &[], "cannot be used", |manager, _| {
            let session = session_in(&manager.kept.lock().expect("the lock")).expect("a session");
            let name = format!("gatherfs-session-{}", session["records"].as_u64().expect("a place") + 1);
            let records = File::from(manager.kept.lock().expect("the lock")[&name].try_clone().expect("a descriptor"));
            records.write_all_at(&[0xff; 64], 16).expect("the arena of requests");
        }),
    ];
    for (what, more, said, change) in cases {
        let Some(scratch) = share("a kept session") else { return };
        let manager = Manager::start(&scratch);
        let mut process = Process::spawn(&mut manager.command(&scratch, "share", &["--sandbox", "none"]));
        let (guest, mut client) = mount(&scratch.join("s"));
        client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
        manager.wait_for_session();
        end(&mut process);
        change(&manager, &scratch);
        let options = [&["--sandbox", "none"], *more].concat();
        let process = Process::spawn(&mut manager.command(&scratch, "share", &options));
        process.wait_for_line("sharing ");
        assert!(process.log().contains(said), "{what}: {}", process.log());
        assert!(eventually(|| !manager.names().contains(&"gatherfs-session-0".to_owned())), "{what}: {:?}", manager.names());
        drop((guest, client));
        let (_guest, mut client) = mount(&scratch.join("s"));
        let found = client.lookup(ROOT, "file").map(|_| ()).map_err(|e| e.errno());
        assert_eq!(found, if *what == "another directory" { Err(Some(libc::ENOENT)) } else { Ok(()) }, "{what}");
    }
}

#[test]
fn an_end_in_order_or_of_the_vmm_leaves_nothing_behind() {
    let Some(scratch) = share("a kept session") else { return };
    let manager = Manager::start(&scratch);
    let options = ["--sandbox", "none", "--keep-listening"];
    let mut process = Process::spawn(&mut manager.command(&scratch, "share", &options));
    let all = mount(&scratch.join("s"));
    manager.wait_for_session();
    drop(all);
    assert!(eventually(|| manager.names().is_empty()), "the VMM has gone: {:?}", manager.names());
    let all = mount(&scratch.join("s"));
    manager.wait_for_session();
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    assert!(eventually(|| manager.names().is_empty()), "an end in order: {:?}", manager.names());
    drop(all);
    // A VMM that goes while there is no daemon.
    let mut process = Process::spawn(&mut manager.command(&scratch, "share", &options));
    let all = mount(&scratch.join("s"));
    manager.wait_for_session();
    end(&mut process);
    drop(all);
    let process = Process::spawn(&mut manager.command(&scratch, "share", &options));
    process.wait_for_line("the VMM has disconnected");
    let (_guest, mut client) = mount(&scratch.join("s"));
    assert!(client.getattr(ROOT, None).is_ok());
    manager.wait_for_session();
}

/// Begins another session of FUSE, ends `process`, and finds the new session's file open in the next one: what was kept before is old.
fn assert_new_session_is_kept(manager: &Manager, scratch: &Scratch, client: &mut Client, mut process: Process) {
    client.destroy().expect("DESTROY");
    client.init().expect("INIT");
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    client.write(made.entry.nodeid, made.open.fh, 0, b"text").expect("WRITE");
    manager.wait_for_session();
    end(&mut process);
    let process = Process::spawn(&mut manager.command(scratch, "share", &["--sandbox", "none"]));
    let read = client.read(made.entry.nodeid, made.open.fh, 0, 10);
    assert_eq!(read.unwrap_or_else(|e| panic!("{e}: {}", process.log())), b"text");
}

#[test]
fn a_guest_that_mounts_again_is_kept_with_its_new_files() {
    let Some(scratch) = share("a kept session") else { return };
    let manager = Manager::start(&scratch);
    let process = Process::spawn(&mut manager.command(&scratch, "share", &["--sandbox", "none"]));
    let (_guest, mut client) = mount(&scratch.join("s"));
    manager.wait_for_session();
    assert_new_session_is_kept(&manager, &scratch, &mut client, process);
}

#[test]
fn nothing_is_kept_where_the_manager_keeps_too_little() {
    let Some(scratch) = share("a kept session") else { return };
    let manager = Manager::start(&scratch);
    let mut command = manager.command(&scratch, "share", &["--sandbox", "none", "--keep-listening"]);
    let process = Process::spawn(command.env("FDSTORE", "3"));
    let (_guest, mut client) = mount(&scratch.join("s"));
    process.wait_for_line("raise FileDescriptorStoreMax=");
    assert!(client.getattr(ROOT, None).is_ok() && manager.names().is_empty());
}

#[test]
fn a_program_that_was_upgraded_to_has_the_session_kept() {
    let Some(scratch) = share("a kept session") else { return };
    let manager = Manager::start(&scratch);
    let process = Process::spawn(&mut manager.command(&scratch, "share", &["--sandbox", "none"]));
    let (_guest, mut client) = mount(&scratch.join("s"));
    manager.wait_for_session();
    let (status, said) = control(&scratch.join("s"), &["upgrade"]);
    assert_eq!(status, Some(0), "{said}");
    assert_new_session_is_kept(&manager, &scratch, &mut client, process);
}
