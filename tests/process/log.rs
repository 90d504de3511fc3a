//! Where the log goes and what is said in it.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use gatherfs_support::daemon::{PATIENCE, Process, Scratch, gatherfsd, is_root};

use super::{assert_serves, command, mount};

/// What the daemon said until it ended, when its guest left.
fn said(command: &mut Command, scratch: &Scratch) -> String {
    let mut process = Process::spawn(command);
    let (guest, mut client) = mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert!(process.wait().success());
    process.log()
}

#[test]
fn a_level_may_be_written_in_any_case_and_rust_log_decides_where_it_is_set() {
    let cases: [(&[&str], Option<&str>, bool, bool); 7] = [
        (&["--log-level", "WARN"], None, false, false),
        (&["--log-level=Info"], None, true, false),
        (&["-d"], None, true, true),
        (&["-d", "--log-level", "error"], None, true, true),
        (&["-o", "loglevel=err"], None, false, false),
        // As podman starts virtiofsd.
        (&[], Some("ERROR"), false, false),
        (&["--log-level", "off"], Some("debug"), true, true),
    ];
    for (words, variable, info, debug) in cases {
        let scratch = Scratch::new();
        let mut command = command(&scratch, words);
        match variable {
            Some(value) => command.env("RUST_LOG", value),
            None => command.env_remove("RUST_LOG"),
        };
        let said = said(&mut command, &scratch);
        assert_eq!((said.contains("sharing "), said.contains("flags 0x")), (info, debug), "{words:?} {variable:?}\n{said}");
    }
}

#[test]
fn older_spellings_work_and_are_warned_of_once() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    let mut command = gatherfsd();
    command.arg("--socket").arg(scratch.join("s")).arg("-o").arg(format!("source={},sandbox=chroot", scratch.join("share").display()));
    command.args(["-f", "-o", "cache=none", "--inode-file-handles=fallback", "--migration-on-error=guest-error"]);
    if !is_root("a sandbox") {
        return;
    }
    let said = said(&mut command, &scratch);
    for advice in ["use --socket-path", "-f has no effect", "-o is deprecated", "fallback is deprecated", "does not support migration"] {
        assert_eq!(said.matches(advice).count(), 1, "{advice}\n{said}");
    }
    assert!(said.contains("sharing "), "{said}");
}

#[test]
fn a_migration_option_is_warned_of_also_where_it_names_the_default() {
    let options =
        ["--migration-mode=find-paths", "--migration-on-error=abort", "--migration-mode=file-handles", "--migration-confirm-paths"];
    for option in options {
        let scratch = Scratch::new();
        let said = said(&mut command(&scratch, &[option]), &scratch);
        assert_eq!(said.matches("the --migration options have no effect").count(), 1, "{option}\n{said}");
    }
}

#[test]
fn the_line_that_kata_waits_for_is_there_once_the_socket_is() {
    let scratch = Scratch::new();
    let process = Process::spawn(&mut command(&scratch, &[]));
    process.wait_for_line("Waiting for vhost-user socket connection...");
    assert!(scratch.join("s").exists());
}

/// A command that runs `command` with `dir` in place of /dev.
fn with_dev(dir: &Scratch, command: &Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-c", "mount --bind \"$0\" /dev && exec \"$@\""]).arg(dir.path());
    outer.arg(command.get_program()).args(command.get_args());
    outer
}

/// The messages that have come, until one contains `text`.
fn received(syslog: &UnixDatagram, text: &str) -> Vec<String> {
    syslog.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut messages: Vec<String> = Vec::new();
    let mut bytes = [0; 4096];
    while !messages.last().is_some_and(|last| last.contains(text)) {
        let len = syslog.recv(&mut bytes).unwrap_or_else(|e| panic!("no message with \"{text}\": {e}; {messages:?}"));
        messages.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
    }
    messages
}

#[test]
fn with_the_option_the_log_goes_to_syslog_from_every_sandbox() {
    if !is_root("another /dev") {
        return;
    }
    for sandbox in ["none", "chroot", "namespace"] {
        let (scratch, dev) = (Scratch::new(), Scratch::new());
        let syslog = UnixDatagram::bind(dev.join("log")).expect("a socket");
        let mut command = with_dev(&dev, &command(&scratch, &["--syslog", "-d", "--sandbox", sandbox]));
        command.env("RUST_LOG", "off");
        let mut process = Process::spawn(&mut command);
        let started = received(&syslog, "Waiting for vhost-user socket connection...");
        let name = format!("gatherfsd[{}]: ", process.pid());
        assert!(started.iter().all(|message| message.contains(&name)), "{started:?}");
        assert!(started[0].starts_with(&format!("<12>{name}-d is deprecated")), "a warning: {started:?}");
        let sharing = started.iter().find(|message| message.contains("sharing ")).expect("the start line");
        assert!(sharing.starts_with("<14>") && !sharing.contains('\n') && !sharing.contains("INFO"), "{sharing}");
        let (guest, client) = mount(&scratch.join("s"));
        let session = received(&syslog, "flags 0x");
        assert!(session.last().is_some_and(|message| message.starts_with("<15>")), "{session:?}");
        drop((guest, client));
        assert!(process.wait().success());
        assert_eq!(process.log(), "", "--sandbox {sandbox}");
    }
}

#[test]
fn a_log_that_syslog_does_not_take_goes_to_standard_error() {
    if !is_root("another /dev") {
        return;
    }
    let (scratch, dev) = (Scratch::new(), Scratch::new());
    let process = Process::spawn(&mut with_dev(&dev, &command(&scratch, &["--syslog"])));
    let line = process.wait_for_line("--syslog: cannot log to /dev/log");
    assert!(line.contains("WARN") && line.contains("standard error"), "{line}");
    process.wait_for_line("sharing ");

    // Its daemon goes away later.
    let (scratch, dev) = (Scratch::new(), Scratch::new());
    let syslog = UnixDatagram::bind(dev.join("log")).expect("a socket");
    let process = Process::spawn(&mut with_dev(&dev, &command(&scratch, &["--syslog", "-d"])));
    received(&syslog, "Waiting for ");
    // Not by closing it: a process that another test is about to start may hold it for a moment.
    syslog.shutdown(Shutdown::Both).expect("a socket");
    let (_guest, mut client) = mount(&scratch.join("s"));
    process.wait_for_line("FUSE 7.");
    assert_serves(&mut client, "dir");
}

#[test]
fn a_syslog_that_does_not_read_holds_nobody_up() {
    if !is_root("another /dev") {
        return;
    }
    let (scratch, dev) = (Scratch::new(), Scratch::new());
    let syslog = UnixDatagram::bind(dev.join("log")).expect("a socket");
    let _process = Process::spawn(&mut with_dev(&dev, &command(&scratch, &["--syslog"])));
    received(&syslog, "Waiting for ");
    // Fill the socket's queue.
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("a socket");
    while filler.send_to(b"x", dev.join("log")).is_ok() {}
    assert_eq!(filler.send_to(b"x", dev.join("log")).map_err(|e| e.kind()).err(), Some(io::ErrorKind::WouldBlock));
    let (_guest, mut client) = mount(&scratch.join("s"));
    for i in 0..20 {
        // Worth a warning each.
        client.raw(1, 1, &[b'x'; 200_000], 64).expect("a reply");
        assert_serves(&mut client, &format!("dir{i}"));
    }
    drop(syslog);
}
