//! Workers that a fault ends, and the request that is to blame: it is answered with EIO, it alone, when it has ended two of them.

use std::path::Path;
use std::time::Duration;

use gatherfs_support::daemon::{Daemon, Scratch, only_child};
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{EntryOut, FileLock, LkIn, ROOT, ReadIn, opcode};
use gatherfs_support::share::is_root;
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::IntoBytes;

use crate::bench::{BY_HANDLE, Bench};
use crate::{numbers, served};

/// A LOOKUP of this name is a fault.
pub const POISON: &str = "poison";
const QUEUES: usize = 2;
/// READs in each queue, half of them before a LOOKUP of [`POISON`].
const READS: u64 = 24;
const PAGE: u32 = 4096;
/// A worker that lives longer is replaced at once when a fault ends it (src/keeper/deaths.rs).
const SHORT_LIFE: Duration = Duration::from_millis(1100);

/// Sends `signal` to the worker.
fn signal(daemon: &Daemon, signal: Signal) {
    kill_process(Pid::from_raw(only_child(daemon.keeper()).cast_signed()).unwrap(), signal).unwrap();
}

fn begin_lookup(client: &mut Client, name: &str) -> Pending {
    client.begin(&Call { room: size_of::<EntryOut>() as u32, ..Call::new(opcode::LOOKUP, ROOT, &[name.as_bytes(), &[0]]) })
}

fn faults(daemon: &Daemon) -> usize {
    daemon.log().matches("the worker was ended by signal 11 (SIGSEGV)").count()
}

fn quarantined(daemon: &Daemon) -> usize {
    daemon.log().lines().filter(|line| line.contains("it has ended two workers") && line.contains("70, 6f, 69, 73, 6f, 6e, 00")).count()
}

#[test]
fn the_request_that_ends_workers_is_answered_with_an_error_and_every_other_one_as_ever() {
    let scratch = Scratch::on_tmpfs();
    let share = scratch.join("share");
    std::fs::create_dir_all(&share).unwrap();
    let contents: Vec<u8> = (0..READS as u8).flat_map(|page| [page; PAGE as usize]).collect();
    std::fs::write(share.join("file"), contents).unwrap();
    let daemon = Daemon::start_with(scratch, &["--locks=host", "--log-level=info"], &[("GATHERFS_FAULT", Path::new(POISON))]);
    let guest = Guest::connect(daemon.socket(), &GuestOptions { request_queues: QUEUES, ..GuestOptions::default() }).unwrap();
    let mut first = Client::new(&guest, FIRST_REQUEST);
    first.init().unwrap();
    let node = first.lookup(ROOT, "file").unwrap().nodeid;
    let fh = first.open(node, libc::O_RDWR).unwrap().fh;
    let mut clients: Vec<Client> = (0..QUEUES).map(|queue| first.on_queue(FIRST_REQUEST + queue)).collect();
    let lock_of = |owner: u64, kind: i32| {
        let lk = FileLock { start: 0, end: i64::MAX as u64, kind: kind as u32, pid: 1 };
        LkIn { fh, owner, lk, lk_flags: 0, padding: 0 }
    };
    first.setlk(node, &lock_of(1, libc::F_WRLCK), false).unwrap();
    let mut begin_wait = |client: usize| clients[client].begin(&Call::new(opcode::SETLKW, node, &[lock_of(2, libc::F_WRLCK).as_bytes()]));
    let waits: Vec<Pending> = (0..QUEUES).map(&mut begin_wait).collect();

    // In the first queue, again, in the other one, in both.
    for (round, poisoned) in [&[0][..], &[0], &[1], &[0, 1]].into_iter().enumerate() {
        let before = (faults(&daemon), quarantined(&daemon));
        // All are there when the first one is popped.
        signal(&daemon, Signal::STOP);
        let (mut reads, mut lookups) = (Vec::new(), Vec::new());
        for page in 0..READS {
            for (queue, client) in clients.iter_mut().enumerate() {
                let read = ReadIn { fh, offset: page * u64::from(PAGE), size: PAGE, ..ReadIn::default() };
                reads.push((queue, page, client.begin(&Call { room: PAGE, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })));
                if page == READS / 2 && poisoned.contains(&queue) {
                    lookups.push((queue, begin_lookup(client, POISON)));
                }
            }
        }
        signal(&daemon, Signal::CONT);
        for (queue, lookup) in lookups {
            assert_eq!(clients[queue].finish(lookup).unwrap().header.error, -libc::EIO, "round {round}, queue {queue}");
        }
        for (queue, page, read) in reads {
            let reply = clients[queue].finish(read).unwrap();
            assert!(reply.header.error == 0 && reply.payload == [page as u8; PAGE as usize], "round {round}, queue {queue}, page {page}");
        }
        // Behind this line the log has all that was logged before.
        assert!(daemon.metrics().get("quarantined") > 0);
        let count = poisoned.len();
        assert_eq!(quarantined(&daemon) - before.1, count, "round {round}");
        // Each has ended one worker alone. The others, one or one for each, it has ended beside other requests.
        assert!((count + 1..=2 * count).contains(&(faults(&daemon) - before.0)), "round {round}: {} faults", faults(&daemon) - before.0);
    }
    for (queue, wait) in waits.iter().enumerate() {
        assert!(!clients[queue].is_answered(wait), "the lock is held");
    }
    assert!(!daemon.log().contains("with an error\n") && !daemon.log().contains("workers died while"), "nothing else is given up");
    first.setlk(node, &lock_of(1, libc::F_UNLCK), false).unwrap();
    for (queue, wait) in waits.into_iter().enumerate() {
        assert_eq!(clients[queue].finish(wait).unwrap().header.error, 0);
    }
}

/// The filter of system calls ends the process without a handler: in a life of a second or more that is seldom told from SIGKILL, in the
/// short lives after it, it is a fault.
#[test]
fn a_request_that_makes_a_forbidden_call_is_answered_with_an_error_and_the_share_is_served() {
    let options = ["--seccomp", "kill", "--log-level=info"];
    let daemon = Daemon::start_with(Scratch::on_tmpfs(), &options, &[("GATHERFS_FORBIDDEN", Path::new(POISON))]);
    let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).unwrap();
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().unwrap();
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
    // Two after a short life and three after a longer one, or another number where the machine was slow: a life was no short one, or the
    // end of the process is seen as soon as that of its threads, and the cause is known.
    for lived in [Duration::ZERO, SHORT_LIFE] {
        std::thread::sleep(lived);
        let died = || daemon.log().matches("; another one goes on with the guest's session").count();
        let before = died();
        let lookup = begin_lookup(&mut client, POISON);
        assert_eq!(client.finish(lookup).unwrap().header.error, -libc::EIO, "{}", daemon.log());
        // Behind this line the log has all that was logged before.
        daemon.metrics();
        assert!((2..=4).contains(&(died() - before)), "{}", daemon.log());
        assert!(daemon.log().contains("the worker was ended by signal 31 (SIGSYS)"), "{}", daemon.log());
        assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"contents"), Ok(8));
    }
}

/// A fault while one request is in flight, and then a second death at each point of the recovery.
#[test]
fn a_request_is_blamed_for_a_fault_while_it_is_executed_alone_and_never_for_sigkill() {
    if !is_root() {
        return;
    }
    let mut bench = Bench::start(BY_HANDLE.living(SHORT_LIFE));
    let mut wrong = Vec::new();
    let operation = served(|name| name == "GETATTR").next().unwrap();
    let twin = bench.run(operation, &[], &mut wrong);
    let first = numbers(&twin).find(|at| twin.point(*at) == "pop, after the position").unwrap();
    let recovered = bench.run_by(operation, &[(first, libc::SIGABRT)], &mut wrong);
    recovered.compare(&twin, &mut wrong);
    // The records are looked for with lseek, dozens of times.
    let points: Vec<u32> = numbers(&recovered).filter(|at| *at > first && !recovered.point(*at).ends_with(" lseek")).collect();
    let mut blamed = Vec::new();
    for at in points {
        for by in [libc::SIGKILL, libc::SIGABRT] {
            let count = |bench: &Bench| bench.log().matches("while it executed one request alone").count();
            let (before, failures) = (count(&bench), wrong.len());
            let mut run = bench.run_by(operation, &[(first, libc::SIGABRT), (at, by)], &mut wrong);
            let is_blamed = count(&bench) > before;
            if is_blamed {
                blamed.push((run.point(at).to_owned(), by));
                // What was published before the fault is the answer.
                let is_refused = run.answer == Err(libc::EIO);
                let is_published = ["publish, ", "push, "].iter().any(|place| run.point(at).starts_with(place));
                if !is_refused && !is_published {
                    wrong.push(format!("answered {:?}", run.answer));
                }
                run.answer.clone_from(&twin.answer);
            }
            run.compare(&twin, &mut wrong);
            let point = run.point(at).to_owned();
            wrong[failures..].iter_mut().for_each(|what| *what = format!("signal {by} at {point} ({at}): {what}"));
        }
    }
    println!("blamed at {blamed:?}");
    assert!(wrong.is_empty(), "{} failures:\n{}\n{}", wrong.len(), wrong.join("\n"), bench.log());
    assert!(blamed.iter().all(|(_, by)| *by == libc::SIGABRT), "{blamed:?}");
    assert!(blamed.iter().any(|(point, _)| point == "before statx"), "{blamed:?}");
}
