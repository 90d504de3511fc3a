//! Signals: SIGTERM, SIGINT and SIGHUP finish what is in flight and end, SIGUSR1 tells, others do no harm.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use gatherfs_support::daemon::{Daemon, Process, Scratch, eventually, gatherfsd, is_root};
use gatherfs_support::guest::client::{Call, CallError, Client, Pending};
use gatherfs_support::guest::fuse::{ROOT, ReadIn, opcode};
use gatherfs_support::slow_file::{SlowFile, WaitingRead};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use zerocopy::IntoBytes;

use super::{assert_serves, command, mount};

const ENDING: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// Panics unless the daemon ends well and its socket is gone.
fn assert_ends(daemon: &mut Daemon) {
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists(), "the socket is removed");
}

#[test]
fn an_idle_daemon_ends_at_once() {
    for signal in ENDING {
        for options in [&[][..], &["--keep-listening"]] {
            let mut daemon = Daemon::start(options);
            daemon.signal(signal);
            assert_ends(&mut daemon);
        }
    }
}

#[test]
fn a_daemon_with_a_frontend_hangs_up_and_ends() {
    for signal in ENDING {
        for options in [&[][..], &["--keep-listening"]] {
            let mut daemon = Daemon::start(options);
            let (_guest, mut client) = mount(daemon.socket());
            assert_serves(&mut client, "dir");
            daemon.signal(signal);
            assert_ends(&mut daemon);
            assert_eq!(client.statfs(ROOT).err(), Some(CallError::NoReply));
        }
    }
}

#[test]
fn a_daemon_between_two_frontends_ends() {
    let mut daemon = Daemon::start(&["--keep-listening"]);
    drop(mount(daemon.socket()));
    daemon.wait_for_line("disconnected");
    daemon.signal(Signal::TERM);
    assert_ends(&mut daemon);
}

#[test]
fn a_daemon_whose_frontend_has_said_nothing_ends() {
    let mut daemon = Daemon::start(&[]);
    let _stream = UnixStream::connect(daemon.socket()).expect("a connection");
    daemon.wait_for_line("connected");
    daemon.signal(Signal::TERM);
    assert_ends(&mut daemon);
}

#[test]
fn a_daemon_in_the_middle_of_writes_ends_with_every_answered_write_in_its_file() {
    for signal in ENDING {
        let mut daemon = Daemon::start(&[]);
        let (_guest, mut client) = mount(daemon.socket());
        let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
        let writer = std::thread::spawn(move || {
            let mut answered = 0u64;
            loop {
                match client.write(made.entry.nodeid, made.open.fh, answered * 4096, &[answered as u8; 4096]) {
                    Ok(4096) => answered += 1,
                    Err(CallError::NoReply) => return answered,
                    other => panic!("WRITE {answered}: {other:?}"),
                }
            }
        });
        assert!(eventually(|| daemon.metrics().get("host_writes") > 100));
        daemon.signal(signal);
        assert_ends(&mut daemon);
        let answered = writer.join().expect("the writer");
        let content = daemon.content("file");
        assert!(content.len() as u64 >= answered * 4096, "{answered} answered, {} bytes", content.len());
        for (i, page) in content.chunks(4096).enumerate() {
            assert!(page.iter().all(|byte| *byte == i as u8), "page {i}");
        }
    }
}

/// A READ that is in flight, and what lets it go on.
struct InFlight {
    client: Client,
    pending: Pending,
    slow: SlowFile,
    waiting: WaitingRead,
}

impl InFlight {
    fn begin(daemon: &Daemon) -> Option<Self> {
        let slow = SlowFile::new(&daemon.put("slow", "slow content"))?;
        let (_guest, mut client) = mount(daemon.socket());
        let node = client.lookup(ROOT, "slow").expect("LOOKUP").nodeid;
        let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
        let read = ReadIn { fh, size: 12, ..ReadIn::default() };
        let pending = client.begin(&Call { room: 12, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
        let waiting = slow.wait_for_read();
        Some(Self { client, pending, slow, waiting })
    }

    /// Lets it go on, waits for the daemon to end well and looks at what it left behind.
    fn finish(mut self, daemon: &mut Daemon) {
        self.slow.let_go(self.waiting);
        assert_ends(daemon);
        let reply = self.client.finish(self.pending).expect("READ");
        assert_eq!((reply.header.error, &reply.payload[..]), (0, &b"slow content"[..]));
    }
}

#[test]
fn a_daemon_with_a_request_in_flight_finishes_it_before_it_ends() {
    for signal in ENDING {
        let mut daemon = Daemon::start(&[]);
        let Some(in_flight) = InFlight::begin(&daemon) else { return };
        daemon.signal(signal);
        let hung_up = eventually(|| in_flight.client.guest().stop_queue(0).is_err());
        // It answers signals, so it had the time to end if it did not wait.
        for _ in 0..20 {
            assert_eq!(daemon.metrics().requests("READ"), 1);
        }
        assert!(hung_up && daemon.is_running(), "the daemon did not wait");
        in_flight.finish(&mut daemon);
    }
}

#[test]
fn more_signals_change_nothing() {
    let mut daemon = Daemon::start(&[]);
    let Some(in_flight) = InFlight::begin(&daemon) else { return };
    for _ in 0..5 {
        daemon.signal(Signal::TERM);
        daemon.signal(Signal::INT);
        assert_eq!(daemon.metrics().get("connections"), 1, "it still hears signals");
    }
    in_flight.finish(&mut daemon);
}

#[test]
fn a_signal_that_comes_with_the_socket_ends_the_daemon_too() {
    for round in 0..20 {
        let scratch = Scratch::new();
        let mut process = Process::spawn(&mut command(&scratch, &[]));
        assert!(eventually(|| scratch.join("s").exists()));
        process.signal(Signal::TERM);
        assert_eq!(process.wait().code(), Some(0), "round {round}: {}", process.log());
        assert!(!scratch.join("s").exists(), "round {round}: the socket is removed");
    }
}

#[test]
fn usr1_prints_the_counters_and_serving_goes_on() {
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.metrics().get("connections"), 0);
    let (_guest, mut client) = mount(daemon.socket());
    for _ in 0..3 {
        assert_serves(&mut client, "dir");
    }
    let metrics = daemon.metrics();
    let requests = ["INIT", "MKDIR", "LOOKUP", "RMDIR", "WRITE"].map(|opcode| metrics.requests(opcode));
    assert_eq!(requests, [1, 3, 3, 3, 0]);
    assert_eq!(metrics.get("connections"), 1);
    // On a busy host the daemon may find the next request before it sleeps, and the guest its answer.
    let notified = eventually(|| {
        assert_serves(&mut client, "dir");
        let metrics = daemon.metrics();
        metrics.get("kicks") > 0 && metrics.get("calls") > 0
    });
    assert!(notified, "{metrics:?}");
}

/// As `kill -USR1 $(cat PATH.pid)` asks for it.
#[test]
fn the_line_of_counters_is_json_by_itself_and_names_the_share() {
    let sandboxes: &[&str] = if is_root("a sandbox") { &["none", "chroot", "namespace"] } else { &["none"] };
    for sandbox in sandboxes {
        let scratch = Scratch::new();
        let share = scratch.join("a \"share\"\\\n");
        fs::create_dir(&share).expect("the shared directory");
        let mut command = gatherfsd();
        command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(scratch.join("s")).args(["--sandbox", sandbox]);
        let process = Process::spawn(&mut command);
        process.wait_for_line("Waiting for ");
        let pid = fs::read_to_string(scratch.join("s.pid")).expect("the pid file").trim().parse().expect("a process id");
        kill_process(Pid::from_raw(pid).expect("a process id"), Signal::USR1).expect("the process is there");
        let line = process.wait_for_line("\"requests\":");
        let name = format!("{}/a \\\"share\\\"\\\\\\u000a", scratch.path().display());
        assert!(line.starts_with(&format!("{{\"share\":\"{name}\",\"requests\":{{}},\"host_reads\":0,")), "{line}");
        assert!(line.ends_with('}'), "{line}");
    }
}

/// How often the threads of a process have gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let count = |status: String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    tasks.filter_map(|task| count(fs::read_to_string(task.ok()?.path().join("status")).ok()?)).sum()
}

#[test]
fn an_idle_daemon_with_a_mounted_guest_comes_to_rest() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
    let at_rest = eventually(|| {
        let before = sleeps(daemon.serving());
        std::thread::sleep(Duration::from_millis(100));
        sleeps(daemon.serving()) == before
    });
    assert!(at_rest, "it wakes up without a reason");
}

#[test]
fn a_write_above_the_file_size_limit_is_efbig_and_no_signal_ends_the_daemon() {
    // Far below the table of the inodes that the daemon may come to know.
    const LIMIT: u64 = 1 << 20;
    let scratch = Scratch::new();
    let mut command = command(&scratch, &[]);
    let limit = || Ok(setrlimit(Resource::Fsize, Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) })?);
    // SAFETY: setrlimit(2) is one system call and may be made between fork and exec.
    unsafe { command.pre_exec(limit) };
    let mut process = Process::spawn(&mut command);
    let (_guest, mut client) = mount(&scratch.join("s"));
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    assert_eq!(client.write(node, fh, LIMIT - 4096, &[1; 4096]), Ok(4096));
    assert_eq!(client.write(node, fh, LIMIT, &[1; 4096]), Err(libc::EFBIG.into()));
    assert_eq!(client.truncate(node, Some(fh), LIMIT + 1).err(), Some(libc::EFBIG.into()));
    assert_serves(&mut client, "dir");
    assert!(process.is_running());
}

#[test]
fn under_a_limit_of_addresses_the_daemon_serves_fewer_inodes() {
    const LIMIT: u64 = 4 << 30;
    let scratch = Scratch::new();
    let mut command = command(&scratch, &[]);
    let limit = || Ok(setrlimit(Resource::As, Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) })?);
    // SAFETY: setrlimit(2) is one system call and may be made between fork and exec.
    unsafe { command.pre_exec(limit) };
    let mut process = Process::spawn(&mut command);
    let (guest, mut client) = mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert!(process.wait().success(), "{}", process.log());
}

#[test]
fn a_log_that_nobody_reads_any_more_does_not_end_the_daemon() {
    let scratch = Scratch::new();
    let mut command = command(&scratch, &["--log-level", "trace"]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    drop(child.stderr.take());
    let pid = Pid::from_child(&child);
    let (guest, mut client) = mount(&scratch.join("s"));
    for _ in 0..3 {
        // A mistake that is worth a warning, and the counters.
        let head = guest.lock(1).submit(&[gatherfs_support::guest::ring::Segment::readable(1 << 50, 40)]);
        assert!(eventually(|| guest.lock(1).take_used(head).is_some()), "the chain comes back");
        kill_process(pid, Signal::USR1).expect("the process is there");
        assert_serves(&mut client, "dir");
    }
    assert!(child.try_wait().expect("the child").is_none(), "the daemon ended");
    kill_process(pid, Signal::TERM).expect("the process is there");
    let mut status = None;
    assert!(eventually(|| {
        status = child.try_wait().expect("the child");
        status.is_some()
    }));
    assert_eq!(status.and_then(|s| s.code()), Some(0));
}

#[test]
fn a_terminal_that_hangs_up_leaves_neither_socket_nor_pid_file() {
    let sandboxes: &[&str] = if is_root("a sandbox") { &["none", "chroot", "namespace"] } else { &["none"] };
    for sandbox in sandboxes {
        let mut daemon = Daemon::start(&["--sandbox", sandbox]);
        let pid_file = PathBuf::from(format!("{}.pid", daemon.socket().display()));
        let (_guest, mut client) = mount(daemon.socket());
        assert_serves(&mut client, "dir");
        let had_pid_file = pid_file.exists();
        daemon.signal(Signal::HUP);
        assert_ends(&mut daemon);
        assert!(had_pid_file && !pid_file.exists(), "--sandbox {sandbox}: the pid file is removed");
    }
}

#[test]
fn a_hangup_or_an_interrupt_that_was_ignored_at_the_start_stays_ignored() {
    let sandboxes: &[&str] = if is_root("a sandbox") { &["none", "namespace"] } else { &["none"] };
    for (sandbox, signal) in sandboxes.iter().flat_map(|sandbox| [(sandbox, Signal::HUP), (sandbox, Signal::INT)]) {
        let scratch = Scratch::new();
        let mut command = command(&scratch, &[]);
        command.arg(format!("--sandbox={sandbox}"));
        let ignore = move || {
            // SAFETY: SIG_IGN is no function of ours.
            unsafe { libc::signal(signal.as_raw(), libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: signal(2) is one system call and may be made between fork and exec; nohup(1) does the same.
        unsafe { command.pre_exec(ignore) };
        let mut process = Process::spawn(&mut command);
        process.wait_for_line("sharing ");
        process.signal(signal);
        let (_guest, mut client) = mount(&scratch.join("s"));
        assert_serves(&mut client, "dir");
        assert!(process.is_running(), "--sandbox {sandbox}, {signal:?}");
    }
}
