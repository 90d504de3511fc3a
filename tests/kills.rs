//! Workers that are killed while a guest works: it notices nothing but a pause.

use gatherfs_support::daemon::{Daemon, children_of, eventually, is_root};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;
use rustix::process::{Pid, Signal, kill_process};

/// Kills the worker of `keeper` with `signal`.
fn kill(keeper: u32, signal: Signal) {
    let worker = children_of(keeper)[0];
    kill_process(Pid::from_raw(worker.cast_signed()).expect("a process id"), signal).expect("the process is there");
}

fn mount(daemon: &Daemon) -> (std::sync::Arc<Guest>, Client) {
    let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (guest, client)
}

#[test]
fn what_the_guest_knows_and_has_open_goes_on_in_every_sandbox() {
    let sandboxes: &[&str] = if is_root("a sandbox") { &["none", "chroot", "namespace"] } else { &["none"] };
    for sandbox in sandboxes {
        for handles in ["prefer", "never"] {
            let mut daemon = Daemon::start(&["--sandbox", sandbox, "--inode-file-handles", handles]);
            let (guest, mut client) = mount(&daemon);
            let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
            let (node, fh) = (made.entry.nodeid, made.open.fh);
            let directory = client.mkdir(ROOT, "directory", 0o755).expect("MKDIR").nodeid;
            let listing = client.opendir(directory).expect("OPENDIR").fh;
            for signal in [Signal::KILL, Signal::SYS, Signal::KILL] {
                client.write(node, fh, 0, format!("{:02}", signal.as_raw()).as_bytes()).expect("WRITE");
                kill(daemon.keeper(), signal);
                let context = || format!("--sandbox {sandbox}, handles {handles}, {signal:?}: {}", daemon.log());
                assert_eq!(
                    client.read(node, fh, 0, 100).unwrap_or_else(|e| panic!("{e}, {}", context())),
                    format!("{:02}", signal.as_raw()).as_bytes()
                );
                assert_eq!(client.lookup(ROOT, "file").expect("LOOKUP").nodeid, node, "{}", context());
                assert_eq!(client.readdir(directory, listing, 0, 4096).expect("READDIR").len(), 2, "{}", context());
                assert!(eventually(|| children_of(daemon.keeper()).len() == 1), "{}", context());
            }
            // A file that has no name any more.
            client.unlink(ROOT, "file").expect("UNLINK");
            kill(daemon.keeper(), Signal::KILL);
            assert_eq!(client.read(node, fh, 0, 100).expect("READ"), b"09");
            drop((guest, client));
            assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
        }
    }
}

#[test]
fn nothing_is_left_open_by_a_worker_that_died() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut client) = mount(&daemon);
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.keeper())).expect("the process is there").count();
    let mut counts = Vec::new();
    for _ in 0..8 {
        kill(daemon.keeper(), Signal::KILL);
        client.getattr(made.entry.nodeid, Some(made.open.fh)).expect("GETATTR");
        assert!(eventually(|| children_of(daemon.keeper()).len() == 1));
        counts.push(open());
    }
    assert!(!daemon.log().contains("named by two"), "{}", daemon.log());
    // A cache of the worker's, or the dead one's pidfd, may be there or not.
    let (least, most) = (counts.iter().min().expect("some"), counts.iter().max().expect("some"));
    assert!(most - least <= 3, "{counts:?}");
}

#[test]
fn faults_one_after_the_other_are_followed_by_less_trust() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut client) = mount(&daemon);
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    client.write(node, fh, 0, b"contents").expect("WRITE");
    // Two faults in short lives, then two more: the second pair makes the keeper trust the records no more.
    for (faults, expected) in [(2, "answers what is unfinished with an error"), (2, "without the records of the session")] {
        for _ in 0..faults {
            let worker = children_of(daemon.keeper())[0];
            kill(daemon.keeper(), Signal::ABORT);
            assert!(eventually(|| children_of(daemon.keeper()).first().is_some_and(|pid| *pid != worker)), "{}", daemon.log());
        }
        assert!(eventually(|| daemon.log().contains(expected)), "{}", daemon.log());
    }
    assert!(client.getattr(node, Some(fh)).is_err(), "its session is over");
    client.init().expect("another INIT");
    assert!(client.lookup(ROOT, "file").is_ok());
}
