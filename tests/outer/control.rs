//! The control socket and gatherfsctl: who is answered, what is refused, and that no client holds up anything else.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use gatherfs_support::daemon::{Daemon, Process, Scratch, gatherfsd, is_root};
use gatherfs_support::places;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recvmsg, sendmsg, socket_with,
};
use rustix::process::Signal;

use super::{command, control, control_socket, mount, sandboxes};

/// A client that says what it wants.
fn client(path: &Path) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket");
    connect(&socket, &SocketAddrUnix::new(path).expect("a path")).expect("a connection");
    socket
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("a packet");
}

/// The answer; empty where there is none.
fn answer(socket: &OwnedFd) -> String {
    let mut bytes = [0; 8192];
    let mut control = RecvAncillaryBuffer::default();
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).expect("an answer");
    String::from_utf8(bytes[..received.bytes].to_vec()).expect("text")
}

#[test]
fn status_says_what_the_daemon_does() {
    for sandbox in sandboxes() {
        let daemon = Daemon::start(&["--sandbox", sandbox, "--tag", "docs"]);
        let (_guest, _client) = mount(daemon.socket());
        for path in [daemon.socket(), &control_socket(daemon.socket())] {
            let (status, text) = control(path, &["status"]);
            assert_eq!(status, Some(0), "{text}");
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[..3], [&*format!("pid: {}", daemon.pid()), &format!("version: {}", env!("CARGO_PKG_VERSION")), "tag: docs"]);
            assert!(lines[3].starts_with("uptime_s: "), "{text}");
            assert_eq!(lines[4..], ["status: a VMM is connected"], "--sandbox {sandbox}");
        }
    }
}

#[test]
fn the_control_socket_is_its_users_alone_and_goes_with_the_daemon() {
    for sandbox in sandboxes() {
        let mut daemon = Daemon::start(&["--sandbox", sandbox, "--socket-group", "0"]);
        let path = control_socket(daemon.socket());
        let meta = fs::symlink_metadata(&path).expect("the control socket");
        assert!(meta.file_type().is_socket());
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, rustix::process::geteuid().as_raw()));
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
        assert!(!path.exists(), "--sandbox {sandbox}");
    }
}

#[test]
fn the_control_socket_is_where_the_option_says() {
    let scratch = Scratch::new();
    let path = scratch.join("c");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let daemon = Daemon::start(&["--control-socket", &text(&path)]);
    assert!(!control_socket(daemon.socket()).exists());
    assert_eq!(control(&path, &["status"]).0, Some(0));
    let (status, said) = control(daemon.socket(), &["status"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("has no control socket beside it"), "{said}");
    // A path that was given and cannot be used is an error, whatever is there.
    fs::write(scratch.join("file"), "").expect("a file");
    for bad in [path.clone(), scratch.join("file"), scratch.join("missing/c"), scratch.join(&"c".repeat(120))] {
        let scratch = Scratch::new();
        let mut process = Process::spawn(&mut command(&scratch, &["--sandbox", "none", "--control-socket", &text(&bad)]));
        assert_eq!(process.wait().code(), Some(1));
        assert!(process.log().contains("--control-socket none") && process.log().contains(&text(&bad)), "{}", process.log());
        assert!(!scratch.join("s").exists() && !scratch.join("s.pid").exists());
    }
    assert_eq!(control(&path, &["status"]).0, Some(0), "the other daemon's is left alone");
    assert!(scratch.join("file").exists());
}

#[test]
fn a_default_control_socket_that_cannot_be_made_is_no_error() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("s.control")).expect("a directory");
    let daemon = Daemon::start_in(scratch, &["--log-level", "debug"]);
    assert!(daemon.log().contains("no control socket at "), "{}", daemon.log());
    mount(daemon.socket());
    for options in [&["--control-socket", "none"][..], &["--no-keeper"]] {
        let daemon = Daemon::start(options);
        assert!(!control_socket(daemon.socket()).exists(), "{options:?}");
    }
    // A stale one is replaced.
    let scratch = Scratch::new();
    // Never anybody's: one that is closed may be open for a moment in a process that another test is about to start.
    mknodat(CWD, scratch.join("s.control"), FileType::Socket, Mode::RUSR | Mode::WUSR, 0).expect("a socket's file");
    let daemon = Daemon::start_in(scratch, &[]);
    assert_eq!(control(daemon.socket(), &["status"]).0, Some(0));
}

#[test]
fn a_control_socket_without_a_keeper_is_refused() {
    let scratch = Scratch::new();
    let mut process = Process::spawn(&mut command(&scratch, &["--sandbox", "none", "--no-keeper", "--control-socket", "/run/c"]));
    assert_eq!(process.wait().code(), Some(2));
    assert!(process.log().contains("--control-socket needs a keeper"), "{}", process.log());
}

#[test]
fn with_an_inherited_socket_there_is_one_where_it_was_asked_for() {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.join("s")).expect("a socket");
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(scratch.path()).args(["--fd", "0", "--sandbox", "none", "--control-socket"]).arg(scratch.join("c"));
    let duplicate = move || {
        // SAFETY: dup2(2) takes two numbers.
        let done = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: dup2(2) is one system call and may be made between fork and exec.
    unsafe { command.pre_exec(duplicate) };
    let mut process = Process::spawn(&mut command);
    process.wait_for_line("sharing ");
    assert!(!scratch.join("s.control").exists());
    assert_eq!(control(&scratch.join("c"), &["status"]).0, Some(0));
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    assert!(scratch.join("s").exists() && !scratch.join("c").exists());
}

/// gatherfsctl by user `uid`, at the control socket `path`.
fn by_user(uid: u32, path: &Path) -> (Option<i32>, String) {
    let program = places::for_every_user(Path::new(env!("CARGO_BIN_EXE_gatherfsctl")));
    let mut command = Command::new(program);
    let output = command.uid(uid).gid(uid).arg("--socket-path").arg(path).arg("status").output().expect("gatherfsctl starts");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("text"))
}

#[test]
fn another_user_is_refused_even_where_the_file_lets_them_connect() {
    if !is_root("another user") {
        return;
    }
    for sandbox in sandboxes() {
        let daemon = Daemon::start(&["--sandbox", sandbox]);
        let path = control_socket(daemon.socket());
        let directory = daemon.socket().parent().expect("a directory");
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("its mode");
        let (status, said) = by_user(1234, &path);
        assert!(status == Some(1) && said.contains("Permission denied"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("its mode");
        let (status, said) = by_user(1234, &path);
        assert!(status == Some(1) && said.contains("only root and the daemon's own user"), "{said}");
        assert_eq!(control(&path, &["status"]).0, Some(0));
    }
}

/// Root has no number there, nor has anybody else.
#[test]
fn in_a_user_namespace_the_user_and_root_are_answered_and_others_are_not() {
    if !is_root("another user") {
        return;
    }
    const USER: u32 = 1234;
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    for name in ["share", "run"] {
        fs::create_dir(scratch.join(name)).expect("a directory");
        std::os::unix::fs::chown(scratch.join(name), Some(USER), Some(USER)).expect("its owner");
    }
    let socket = scratch.join("run/s");
    let mut command = gatherfsd();
    command.uid(USER).gid(USER).arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(&socket);
    let process = Process::spawn(command.args(["--sandbox", "namespace"]));
    process.wait_for_line("sharing ");
    let path = control_socket(&socket);
    assert_eq!(by_user(USER, &path).0, Some(0));
    assert_eq!(control(&path, &["status"]).0, Some(0), "root");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("its mode");
    let (status, said) = by_user(5678, &path);
    assert!(status == Some(1) && said.contains("only root and the daemon's own user"), "{said}");
    assert_eq!(by_user(USER, &path).0, Some(0));
}

#[test]
fn clients_that_say_nothing_or_nonsense_hold_up_nobody() {
    let mut daemon = Daemon::start(&[]);
    let path = control_socket(daemon.socket());
    let silent: Vec<OwnedFd> = (0..50).map(|_| client(&path)).collect();
    for nonsense in [&b"upgrades"[..], b"", b"status\n", &[0xff; 64], &[b'x'; 4096]] {
        let socket = client(&path);
        send(&socket, nonsense, &[]);
        assert!(answer(&socket).starts_with("refused no such request"), "{nonsense:?}");
    }
    let gone = client(&path);
    send(&gone, b"status", &[]);
    drop(gone);
    // Descriptors that nobody asked for.
    let file = File::open("/dev/null").expect("a file");
    let socket = client(&path);
    send(&socket, b"status", &[file.as_fd(); 8]);
    assert!(answer(&socket).starts_with("ok pid: "));
    assert_eq!(control(daemon.socket(), &["status"]).0, Some(0));
    assert_eq!(daemon.metrics().get("connections"), 0, "signals come through");
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it is there").count();
    assert!(open < 32, "{open} descriptors");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    drop(silent);
}

#[test]
fn a_program_that_cannot_be_executed_is_refused_with_the_reason() {
    let scratch = Scratch::new();
    let script = scratch.join("script");
    fs::write(&script, "#!/bin/sh\n").expect("a file");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    let plain = scratch.join("plain");
    fs::copy(env!("CARGO_BIN_EXE_gatherfsctl"), &plain).expect("a copy");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).expect("its mode");
    for sandbox in sandboxes() {
        let daemon = Daemon::start(&["--sandbox", sandbox]);
        let (_guest, mut client) = mount(daemon.socket());
        let cases = [
            (script.clone(), "not an ELF program"),
            (plain.clone(), "may not be executed"),
            (scratch.path().to_owned(), "not a regular file"),
            (scratch.join("missing"), "cannot open"),
        ];
        for (program, expected) in cases {
            let (status, said) = control(daemon.socket(), &["upgrade", program.to_str().expect("text")]);
            assert!(status == Some(1) && said.contains(expected), "--sandbox {sandbox}: {said}");
        }
        if *sandbox != "none" && cfg!(not(target_feature = "crt-static")) {
            for words in [&["upgrade", env!("CARGO_BIN_EXE_gatherfsd")][..], &["upgrade"]] {
                let (status, said) = control(daemon.socket(), words);
                assert!(status == Some(1) && said.contains("cargo static"), "--sandbox {sandbox}: {said}");
            }
        }
        let (status, said) = control(daemon.socket(), &["status"]);
        assert!(status == Some(0) && said.contains("status: a VMM is connected"), "{said}");
        assert!(client.getattr(gatherfs_support::guest::fuse::ROOT, None).is_ok());
    }
}

/// As a package leaves it: the file is another one, under the same name.
#[test]
fn the_default_program_is_the_one_that_has_the_path_now() {
    let scratch = Scratch::new();
    let program = scratch.join("gatherfsd");
    // By another process: one that this one starts in the meantime would have the file open for writing, and then it cannot be executed.
    let copied = Command::new("cp").arg(gatherfsd().get_program()).arg(&program).status();
    assert!(copied.expect("cp starts").success());
    for sandbox in sandboxes() {
        let place = Scratch::new();
        fs::create_dir(place.join("share")).expect("the shared directory");
        let mut command = Command::new(&program);
        command.arg("--shared-dir").arg(place.join("share")).arg("--socket-path").arg(place.join("s")).args(["--sandbox", sandbox]);
        let process = Process::spawn(&mut command);
        process.wait_for_line("sharing ");
        fs::rename(&program, scratch.join("old")).expect("the program");
        let (status, said) = control(&place.join("s"), &["upgrade"]);
        assert!(status == Some(1) && said.contains("cannot open") && said.contains("name a program"), "{said}");
        fs::write(&program, "#!/bin/sh\n").expect("another one");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
        let (status, said) = control(&place.join("s"), &["upgrade"]);
        assert!(status == Some(1) && said.contains("not an ELF program"), "--sandbox {sandbox}: {said}");
        process.signal(Signal::USR2);
        process.wait_for_line("the upgrade is refused: the program is not an ELF program");
        // A link would lead into the share.
        fs::remove_file(&program).expect("the script");
        std::os::unix::fs::symlink(scratch.join("old"), &program).expect("a link");
        let (status, said) = control(&place.join("s"), &["upgrade"]);
        assert!(status == Some(1) && said.contains("cannot open"), "--sandbox {sandbox}: {said}");
        fs::rename(scratch.join("old"), &program).expect("the program");
    }
}

#[test]
fn a_command_line_of_gatherfsctl_that_makes_no_sense_has_status_2() {
    let path = Path::new("/no/such/socket");
    for words in [&[][..], &["reload"], &["status", "now"]] {
        assert_eq!(control(path, words).0, Some(2), "{words:?}");
    }
    let (status, said) = control(path, &["status"]);
    assert!(status == Some(1) && said.contains("/no/such/socket") && said.contains("--socket-path of a gatherfsd"), "{said}");
    let (status, help) = control(path, &["--help"]);
    assert!(status == Some(0) && help.contains("upgrade") && help.contains("Exit status"), "{help}");
}

/// The keeper and the worker, whose ids the user may find, do not end by the signal either.
#[test]
fn a_request_for_an_upgrade_that_reaches_another_process_is_ignored_and_told() {
    for options in [&[][..], &["--no-keeper"]] {
        let mut daemon = Daemon::start(options);
        let (_guest, mut client) = mount(daemon.socket());
        let send = |pid: u32| {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
            rustix::process::kill_process(pid, Signal::USR2).expect("it is there");
        };
        send(daemon.keeper());
        if options.is_empty() {
            daemon.wait_for_line("SIGUSR2 to the keeper is ignored");
            send(daemon.serving());
            // The worker drains, and no program comes.
            daemon.wait_for_line("; another one goes on");
        } else {
            daemon.wait_for_line("SIGUSR2 is ignored");
        }
        assert!(client.getattr(gatherfs_support::guest::fuse::ROOT, None).is_ok());
        assert!(daemon.is_running());
    }
}
