//! A slow request holds up nothing but itself. The slow one is a READ that the kernel lets wait until the
//! test allows it, so no clock is involved.

use std::sync::Arc;

use gatherfs_support::daemon::{Daemon, eventually};
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::{ROOT, ReadIn, opcode};
use gatherfs_support::slow_file::SlowFile;
use zerocopy::IntoBytes;

use super::{FILE, assert_serves, mapping_of, mounted, open};

const SLOW: &str = "slow";

struct Slow {
    daemon: Daemon,
    guest: Arc<Guest>,
    client: Client,
    slow: SlowFile,
    /// Node and handle of the slow file.
    file: (u64, u64),
}

impl Slow {
    fn new(request_queues: usize) -> Option<Self> {
        Self::with(&[], request_queues)
    }

    fn with(daemon_options: &[&str], request_queues: usize) -> Option<Self> {
        let (daemon, guest, mut client) = mounted(daemon_options, &GuestOptions { request_queues, ..GuestOptions::default() });
        let slow = SlowFile::new(&daemon.put(SLOW, "slow content"))?;
        let file = open(&mut client, SLOW, libc::O_RDONLY);
        Some(Self { daemon, guest, client, slow, file })
    }

    /// Sends a READ of the slow file; its 12 bytes come in the reply's room.
    fn begin_read(&mut self) -> Pending {
        let read = ReadIn { fh: self.file.1, size: 12, ..ReadIn::default() };
        self.client.begin(&Call { room: 12, ..Call::new(opcode::READ, self.file.0, &[read.as_bytes()]) })
    }

    fn assert_read(&mut self, pending: Pending) {
        let reply = self.client.finish(pending).expect("READ");
        assert_eq!((reply.header.error, &reply.payload[..]), (0, &b"slow content"[..]));
    }
}

#[test]
fn requests_behind_a_slow_one_are_answered_before_it() {
    let Some(mut s) = Slow::new(1) else { return };
    let pending = s.begin_read();
    let read = s.slow.wait_for_read();
    for _ in 0..20 {
        assert_serves(&mut s.client);
    }
    assert!(!s.client.is_answered(&pending));
    s.slow.let_go(read);
    s.assert_read(pending);
}

#[test]
fn requests_in_one_batch_with_a_slow_one_are_answered_before_it() {
    let Some(mut s) = Slow::new(1) else { return };
    let first = s.begin_read();
    let others: Vec<_> = (0..50).map(|_| s.client.begin(&Call { room: 80, ..Call::new(opcode::STATFS, ROOT, &[]) })).collect();
    let read = s.slow.wait_for_read();
    for other in others {
        assert_eq!(s.client.finish(other).expect("STATFS").header.error, 0);
    }
    assert!(!s.client.is_answered(&first));
    s.slow.let_go(read);
    s.assert_read(first);
}

#[test]
fn slow_requests_are_in_flight_side_by_side_and_end_in_any_order() {
    let Some(mut s) = Slow::new(1) else { return };
    let pending: Vec<_> = (0..8).map(|_| s.begin_read()).collect();
    let mut reads: Vec<_> = (0..8).map(|_| s.slow.wait_for_read()).collect();
    assert_serves(&mut s.client);
    assert!(pending.iter().all(|p| !s.client.is_answered(p)));
    s.slow.let_go(reads.pop().expect("eight of them"));
    let one = eventually(|| pending.iter().filter(|p| s.client.is_answered(p)).count() == 1);
    assert!(one, "one is let go, one is answered");
    for read in reads {
        s.slow.let_go(read);
    }
    for pending in pending {
        s.assert_read(pending);
    }
}

#[test]
fn hiprio_and_the_other_queues_do_not_wait_for_a_slow_request() {
    let Some(mut s) = Slow::new(2) else { return };
    let pending = s.begin_read();
    let read = s.slow.wait_for_read();
    let node = s.client.on_queue(FIRST_REQUEST + 1).lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    assert_eq!(s.client.forget(node, 1), Ok(()));
    assert_eq!(s.client.interrupt(pending.unique), Ok(()), "an INTERRUPT of it comes back too");
    assert_serves(&mut s.client.on_queue(FIRST_REQUEST + 1));
    assert_serves(&mut s.client.on_queue(HIPRIO));
    s.slow.let_go(read);
    s.assert_read(pending);
}

#[test]
fn a_release_during_a_read_closes_the_file_behind_it() {
    let Some(mut s) = Slow::new(1) else { return };
    let pending = s.begin_read();
    let read = s.slow.wait_for_read();
    assert_eq!(s.client.release(s.file.0, s.file.1), Ok(()));
    assert_eq!(s.client.release(s.file.0, s.file.1), Err(libc::EBADF.into()));
    s.slow.let_go(read);
    s.assert_read(pending);
}

#[test]
fn stopping_a_queue_waits_for_its_slow_request() {
    let Some(mut s) = Slow::new(1) else { return };
    let pending = s.begin_read();
    let read = s.slow.wait_for_read();
    let guest = Arc::clone(&s.guest);
    let stopping = std::thread::spawn(move || guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE"));
    // Hiprio is not stopped. Its answers show that the daemon had time to stop too early.
    for _ in 0..50 {
        assert_serves(&mut s.client.on_queue(HIPRIO));
    }
    assert!(!stopping.is_finished(), "the queue stopped with a request in flight");
    s.slow.let_go(read);
    let base = stopping.join().expect("the queue stops");
    assert_eq!(s.guest.lock(FIRST_REQUEST).used_idx(), base);
    s.assert_read(pending);
    s.guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    assert_serves(&mut s.client);
}

#[test]
fn memory_may_be_replaced_under_a_slow_request() {
    let Some(mut s) = Slow::new(1) else { return };
    let pending = s.begin_read();
    let read = s.slow.wait_for_read();
    s.guest.send_memory().expect("SET_MEM_TABLE");
    assert_serves(&mut s.client);
    s.slow.let_go(read);
    s.assert_read(pending);
    assert!(s.daemon.is_running());
}

#[test]
fn memory_that_slow_requests_used_is_unmapped_when_they_are_answered() {
    const ADDED: u64 = 256 << 20;
    let Some(mut s) = Slow::new(1) else { return };
    s.guest.add_region(ADDED, 1 << 20).expect("ADD_MEM_REG");
    let regions = s.guest.memory().regions();
    let region = regions.iter().find(|region| region.gpa() == ADDED).expect("it was added");
    // Eight threads of the queue serve, and wait for more work afterwards.
    let pending: Vec<_> = (0..8).map(|_| s.begin_read()).collect();
    let mut reads: Vec<_> = (0..8).map(|_| s.slow.wait_for_read()).collect();
    s.guest.remove_region(ADDED).expect("REM_MEM_REG");
    let last = reads.pop().expect("eight of them");
    for read in reads {
        s.slow.let_go(read);
    }
    assert_serves(&mut s.client);
    assert!(mapping_of(&s.daemon, region).is_some(), "memory of a request in flight was unmapped");
    s.slow.let_go(last);
    for pending in pending {
        s.assert_read(pending);
    }
    assert!(eventually(|| mapping_of(&s.daemon, region).is_none()), "still mapped");
    // It is not the end of the threads that has unmapped it.
    assert!(threads_of_first_queue(&s.daemon) >= 8);
}

/// How many threads of the daemon serve request queue 1.
fn threads_of_first_queue(daemon: &Daemon) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.serving())).expect("the daemon is there");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "request 1").count()
}

#[test]
fn the_threads_of_a_queue_are_as_many_as_was_asked_for() {
    for (word, threads) in
        [("--thread-pool-size=1", 16), ("--thread-pool-size=3", 3), ("--thread-pool-size=20", 20), ("--thread-pool-size=0", 16)]
    {
        let Some(mut s) = Slow::with(&[word], 1) else { return };
        let pending: Vec<_> = (0..24).map(|_| s.begin_read()).collect();
        let reads: Vec<_> = (0..threads).map(|_| s.slow.wait_for_read()).collect();
        assert_eq!(threads_of_first_queue(&s.daemon), threads, "{word}");
        // One that is let go makes room for one more, and for one more only.
        for read in reads {
            s.slow.let_go(read);
        }
        for _ in threads..24 {
            let read = s.slow.wait_for_read();
            assert!(threads_of_first_queue(&s.daemon) <= threads, "{word}");
            s.slow.let_go(read);
        }
        for read in pending {
            s.assert_read(read);
        }
    }
}
