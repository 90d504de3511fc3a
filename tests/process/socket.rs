//! The socket: made, replaced, refused, inherited, given to a group, removed.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use gatherfs_support::daemon::{Daemon, Process, Scratch, gatherfsd, is_root};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::Signal;

use super::{assert_serves, command, inherit, mount, refused};

#[test]
fn a_stale_socket_is_replaced() {
    let scratch = Scratch::new();
    // Never anybody's: one that is closed may be open for a moment in a process that another test is about to start.
    rustix::fs::mknodat(CWD, scratch.join("s"), FileType::Socket, Mode::RUSR | Mode::WUSR, 0).expect("a socket's file");
    let daemon = Daemon::start_in(scratch, &[]);
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
}

#[test]
fn a_socket_that_somebody_listens_on_is_refused_and_the_other_goes_on() {
    let mut first = Daemon::start(&["--keep-listening"]);
    for connected in [false, true] {
        let mount = connected.then(|| mount(first.socket()));
        let mut second = gatherfsd();
        second.arg("--shared-dir").arg(first.share()).arg("--socket-path").arg(first.socket()).args(["--sandbox", "none"]);
        let (status, said) = refused(&mut second);
        assert_eq!(status.code(), Some(1));
        assert!(said.contains("listens on") && said.contains(first.socket().to_str().expect("text")), "{said}");
        assert!(first.socket().exists() && first.is_running());
        if let Some((_guest, mut client)) = mount {
            assert_serves(&mut client, "dir");
        }
    }
    assert_eq!(first.metrics().get("connections"), 1, "the first one was not bothered");
}

#[test]
fn a_socket_of_another_kind_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.join("share")).expect("a directory");
    let other = std::os::unix::net::UnixDatagram::bind(scratch.join("s")).expect("a socket");
    let mut daemon = gatherfsd();
    daemon.arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(scratch.join("s")).args(["--sandbox", "none"]);
    let (status, _) = refused(&mut daemon);
    assert_eq!(status.code(), Some(1));
    let client = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    client.send_to(b"x", scratch.join("s")).expect("it is still there");
    drop(other);
}

/// The list of sockets in /proc is one network namespace's: from another the living daemon shows by its process id file.
#[test]
fn a_daemon_in_another_network_namespace_keeps_its_socket() {
    if !is_root("a network namespace") {
        return;
    }
    let mut first = Daemon::start(&["--keep-listening"]);
    let mut second = std::process::Command::new("unshare");
    second.args(["--net", "--", env!("CARGO_BIN_EXE_gatherfsd"), "--sandbox", "none", "--shared-dir"]);
    second.arg(first.share()).arg("--socket-path").arg(first.socket());
    let (_, said) = refused(&mut second);
    assert!(said.contains("another process listens"), "{said}");
    assert!(first.is_running());
    let (_guest, mut client) = mount(first.socket());
    assert_serves(&mut client, "dir");
}

#[test]
fn a_relative_path_through_a_link_leads_to_the_same_live_socket() {
    let first = Daemon::start(&[]);
    let scratch = Scratch::new();
    symlink(first.socket().parent().expect("a directory"), scratch.join("link")).expect("a link");
    let mut second = gatherfsd();
    second.arg("--shared-dir").arg(first.share()).args(["--socket-path", "link/s", "--sandbox", "none"]);
    let (_, said) = refused(second.current_dir(scratch.path()));
    assert!(said.contains("listens on"), "{said}");
    let (_guest, mut client) = mount(first.socket());
    assert_serves(&mut client, "dir");
}

#[test]
fn a_path_that_is_no_socket_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    fs::write(scratch.join("s"), "a letter").expect("a file");
    let (_, said) = refused(&mut command(&scratch, &[]));
    assert!(said.contains("is not a socket") && said.contains(scratch.join("s").to_str().expect("text")), "{said}");
    assert_eq!(fs::read(scratch.join("s")).expect("the file"), b"a letter");
}

#[test]
fn a_path_that_cannot_be_a_socket_is_refused() {
    let scratch = Scratch::new();
    fs::write(scratch.join("file"), "").expect("a file");
    let shown = |name: &str| scratch.join(name).display().to_string();
    let long = "s".repeat(120);
    let cases = [
        ("missing/s", format!("the directory {} does not exist; create the directory or choose another --socket-path", shown("missing"))),
        ("missing/below/s", format!("the directory {} does not exist", shown("missing"))),
        ("file/s", format!("{} is not a directory", shown("file"))),
        (&long, format!("the path has {} bytes, at most 107 are allowed; choose a shorter --socket-path", shown(&long).len())),
    ];
    for (name, expected) in cases {
        let mut command = gatherfsd();
        command.arg("--shared-dir").arg(scratch.path()).arg("--socket-path").arg(scratch.join(name)).args(["--sandbox", "none"]);
        let (_, said) = refused(&mut command);
        assert!(said.contains(&format!("cannot listen on {}: {expected}", shown(name))), "{said}");
    }
}

#[test]
fn a_short_name_in_a_directory_of_a_long_one_is_a_socket() {
    let scratch = Scratch::new();
    let deep = scratch.join(&"d".repeat(100));
    fs::create_dir(&deep).expect("a directory");
    let mut command = gatherfsd();
    command.args(["--shared-dir", ".", "--socket-path", "s", "--sandbox", "none"]).current_dir(&deep);
    let mut process = Process::spawn(&mut command);
    process.wait_for_line("sharing ");
    let (guest, mut client) = mount(Path::new(&format!("/proc/{}/cwd/s", process.pid())));
    assert_serves(&mut client, "dir");
    let (_, said) = refused(&mut command);
    assert!(said.contains("another process listens"), "{said}");
    drop((guest, client));
    assert!(process.wait().success());
    assert!(!deep.join("s").exists() && !deep.join("s.pid").exists());
}

/// A daemon on an inherited socket, which stays the test's too.
fn on_inherited_socket(scratch: &Scratch) -> (UnixListener, Process) {
    let listener = UnixListener::bind(scratch.join("inherited")).expect("a socket");
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(scratch.path()).args(["--fd", "700", "--sandbox", "none"]);
    inherit(&mut command, &listener, 700);
    let process = Process::spawn(&mut command);
    let line = process.wait_for_line("sharing ");
    assert!(line.contains("inherited socket 700"), "{line}");
    (listener, process)
}

#[test]
fn an_inherited_socket_is_served_and_left_to_its_maker() {
    let scratch = Scratch::new();
    let (listener, mut process) = on_inherited_socket(&scratch);
    let (guest, mut client) = mount(&scratch.join("inherited"));
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert!(process.wait().success());
    assert!(scratch.join("inherited").exists(), "it is not the daemon's to remove");
    listener.set_nonblocking(true).expect("still a socket");
    assert_eq!(listener.accept().err().map(|e| e.kind()), Some(io::ErrorKind::WouldBlock), "it still listens");
}

/// As a unit with `StandardInput=socket` starts it.
#[test]
fn standard_input_may_be_the_socket() {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.join("s")).expect("a socket");
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(scratch.path()).args(["--fd", "0", "--sandbox", "none"]);
    inherit(&mut command, listener.as_fd(), 0);
    let mut process = Process::spawn(&mut command);
    let (guest, mut client) = mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert!(process.wait().success(), "{}", process.log());
}

#[test]
fn an_idle_daemon_on_an_inherited_socket_ends_and_leaves_it_listening() {
    let scratch = Scratch::new();
    let (_listener, mut process) = on_inherited_socket(&scratch);
    process.signal(Signal::TERM);
    assert!(process.wait().success());
    UnixStream::connect(scratch.join("inherited")).expect("its maker still listens");
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let scratch = Scratch::new();
    let file = File::create(scratch.join("file")).expect("a file");
    let (connected, _peer) = UnixStream::pair().expect("sockets");
    let start = |with: Option<&dyn AsFd>| {
        let mut command = gatherfsd();
        command.arg("--shared-dir").arg(scratch.path()).args(["--fd", "900", "--sandbox", "none"]);
        if let Some(descriptor) = with {
            inherit(&mut command, descriptor.as_fd(), 900);
        }
        refused(&mut command).1
    };
    for said in [start(None), start(Some(&file)), start(Some(&connected))] {
        assert!(said.contains("--fd 900 is not a listening Unix socket"), "{said}");
    }
}

/// A group of /etc/group other than root's: name and number.
fn some_group() -> (String, u32) {
    let groups = fs::read_to_string("/etc/group").expect("groups");
    let mut found = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    });
    found.find(|(_, gid)| *gid != 0).expect("a group")
}

#[test]
fn the_socket_belongs_to_the_group_that_was_named() {
    if !is_root("giving a file to another group") {
        return;
    }
    let (name, gid) = some_group();
    for (group, gid) in [(name.as_str(), gid), ("54321", 54321)] {
        let daemon = Daemon::start(&["--socket-group", group]);
        let meta = fs::symlink_metadata(daemon.socket()).expect("the socket");
        assert!(meta.file_type().is_socket());
        assert_eq!((meta.gid(), meta.mode() & 0o777), (gid, 0o660), "--socket-group {group}");
    }
}

#[test]
fn without_a_group_the_socket_is_its_makers_alone() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "umask 0 && exec \"$0\" \"$@\""]).arg(gatherfsd().get_program());
    command.arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(scratch.join("s")).args(["--sandbox", "none"]);
    let process = Process::spawn(&mut command);
    process.wait_for_line("sharing ");
    let mode = |name: &str| fs::symlink_metadata(scratch.join(name)).expect("it is there").mode() & 0o777;
    assert_eq!((mode("s"), mode("s.pid")), (0o700, 0o600));
}

#[test]
fn a_group_that_is_none_is_refused_and_leaves_no_socket() {
    let scratch = Scratch::new();
    let (_, said) = refused(&mut command(&scratch, &["--socket-group", "no-such-group"]));
    assert!(said.contains("no such group") && said.contains("no-such-group"), "{said}");
    assert!(!scratch.join("s").exists());
}

/// The process id in the file beside a socket.
fn pid_in(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn the_process_id_lies_beside_the_socket_as_long_as_the_daemon_lives() {
    for sandbox in ["none", "chroot", "namespace"] {
        if sandbox != "none" && !is_root("a sandbox") {
            continue;
        }
        let scratch = Scratch::new();
        // What an older daemon left behind, longer than what is written now.
        fs::write(scratch.join("s.pid"), "12345678901234567890\n").expect("a file");
        let mut daemon = Daemon::start_in(scratch, &["--sandbox", sandbox]);
        let path = daemon.socket().with_file_name("s.pid");
        assert_eq!(pid_in(&path), Some(daemon.pid()), "--sandbox {sandbox}");
        daemon.signal(Signal::TERM);
        assert!(daemon.wait().success());
        assert!(!path.exists(), "--sandbox {sandbox} left the file");
    }
}

#[test]
fn a_process_id_that_cannot_be_written_is_refused_and_leaves_no_socket() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("s.pid")).expect("a directory");
    let (_, said) = refused(&mut command(&scratch, &[]));
    assert!(said.contains("cannot write the pid file") && said.contains(scratch.join("s.pid").to_str().expect("text")), "{said}");
    assert!(!scratch.join("s").exists());

    // Another daemon holds it, though its socket is gone.
    let scratch = Scratch::new();
    let first = Daemon::start_in(scratch, &[]);
    fs::remove_file(first.socket()).expect("the socket");
    let mut second = gatherfsd();
    second.arg("--shared-dir").arg(first.share()).arg("--socket-path").arg(first.socket()).args(["--sandbox", "none"]);
    let (_, said) = refused(&mut second);
    assert!(said.contains("another daemon may have locked"), "{said}");
    assert_eq!(pid_in(&first.socket().with_file_name("s.pid")), Some(first.pid()));
}
