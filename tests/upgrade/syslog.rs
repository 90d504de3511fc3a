//! Where the log of the new program goes.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use gatherfs_support::daemon::{PATIENCE, Process, Scratch, gatherfsd, is_root};
use rustix::process::{Pid, Signal, kill_process};

use super::{assert_upgraded, mount, places};

/// The messages that have come, until one contains `text`.
fn received(syslog: &UnixDatagram, text: &str) -> Vec<String> {
    let (mut messages, mut bytes) = (Vec::<String>::new(), [0; 4096]);
    while !messages.last().is_some_and(|last| last.contains(text)) {
        let len = syslog.recv(&mut bytes).unwrap_or_else(|e| panic!("no message with \"{text}\": {e}; {messages:?}"));
        messages.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
    }
    messages
}

#[test]
fn the_new_program_goes_on_with_syslog_under_the_same_name() {
    if !is_root("another /dev") {
        return;
    }
    for (sandbox, program) in places() {
        let (scratch, dev) = (Scratch::new(), Scratch::new());
        let (share, socket) = (scratch.join("share"), scratch.join("s"));
        fs::create_dir(&share).expect("the shared directory");
        let syslog = UnixDatagram::bind(dev.join("log")).expect("a socket");
        syslog.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /dev && exec \"$@\""]).arg(dev.path()).arg(gatherfsd().get_program());
        command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket).args(["--syslog", "--sandbox", sandbox]);
        let daemon = Process::spawn(&mut command);
        received(&syslog, "Waiting for vhost-user socket connection...");
        let (_guest, _client) = mount(&socket);
        received(&syslog, "the guest mounted the share");
        let name = format!("gatherfsd[{}]: ", daemon.pid());
        for _ in 0..2 {
            assert_upgraded(&daemon, &socket, &program);
            // Of the outer process, of the new program's worker, of its keeper.
            let mut messages = received(&syslog, "upgraded: gatherfsd ");
            if !messages.iter().any(|message| message.contains("a VMM connected")) {
                messages.extend(received(&syslog, "a VMM connected"));
            }
            kill_process(Pid::from_raw(daemon.serving().cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
            messages.extend(received(&syslog, "ended by signal 9"));
            messages.extend(received(&syslog, "a VMM connected"));
            assert!(messages.iter().all(|message| message.contains(&name)), "--sandbox {sandbox}: {messages:?}");
        }
        assert_eq!(daemon.log(), "", "--sandbox {sandbox}");
    }
}
