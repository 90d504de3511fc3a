//! The device on real rings: all data goes through io_uring. Where the kernel forbids it, the tests say so and pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gatherfs::device::Options;
use gatherfs::io::{Rings, Which};
use gatherfs_support::daemon::eventually;
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::{FsyncIn, ROOT, ReadIn, opcode};
use gatherfs_support::guest::ring::Segment;
use gatherfs_support::in_process::{self, Device};
use gatherfs_support::slow_file::SlowFile;
use zerocopy::IntoBytes;

const PAGE: usize = 4096;

/// A device whose request queue has a ring for everything. `None` where there are no rings.
fn start(options: Options, pins_memory: bool) -> Option<Device> {
    let rings = match Rings::new(1, pins_memory) {
        Ok(rings) => Arc::new(rings),
        Err(e) => {
            println!("skipped: no rings: {e}");
            return None;
        }
    };
    let with_rings = move |service: gatherfs::device::Service| service.with(options).with_rings(Arc::clone(&rings), Which::All);
    Some(Device::start(in_process::share_options(), with_rings))
}

/// Byte `at` of the test's file.
fn byte(at: usize) -> u8 {
    (at / PAGE * 7 + at % 251) as u8
}

fn content(pages: usize) -> Vec<u8> {
    (0..pages * PAGE).map(byte).collect()
}

/// A file with `content`, open with `flags`.
fn open_file(device: &mut Device, content: &[u8], flags: i32) -> (u64, u64) {
    std::fs::write(device.path("file"), content).unwrap();
    let c = device.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    (node, c.open(node, flags).unwrap().fh)
}

/// Has the guest send a READ of page `page`.
fn begin_read(c: &mut Client, (node, fh): (u64, u64), page: usize) -> Pending {
    let read = ReadIn { fh, offset: (page * PAGE) as u64, size: PAGE as u32, ..ReadIn::default() };
    c.begin(&Call { room: PAGE as u32, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })
}

#[test]
fn what_is_written_is_read_also_by_more_requests_than_a_ring_has_room_for() {
    const PAGES: usize = 200;
    let Some(mut device) = start(Options::default(), false) else { return };
    let metrics = Arc::clone(&device.metrics);
    let file = open_file(&mut device, &[], libc::O_RDWR);
    let expected = content(PAGES);
    let path = device.path("file");
    let c = device.client();
    for (page, bytes) in expected.chunks(PAGE).enumerate() {
        assert_eq!(c.write(file.0, file.1, (page * PAGE) as u64, bytes).unwrap(), PAGE as u32);
    }
    c.fsync(file.0, file.1, false).unwrap();
    c.fsync(file.0, file.1, true).unwrap();
    assert!(std::fs::read(path).unwrap() == expected);
    for round in 0..5 {
        let pending: Vec<_> = (0..PAGES).map(|page| begin_read(c, file, page)).collect();
        for (page, pending) in pending.into_iter().enumerate() {
            let reply = c.finish(pending).unwrap();
            assert!(reply.header.error == 0 && reply.payload == expected[page * PAGE..][..PAGE], "round {round}, page {page}");
        }
    }
    assert_eq!(c.read(file.0, file.1, expected.len() as u64 - 10, 100).unwrap(), expected[expected.len() - 10..], "the end of the file");
    assert!(c.read(file.0, file.1, expected.len() as u64, 100).unwrap().is_empty(), "behind it");
    assert_eq!(c.read(file.0, file.1, u64::MAX - 1, 100).unwrap_err().errno(), Some(libc::EINVAL));
    // The offset beyond what the kernel has is no request for a ring.
    let submitted = (PAGES + 2 + 5 * PAGES + 2) as u64;
    // A thread that finds another one inside the ring makes the call itself.
    assert!((1..=submitted).contains(&metrics.submitted.get()));
    assert!((1..=submitted).contains(&metrics.ring_enters.get()));
    assert_eq!(
        metrics.host_reads.get() + metrics.host_writes.get() + 2,
        submitted + 2,
        "one call each and one for the end of the file, the FSYNCs apart"
    );
}

#[test]
fn an_error_is_that_of_one_request_of_a_batch() {
    let Some(mut device) = start(Options::default(), false) else { return };
    let readable = open_file(&mut device, &content(4), libc::O_RDONLY);
    let c = device.client();
    let write_only = (readable.0, c.open(readable.0, libc::O_WRONLY).unwrap().fh);
    for _ in 0..20 {
        let pending: Vec<_> = (0..16).map(|i| begin_read(c, if i % 4 == 2 { write_only } else { readable }, i % 4)).collect();
        for (i, pending) in pending.into_iter().enumerate() {
            let reply = c.finish(pending).unwrap();
            let expected = if i % 4 == 2 { (-libc::EBADF, vec![]) } else { (0, content(4)[i % 4 * PAGE..][..PAGE].to_vec()) };
            assert!((reply.header.error, reply.payload) == expected, "request {i}");
        }
    }
}

#[test]
fn a_file_that_is_released_meanwhile_is_closed_behind_its_last_transfer() {
    let Some(mut device) = start(Options::default(), false) else { return };
    let file = open_file(&mut device, &content(64), libc::O_RDONLY);
    let path = device.path("file");
    for _ in 0..20 {
        let c = device.client();
        let fh = c.open(file.0, libc::O_RDONLY).unwrap().fh;
        let pending: Vec<_> = (0..64).map(|page| begin_read(c, (file.0, fh), page)).collect();
        c.release(file.0, fh).unwrap();
        for (page, pending) in pending.into_iter().enumerate() {
            // Those behind the RELEASE find no handle; none finds another file.
            let reply = c.finish(pending).unwrap();
            let is_page = reply.header.error == 0 && reply.payload == content(64)[page * PAGE..][..PAGE];
            assert!(is_page || reply.header.error == -libc::EBADF, "page {page}: {}", reply.header.error);
        }
    }
    let c = device.client();
    c.release(file.0, file.1).unwrap();
    let targets = || std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let is_open = || targets().filter(|target| *target == path).count();
    assert!(eventually(|| is_open() <= 1), "{} descriptors; one may be the node's own", is_open());
}

/// READs of the whole file while memory is added, replaced and removed: they read what the file has, into the memory that they name.
fn read_while_memory_changes(device: &mut Device, pages: usize) {
    const GAP: u64 = 1 << 30;
    let expected = content(pages);
    let file = open_file(device, &expected, libc::O_RDONLY);
    let guest = Arc::clone(device.client().guest());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for _ in 0..30 {
                guest.add_region(GAP, 1 << 20).expect("ADD_MEM_REG");
                guest.send_memory().expect("SET_MEM_TABLE");
                guest.remove_region(GAP).expect("REM_MEM_REG");
            }
            done.store(true, Ordering::SeqCst);
        });
        let c = device.client.as_mut().unwrap();
        while !done.load(Ordering::SeqCst) {
            let pending: Vec<_> = (0..pages).map(|page| begin_read(c, file, page)).collect();
            for (page, pending) in pending.into_iter().enumerate() {
                let reply = c.finish(pending).unwrap();
                assert!(reply.header.error == 0 && reply.payload == expected[page * PAGE..][..PAGE], "page {page}");
            }
        }
        changes.join().unwrap();
    });
}

#[test]
fn transfers_go_on_while_memory_changes() {
    let Some(mut device) = start(Options::default(), false) else { return };
    read_while_memory_changes(&mut device, 32);
}

#[test]
fn pinned_memory_is_that_of_the_present_table() {
    let Some(mut device) = start(Options::default(), true) else { return };
    let metrics = Arc::clone(&device.metrics);
    read_while_memory_changes(&mut device, 32);
    let before = metrics.pinned_transfers.get();
    let file = open_file(&mut device, &content(8), libc::O_RDWR);
    let c = device.client();
    for page in 0..8 {
        assert!(c.read(file.0, file.1, (page * PAGE) as u64, PAGE as u32).unwrap() == content(8)[page * PAGE..][..PAGE]);
        assert_eq!(c.write(file.0, file.1, (page * PAGE) as u64, &[9; PAGE]).unwrap(), PAGE as u32);
    }
    assert!(std::fs::read(device.path("file")).unwrap() == [9; 8 * PAGE]);
    // Without the right to lock 128 MiB, or before Linux 6.15, it is the plain form.
    match metrics.pinned_transfers.get() - before {
        0 => println!("skipped: guest memory cannot be pinned here"),
        pinned => assert_eq!(pinned, 16),
    }
}

/// A READ into memory that the frontend removes, by a new table or by itself, while the host has not finished it.
fn remove_memory_of_a_read(pins_memory: bool, by_table: bool) -> Option<()> {
    const GAP: u64 = 1 << 30;
    let mut device = start(Options::default(), pins_memory)?;
    std::fs::write(device.path("slow"), content(1)).unwrap();
    let slow = SlowFile::new(&device.path("slow"))?;
    let metrics = Arc::clone(&device.metrics);
    let c = device.client();
    let node = c.lookup(ROOT, "slow").unwrap().nodeid;
    let fh = c.open(node, libc::O_RDONLY).unwrap().fh;
    let guest = Arc::clone(c.guest());
    guest.add_region(GAP, 1 << 20).unwrap();
    let region = guest.memory().regions().into_iter().find(|region| region.gpa() == GAP).unwrap();
    let read = ReadIn { fh, size: PAGE as u32, ..ReadIn::default() };
    let data = [Segment::writable(GAP, PAGE as u32)];
    let pending = c.begin(&Call { data_out: &data, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
    let held = slow.wait_for_read();
    let at_reply = std::thread::scope(|scope| {
        let removal = scope.spawn(|| {
            if by_table {
                guest.memory().remove(GAP);
                guest.send_memory().expect("SET_MEM_TABLE");
            } else {
                guest.remove_region(GAP).expect("REM_MEM_REG");
            }
            let mut page = vec![0; PAGE];
            // SAFETY: `region` keeps the page mapped.
            unsafe { std::ptr::copy_nonoverlapping(region.host(GAP), page.as_mut_ptr(), PAGE) };
            page
        });
        // The new table is in force when the device no longer finds what it does not have.
        let mut statfs = || {
            let data = [Segment::writable(GAP + PAGE as u64, 16)];
            c.exchange(&Call { room: 80, data_out: &data, ..Call::new(opcode::STATFS, ROOT, &[]) }).unwrap().header.error
        };
        assert!(eventually(|| statfs() != 0), "the table does not change");
        assert!((0..50).all(|_| statfs() != 0));
        slow.let_go(held);
        removal.join().unwrap()
    });
    assert!(at_reply == content(1), "the table was changed before the transfer was done; pinned: {pins_memory}, by table: {by_table}");
    assert_eq!(c.finish(pending).unwrap().header.error, 0);
    assert_eq!(metrics.submitted.get(), 1);
    let file = open_file(&mut device, &content(4), libc::O_RDONLY);
    assert!(device.client().read(file.0, file.1, 0, 4 * PAGE as u32).unwrap() == content(4));
    Some(())
}

#[test]
fn memory_is_removed_when_the_transfers_into_it_are_done() {
    for (pins_memory, by_table) in [(false, false), (false, true), (true, false), (true, true)] {
        if remove_memory_of_a_read(pins_memory, by_table).is_none() {
            return;
        }
    }
}

#[test]
fn a_stop_does_not_wait_for_a_transfer_that_the_host_does_not_finish() {
    let Some(mut device) = start(Options { stop_timeout: Duration::from_millis(300), ..Options::default() }, false) else { return };
    std::fs::write(device.path("slow"), [7; PAGE]).unwrap();
    let Some(slow) = SlowFile::new(&device.path("slow")) else { return };
    let file = open_file(&mut device, &content(1), libc::O_RDONLY);
    let metrics = Arc::clone(&device.metrics);
    let c = device.client();
    let node = c.lookup(ROOT, "slow").unwrap().nodeid;
    let fh = c.open(node, libc::O_RDONLY).unwrap().fh;
    let pending = begin_read(c, (node, fh), 0);
    let read = slow.wait_for_read();
    let guest = Arc::clone(c.guest());
    let base = guest.stop_queue(FIRST_REQUEST).unwrap();
    assert_eq!(metrics.withdrawn.get(), 1);
    slow.let_go(read);
    guest.restart_queue(FIRST_REQUEST, base).unwrap();
    assert_eq!(c.finish(pending).unwrap().header.error, -libc::EIO);
    assert!(eventually(|| metrics.withdrawn_finished.get() == 1));
    assert_eq!(c.read(file.0, file.1, 0, PAGE as u32).unwrap(), content(1));
}

#[test]
fn an_fsync_among_reads_answers_each() {
    let Some(mut device) = start(Options::default(), false) else { return };
    let file = open_file(&mut device, &content(8), libc::O_RDWR);
    let c = device.client();
    for _ in 0..20 {
        let reads: Vec<_> = (0..8).map(|page| begin_read(c, file, page)).collect();
        let sync = FsyncIn { fh: file.1, ..FsyncIn::default() };
        let sync = c.begin(&Call::new(opcode::FSYNC, file.0, &[sync.as_bytes()]));
        for (page, pending) in reads.into_iter().enumerate() {
            assert!(c.finish(pending).unwrap().payload == content(8)[page * PAGE..][..PAGE]);
        }
        assert_eq!(c.finish(sync).unwrap().header.error, 0);
    }
}

#[test]
fn a_ring_serves_the_next_session() {
    let Ok(rings) = Rings::new(1, false) else { return };
    let rings = Arc::new(rings);
    for session in 0..3 {
        let rings = Arc::clone(&rings);
        let mut device = Device::start(in_process::share_options(), move |service| service.with_rings(Arc::clone(&rings), Which::All));
        let file = open_file(&mut device, &content(1), libc::O_RDONLY);
        assert_eq!(device.client().read(file.0, file.1, 0, PAGE as u32).unwrap(), content(1));
        assert_eq!(device.metrics.ring_enters.get(), 1, "session {session}");
    }
}
