//! Guest memory that comes, goes and is laid out in pieces, while requests are served.

use std::sync::atomic::{AtomicBool, Ordering};

use gatherfs_support::daemon::{PATIENCE, eventually};
use gatherfs_support::guest::client::{Call, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::*;
use gatherfs_support::guest::ring::Segment;
use gatherfs_support::slow_file::SlowFile;
use zerocopy::{FromZeros, IntoBytes};

use super::{FILE, assert_serves, content, mapping_of, mounted, open};

const MIB: u64 = 1 << 20;
/// A gap of the default layout.
const GAP: u64 = 256 * MIB;

/// READs of the whole file into `addr`.
fn read_into(client: &mut Client, (node, fh): (u64, u64), addr: u64) -> Result<u32, i32> {
    let segments = [Segment::writable(addr, 16_384)];
    client.read_segments(node, fh, 0, &segments).map_err(|e| e.errno().expect("an errno"))
}

#[test]
fn memory_is_the_devices_from_when_it_is_added_until_it_is_removed() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let file = open(&mut client, FILE, libc::O_RDONLY);
    for _ in 0..3 {
        assert_eq!(read_into(&mut client, file, GAP), Err(libc::EFAULT), "before");
        guest.add_region(GAP, 16 * MIB).expect("ADD_MEM_REG");
        assert_eq!(read_into(&mut client, file, GAP), Ok(14_336));
        assert_eq!(guest.memory().read_vec(GAP, 14_336), content());
        guest.remove_region(GAP).expect("REM_MEM_REG");
        assert_eq!(read_into(&mut client, file, GAP), Err(libc::EFAULT), "after");
    }
    assert_serves(&mut client);
}

#[test]
fn a_queue_whose_ring_was_away_for_a_while_goes_on_when_it_is_back() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let rings = guest.memory().regions()[0].gpa();
    let mut waiting = None;
    guest
        .without_region(rings, || waiting = Some(client.begin(&Call { room: 80, ..Call::new(opcode::STATFS, ROOT, &[]) })))
        .expect("REM_MEM_REG and ADD_MEM_REG");
    let waiting = waiting.expect("it was sent");
    assert_eq!(client.finish(waiting).expect("STATFS").header.error, 0);
}

#[test]
fn memory_added_after_a_migration_was_cancelled_needs_no_log() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let file = open(&mut client, FILE, libc::O_RDONLY);
    guest.set_log(true).expect("SET_LOG_BASE");
    assert_serves(&mut client);
    guest.set_log(false).expect("SET_FEATURES");
    guest.add_region(1 << 40, MIB).expect("ADD_MEM_REG beyond what the log covered");
    assert_eq!(read_into(&mut client, file, 1 << 40), Ok(14_336));
    assert_serves(&mut client);
}

#[test]
fn requests_are_served_while_memory_changes() {
    let options = GuestOptions { request_queues: 2, ..GuestOptions::default() };
    let (_daemon, guest, client) = mounted(&[], &options);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for queue in [FIRST_REQUEST, FIRST_REQUEST + 1] {
            let (mut client, done) = (client.on_queue(queue), &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    assert_serves(&mut client);
                }
            });
        }
        for _ in 0..40 {
            guest.add_region(GAP, MIB).expect("ADD_MEM_REG");
            guest.send_memory().expect("SET_MEM_TABLE");
            guest.remove_region(GAP).expect("REM_MEM_REG");
            guest.send_memory().expect("SET_MEM_TABLE");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn memory_is_removed_although_the_host_does_not_finish_what_uses_it() {
    let (daemon, guest, mut client) = mounted(&["--stop-timeout", "0.3"], &GuestOptions::default());
    let Some(slow) = SlowFile::new(&daemon.put("slow", "content")) else { return };
    let (node, fh) = open(&mut client, "slow", libc::O_RDONLY);
    guest.add_region(GAP, MIB).expect("ADD_MEM_REG");
    let read = ReadIn { fh, size: 7, ..ReadIn::default() };
    let data = [Segment::writable(GAP, 7)];
    let pending = client.begin(&Call { data_out: &data, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
    let held = slow.wait_for_read();
    // What is added waits for nothing.
    guest.add_region(2 * GAP, MIB).expect("ADD_MEM_REG");
    assert!(!daemon.log().contains(" ERROR "), "{}", daemon.log());
    guest.remove_region(GAP).expect("REM_MEM_REG");
    let said = daemon.wait_for_line("guest memory is removed while the host has not finished 1 request(s) within --stop-timeout");
    assert!(said.contains(" ERROR "), "{said}");
    assert_serves(&mut client);
    slow.let_go(held);
    assert_eq!(client.finish(pending).expect("READ").header.error, 0);
    assert_serves(&mut client);
}

#[test]
fn memory_with_the_rings_is_not_removed_before_the_answers_are_in_them() {
    let (daemon, guest, mut client) = mounted(&["--stop-timeout", "0.3"], &GuestOptions::default());
    let Some(slow) = SlowFile::new(&daemon.put("slow", "content")) else { return };
    let (node, fh) = open(&mut client, "slow", libc::O_RDONLY);
    guest.add_region(GAP, MIB).expect("ADD_MEM_REG");
    // All buffers of the request are in other memory than the rings.
    let (request, reply) = (GAP, GAP + 4096);
    let (request_len, reply_len) = (size_of::<InHeader>() + size_of::<ReadIn>(), size_of::<OutHeader>() + 7);
    let header = InHeader { len: request_len as u32, opcode: opcode::READ, unique: 79, nodeid: node, ..InHeader::default() };
    let read = ReadIn { fh, size: 7, ..ReadIn::default() };
    guest.memory().write(request, &[header.as_bytes(), read.as_bytes()].concat());
    let segments = [Segment::readable(request, request_len as u32), Segment::writable(reply, reply_len as u32)];
    let head = guest.lock(FIRST_REQUEST).submit(&segments);
    let held = slow.wait_for_read();
    let rings = guest.memory().regions()[0].gpa();
    // The answer is written to the used ring, so the memory is not left before --stop-timeout is over.
    let is_said = "guest memory is removed while the host has not finished 1 request(s) within --stop-timeout";
    guest.without_region(rings, || _ = daemon.wait_for_line(is_said)).expect("REM_MEM_REG and ADD_MEM_REG");
    slow.let_go(held);
    let mut ring = guest.lock(FIRST_REQUEST);
    assert!(ring.wait(PATIENCE), "{}", ring.describe());
    assert_eq!(ring.take_used(head), Some(reply_len as u32));
}

/// Two regions with nothing in between.
fn adjoining() -> GuestOptions {
    GuestOptions { layout: vec![(0, 16 * MIB), (16 * MIB, 16 * MIB)], ..GuestOptions::default() }
}

#[test]
fn a_payload_may_cross_two_adjoining_regions() {
    let (daemon, guest, mut client) = mounted(&[], &adjoining());
    let (node, fh) = open(&mut client, FILE, libc::O_RDWR);
    let across = guest.memory().alloc_across(0, 5000, 20_000);
    assert_eq!(read_into(&mut client, (node, fh), across), Ok(14_336));
    assert_eq!(guest.memory().read_vec(across, 14_336), content());
    let data: Vec<u8> = (0..25_000u32).map(|i| (i % 241) as u8).collect();
    guest.memory().write(across, &data);
    assert_eq!(client.write_segments(node, fh, 0, &[Segment::readable(across, 25_000)]), Ok(25_000));
    assert_eq!(daemon.content(FILE), data);
}

#[test]
fn a_header_may_cross_two_adjoining_regions() {
    for before in [1, 8, 39, 41] {
        let (_daemon, guest, _client) = mounted(&[], &adjoining());
        let memory = guest.memory();
        let request = memory.alloc_across(0, before, 4096);
        let reply_len = (size_of::<OutHeader>() + size_of::<AttrOut>()) as u32;
        let reply = memory.alloc(4096, 4096);
        let header = InHeader { len: 56, opcode: opcode::GETATTR, unique: 77, nodeid: ROOT, ..InHeader::default() };
        memory.write(request, &[header.as_bytes(), GetattrIn::default().as_bytes()].concat());
        let mut ring = guest.lock(FIRST_REQUEST);
        let head = ring.submit(&[Segment::readable(request, 56), Segment::writable(reply, reply_len)]);
        assert!(ring.wait(PATIENCE), "{}", ring.describe());
        assert_eq!(ring.take_used(head), Some(reply_len), "{before} bytes before the border");
        let mut out = OutHeader::new_zeroed();
        memory.read(reply, out.as_mut_bytes());
        assert_eq!((out.len, out.error, out.unique), (reply_len, 0, 77));
    }
}

#[test]
fn a_reply_header_may_cross_two_adjoining_regions() {
    let (_daemon, guest, _client) = mounted(&[], &adjoining());
    let memory = guest.memory();
    let reply = memory.alloc_across(0, 5, 4096);
    let request = memory.alloc(4096, 4096);
    let reply_len = (size_of::<OutHeader>() + size_of::<AttrOut>()) as u32;
    let header = InHeader { len: 56, opcode: opcode::GETATTR, unique: 78, nodeid: ROOT, ..InHeader::default() };
    memory.write(request, &[header.as_bytes(), GetattrIn::default().as_bytes()].concat());
    let mut ring = guest.lock(FIRST_REQUEST);
    let head = ring.submit(&[Segment::readable(request, 56), Segment::writable(reply, reply_len)]);
    assert!(ring.wait(PATIENCE), "{}", ring.describe());
    assert_eq!(ring.take_used(head), Some(reply_len));
    let mut out = OutHeader::new_zeroed();
    memory.read(reply, out.as_mut_bytes());
    assert_eq!((out.len, out.error, out.unique), (reply_len, 0, 78));
}

/// Ways in which a queue can be when memory is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Idle,
    Disabled,
    Stopped,
}

#[test]
fn removed_memory_is_unmapped_although_no_request_follows() {
    for queue in [Queue::Idle, Queue::Disabled, Queue::Stopped] {
        for by_table in [false, true] {
            let (daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
            let file = open(&mut client, FILE, libc::O_RDONLY);
            guest.add_region(GAP, 16 * MIB).expect("ADD_MEM_REG");
            for queue in [HIPRIO, FIRST_REQUEST] {
                assert_eq!(read_into(&mut client.on_queue(queue), file, GAP), Ok(14_336));
            }
            let regions = guest.memory().regions();
            let region = regions.iter().find(|region| region.gpa() == GAP).expect("it was added");
            assert!(mapping_of(&daemon, region).is_some());
            let base = match queue {
                Queue::Idle => 0,
                Queue::Disabled => guest.enable_queue(FIRST_REQUEST, false).map(|()| 0).expect("SET_VRING_ENABLE"),
                Queue::Stopped => guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE"),
            };
            if by_table {
                guest.memory().remove(GAP);
                guest.send_memory().expect("SET_MEM_TABLE");
            } else {
                guest.remove_region(GAP).expect("REM_MEM_REG");
            }
            let is_gone = eventually(|| mapping_of(&daemon, region).is_none());
            assert!(is_gone, "still mapped: queue {queue:?}, by a new table: {by_table}");
            match queue {
                Queue::Idle => {}
                Queue::Disabled => guest.enable_queue(FIRST_REQUEST, true).expect("SET_VRING_ENABLE"),
                Queue::Stopped => guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts"),
            }
            assert_serves(&mut client);
        }
    }
}

#[test]
fn memory_with_the_rings_is_unmapped_too_and_the_rings_go_on_when_it_is_back() {
    let (daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let regions = guest.memory().regions();
    for _ in 0..3 {
        assert_serves(&mut client);
        guest
            .without_region(regions[0].gpa(), || assert!(eventually(|| mapping_of(&daemon, &regions[0]).is_none()), "still mapped"))
            .expect("REM_MEM_REG and ADD_MEM_REG");
        assert_serves(&mut client);
    }
}
