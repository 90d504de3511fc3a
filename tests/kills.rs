//! Workers that are killed while a guest works: it notices nothing but a pause.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gatherfs_support::daemon::{Daemon, children_of, eventually, is_root, only_child};
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{ROOT, ReadIn, opcode};
use gatherfs_support::guest::ring::Segment;
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::IntoBytes;

/// Kills the worker of `keeper` with `signal`.
fn kill(keeper: u32, signal: Signal) {
    let worker = only_child(keeper);
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
    // Two faults in short lives, then two more: the second pair makes the keeper trust the records no more. One more where the machine is
    // so slow that a life was no short one.
    for expected in ["answers what is unfinished with an error", "without the records of the session"] {
        let mut faults = 0;
        while !daemon.log().contains(expected) && faults < 3 {
            faults += 1;
            let before = daemon.log().matches("the worker was ended by").count();
            kill(daemon.keeper(), Signal::ABORT);
            assert!(eventually(|| daemon.log().matches("the worker was ended by").count() > before), "{}", daemon.log());
        }
        assert!(daemon.log().contains(expected) && faults >= 2, "{faults}: {}", daemon.log());
    }
    assert!(client.getattr(node, Some(fh)).is_err(), "its session is over");
    client.init().expect("another INIT");
    assert!(client.lookup(ROOT, "file").is_ok());
}

/// READs that a queue has in flight in the load, and the bytes of each.
const DEPTH: u64 = 64;
const READ_LEN: u32 = 64 << 10;
/// A worker that a fault ends after this was no short-lived one (src/keeper/deaths.rs).
const LONG_LIFE: Duration = Duration::from_millis(1100);
/// Deaths by each signal.
const ROUNDS: usize = 5;

/// Reads `file` (node, handle) over and over until `is_over`, [`DEPTH`] READs at a time: each must have its part, whose bytes are its
/// number. The longest wait for an answer, in us, is left in `longest_us`; `finished` counts them.
fn load(client: &mut Client, (node, fh): (u64, u64), is_over: &AtomicBool, (longest_us, finished): (&AtomicU64, &AtomicU64)) {
    let at = client.guest().memory().alloc(DEPTH * u64::from(READ_LEN), 4096);
    let begin = |client: &mut Client, part: u64| {
        let read = ReadIn { fh, offset: part * u64::from(READ_LEN), size: READ_LEN, ..ReadIn::default() };
        let data_out = [Segment::writable(at + part * u64::from(READ_LEN), READ_LEN)];
        (client.begin(&Call { data_out: &data_out, ..Call::new(opcode::READ, node, &[read.as_bytes()]) }), Instant::now())
    };
    let mut pending: Vec<(Pending, Instant)> = (0..DEPTH).map(|part| begin(client, part)).collect();
    while !pending.is_empty() {
        for (part, (read, since)) in (0..).zip(std::mem::take(&mut pending)) {
            assert_eq!(client.finish(read).expect("READ").header.error, 0, "part {part}");
            finished.fetch_add(1, Ordering::Relaxed);
            longest_us.fetch_max(since.elapsed().as_micros() as u64, Ordering::Relaxed);
            let data = client.guest().memory().read_vec(at + part * u64::from(READ_LEN), READ_LEN as usize);
            assert!(data == [part as u8; READ_LEN as usize], "part {part}");
            client.guest().memory().fill(at + part * u64::from(READ_LEN), READ_LEN as usize, 0xff);
            if !is_over.load(Ordering::Relaxed) {
                pending.push(begin(client, part));
            }
        }
    }
}

/// Four queues at depth 64. After a fault what was in flight is executed one request after the other, also where the keeper knows the
/// end of the worker's threads before that of its process. With `--nocapture` the longest waits are printed.
#[test]
fn a_load_goes_on_after_sigkill_and_after_faults_of_workers_that_have_lived_long() {
    let daemon = Daemon::start(&["--allow-direct-io", "--num-request-queues", "4", "--log-level", "info"]);
    let contents: Vec<u8> = (0..DEPTH as u8).flat_map(|part| vec![part; READ_LEN as usize]).collect();
    daemon.put("file", contents);
    let guest = Guest::connect(daemon.socket(), &GuestOptions { request_queues: 4, ..GuestOptions::default() }).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let file = (node, client.open(node, libc::O_RDONLY | libc::O_DIRECT).expect("OPEN").fh);
    let (is_over, longest_us, finished) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for queue in FIRST_REQUEST..FIRST_REQUEST + 4 {
            let mut client = client.on_queue(queue);
            let (is_over, counts) = (&is_over, (&longest_us, &finished));
            scope.spawn(move || load(&mut client, file, is_over, counts));
        }
        for signal in [None, Some(Signal::KILL), Some(Signal::ABORT)] {
            let mut waits: Vec<u64> = (0..ROUNDS)
                .map(|_| {
                    std::thread::sleep(LONG_LIFE);
                    // What is executed alone at a second fault is blamed for it, so all that the first one left is finished.
                    let before = finished.load(Ordering::Relaxed);
                    assert!(eventually(|| finished.load(Ordering::Relaxed) > before + 2 * 4 * DEPTH), "{}", daemon.log());
                    longest_us.store(0, Ordering::Relaxed);
                    if let Some(signal) = signal {
                        let worker = only_child(daemon.keeper());
                        kill(daemon.keeper(), signal);
                        let is_replaced = || children_of(daemon.keeper()).first().is_some_and(|pid| *pid != worker);
                        assert!(eventually(is_replaced), "{}", daemon.log());
                    }
                    // Until all that was in flight is answered.
                    std::thread::sleep(LONG_LIFE / 2);
                    longest_us.load(Ordering::Relaxed)
                })
                .collect();
            waits.sort_unstable();
            println!("{signal:?}: the longest wait for an answer, in us: {waits:?}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let log = daemon.log();
    let left = log.lines().filter_map(|line| line.split_once(" requests that the worker before left")?.0.rsplit(' ').next());
    println!("left unfinished, in each queue: {:?}", left.collect::<Vec<_>>());
    let faults =
        log.matches("the worker was ended by signal 6 (SIGABRT); another one goes on with the guest's session, and executes").count();
    assert_eq!(faults, ROUNDS, "{log}");
    assert!(!log.contains("is answered with EIO"), "{log}");
}
