//! A disk that fails in the middle of a batch: the request that meets the error has its errno, the others are served.

use std::fs;
use std::os::unix::fs::FileExt;

use gatherfs_support::daemon::{Daemon, Scratch};
use gatherfs_support::failing_disk::FailingDisk;
use gatherfs_support::guest::client::{Call, CallError, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest};
use gatherfs_support::guest::fuse::{FsyncIn, ROOT, ReadIn, WriteIn, WriteOut, opcode};
use gatherfs_support::guest::ring::Segment;
use gatherfs_support::private_mounts;
use rustix::fs::Advice;
use zerocopy::IntoBytes;

use super::io_engine::has_io_uring;
use super::{assert_serves, mount};

const PAGE: usize = 4096;
/// Requests of a batch, and pages of the file.
const BATCH: usize = 16;
/// How the file is open.
const DIRECT: i32 = libc::O_RDWR | libc::O_DIRECT;

/// What page `page` of the file has, in `round`.
fn content(page: usize, round: usize) -> Vec<u8> {
    (0..PAGE).map(|at| (page * 31 + round * 101 + at % 251) as u8).collect()
}

/// A file on the failing disk that the guest has open, with a page of guest memory for each of its own.
struct Batch<'g> {
    guest: &'g Guest,
    client: Client,
    node: u64,
    /// Open with O_DIRECT.
    fh: u64,
    memory: Vec<u64>,
}

impl Batch<'_> {
    fn read(&mut self, page: usize) -> Pending {
        self.guest.memory().write(self.memory[page], &[0; PAGE]);
        let read = ReadIn { fh: self.fh, offset: (page * PAGE) as u64, size: PAGE as u32, flags: DIRECT as u32, ..ReadIn::default() };
        let data = [Segment::writable(self.memory[page], PAGE as u32)];
        self.client.begin(&Call { data_out: &data, ..Call::new(opcode::READ, self.node, &[read.as_bytes()]) })
    }

    fn write(&mut self, page: usize, bytes: &[u8]) -> Pending {
        self.guest.memory().write(self.memory[page], bytes);
        let write = WriteIn { fh: self.fh, offset: (page * PAGE) as u64, size: PAGE as u32, flags: DIRECT as u32, ..WriteIn::default() };
        let data = [Segment::readable(self.memory[page], PAGE as u32)];
        let room = size_of::<WriteOut>() as u32;
        self.client.begin(&Call { data_in: &data, room, ..Call::new(opcode::WRITE, self.node, &[write.as_bytes()]) })
    }

    /// Has the daemon find all requests that `begin` begins at once, and returns the errno of each, 0 for none.
    fn run(&mut self, begin: impl FnOnce(&mut Self) -> Vec<Pending>) -> Vec<i32> {
        let base = self.guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
        let pending = begin(self);
        self.guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
        pending.into_iter().map(|pending| -self.client.finish(pending).expect("a reply").header.error).collect()
    }

    /// What a READ of the page has brought.
    fn in_memory(&self, page: usize) -> Vec<u8> {
        self.guest.memory().read_vec(self.memory[page], PAGE)
    }
}

/// READs, WRITEs and an FSYNC, one of each 16 of which meets the error, with `--io-engine ENGINE`. False, with the reason printed,
/// where there is no disk that fails.
fn one_of_a_batch_fails(engine: &str) -> bool {
    let scratch = Scratch::new();
    let Some(disk) = FailingDisk::new(&scratch.join("share")) else { return false };
    let daemon = Daemon::start_in(scratch, &["--allow-direct-io", "--io-engine", engine]);
    let all: Vec<u8> = (0..BATCH).flat_map(|page| content(page, 0)).collect();
    let paths = ["one", "two"].map(|name| daemon.put(name, &all));
    let Some((which, bad)) = disk.fail_in(&paths.each_ref().map(|path| path.as_path())) else { return false };
    let (name, other, path, bad) = (["one", "two"][which], ["two", "one"][which], &paths[which], bad as usize);
    let (guest, mut client) = mount(daemon.socket());
    let (node, fh) = open(&mut client, name, DIRECT);
    let memory = (0..BATCH).map(|_| guest.memory().alloc(PAGE as u64, PAGE as u64)).collect();
    let mut batch = Batch { guest: &guest, client, node, fh, memory };
    // The failing one is in the middle.
    let order: Vec<usize> = (0..BATCH).map(|i| (bad + BATCH / 2 + i) % BATCH).collect();
    let expected: Vec<i32> = order.iter().map(|page| if *page == bad { libc::EIO } else { 0 }).collect();
    let good = || order.iter().copied().filter(|page| *page != bad);

    let submitted = daemon.metrics().get("submitted");
    for _ in 0..5 {
        assert_eq!(batch.run(|batch| order.iter().map(|page| batch.read(*page)).collect()), expected, "{engine}: READ");
        assert!(good().all(|page| batch.in_memory(page) == content(page, 0)), "{engine}: READ");
    }
    let submitted = daemon.metrics().get("submitted") - submitted;
    // A transfer that finds another thread in the ring is a system call.
    assert!(if engine == "sync" { submitted == 0 } else { submitted > BATCH as u64 }, "{engine}: {submitted} on the ring");

    // Not the page before the bad one: the block layer may make one request of both, and Linux' loop device takes a write of which
    // only the beginning reached its file for a whole one (drivers/block/loop.c, `lo_complete_rq`).
    let apart: Vec<usize> = order.iter().copied().filter(|page| page + 1 != bad).collect();
    let expected_apart: Vec<i32> = apart.iter().map(|page| if *page == bad { libc::EIO } else { 0 }).collect();
    for round in 1..5 {
        let written = batch.run(|batch| apart.iter().map(|page| batch.write(*page, &content(*page, round))).collect());
        assert_eq!(written, expected_apart, "{engine}: WRITE");
        let on_host = fs::File::open(path).expect("the file");
        // Read-ahead would meet the error in pages beside the one that is read.
        rustix::fs::fadvise(&on_host, 0, None, Advice::Random).expect("FADV_RANDOM");
        for page in apart.iter().copied().filter(|page| *page != bad) {
            let mut bytes = vec![0; PAGE];
            on_host.read_exact_at(&mut bytes, (page * PAGE) as u64).expect("a page that works");
            assert!(bytes == content(page, round), "{engine}: WRITE of page {page}");
        }
    }

    // In the host's page cache it is well; the FSYNC finds out. The READs are of another file: Linux tells the error of a write-back
    // to whoever reads the file directly next.
    let cached = batch.client.open(node, libc::O_RDWR).expect("OPEN").fh;
    assert_eq!(batch.client.write(node, cached, (bad * PAGE) as u64, &[9; PAGE]), Ok(PAGE as u32));
    (batch.node, batch.fh) = open(&mut batch.client, other, DIRECT);
    let among_reads = batch.run(|batch| {
        let begin = |page: &usize| if *page == bad { sync(&mut batch.client, (node, cached)) } else { batch.read(*page) };
        order.iter().map(begin).collect()
    });
    assert_eq!(among_reads, expected, "{engine}: FSYNC");
    assert!(good().all(|page| batch.in_memory(page) == content(page, 0)), "{engine}: READ beside FSYNC");

    assert_serves(&mut batch.client, "dir");
    for (node, fh) in [(node, fh), (node, cached), (batch.node, batch.fh)] {
        batch.client.release(node, fh).expect("RELEASE");
    }
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
    true
}

/// The kernel reads up to the error, and tells it to the next call only. To the guest's page cache a READ that is short is the end of
/// the file.
#[test]
fn a_read_that_meets_an_error_on_its_way_does_not_end_the_file() {
    if !private_mounts::enter() {
        return;
    }
    let scratch = Scratch::new();
    let Some(disk) = FailingDisk::new(&scratch.join("share")) else { return };
    let daemon = Daemon::start_in(scratch, &["--allow-direct-io"]);
    let all: Vec<u8> = (0..BATCH).flat_map(|page| content(page, 0)).collect();
    let paths = ["one", "two"].map(|name| daemon.put(name, &all));
    let Some((which, bad)) = disk.fail_in(&paths.each_ref().map(|path| path.as_path())) else { return };
    let (_guest, mut client) = mount(daemon.socket());
    for flags in [libc::O_RDONLY, libc::O_RDONLY | libc::O_DIRECT] {
        let (node, fh) = open(&mut client, ["one", "two"][which], flags);
        let on_host = fs::File::open(&paths[which]).expect("the file");
        rustix::fs::fadvise(&on_host, 0, None, Advice::DontNeed).expect("FADV_DONTNEED");
        let read = client.read(node, fh, 0, (BATCH * PAGE) as u32);
        assert_eq!(read.map(|bytes| bytes.len()), Err(CallError::Errno(libc::EIO)), "page {bad} fails, flags {flags:o}");
        client.release(node, fh).expect("RELEASE");
    }
}

fn open(client: &mut Client, name: &str, flags: i32) -> (u64, u64) {
    let node = client.lookup(ROOT, name).expect("LOOKUP").nodeid;
    (node, client.open(node, flags).expect("OPEN").fh)
}

fn sync(client: &mut Client, (node, fh): (u64, u64)) -> Pending {
    client.begin(&Call::new(opcode::FSYNC, node, &[FsyncIn { fh, ..FsyncIn::default() }.as_bytes()]))
}

#[test]
fn the_error_of_a_disk_is_that_of_one_request_of_a_batch() {
    if !private_mounts::enter() {
        return;
    }
    let engines: &[&str] = if has_io_uring() { &["sync", "auto", "uring"] } else { &["sync"] };
    for engine in engines {
        if !one_of_a_batch_fails(engine) {
            return;
        }
    }
}
