//! Requests that the host does not finish: they keep neither a queue from stopping nor the daemon from ending, and what
//! the host does with them later reaches nobody. The host is a file whose READs wait until the test lets them go on.

use std::process::Command;

use gatherfs_support::daemon::eventually;
use gatherfs_support::guest::client::{Call, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, GuestOptions};
use gatherfs_support::guest::fuse::{self, CreateIn, OpenIn, ROOT, ReadIn, opcode};
use gatherfs_support::guest::ring::Segment;
use gatherfs_support::slow_file::{SlowFile, WaitingRead};
use zerocopy::IntoBytes;

use super::restart::has_open;
use super::{FILE, assert_serves, mounted, open};

const PAGE: usize = 4096;

#[test]
fn a_stop_answers_what_the_host_does_not_finish_and_later_data_does_not_reach_the_guest() {
    // Half a second: the request is held up for as long as the test likes, so the bound is always reached.
    let (daemon, guest, mut client) = mounted(&["--stop-timeout", "0.5"], &GuestOptions { request_queues: 2, ..GuestOptions::default() });
    let Some(slow) = SlowFile::new(&daemon.put("slow", vec![b'x'; 3 * PAGE])) else { return };
    let (node, fh) = open(&mut client, "slow", libc::O_RDONLY);
    let memory = guest.memory();
    let gpa = memory.alloc(3 * PAGE as u64, PAGE as u64);
    let data_out = [Segment { addr: gpa, len: 3 * PAGE as u32, writable: true }];
    let read = ReadIn { fh, size: 3 * PAGE as u32, ..ReadIn::default() };
    let pending = client.begin(&Call { data_out: &data_out, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
    let held = slow.wait_for_read();

    let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE is answered");
    assert_eq!(guest.lock(FIRST_REQUEST).used_idx(), base, "all that was taken is answered");
    assert_eq!(client.finish(pending).expect("the READ is answered").header.error, -libc::EIO);
    assert_eq!(daemon.metrics().get("withdrawn"), 1);
    assert_serves(&mut client.on_queue(FIRST_REQUEST + 1));

    // The guest, or the one that boots after it, uses the pages for something else.
    memory.fill(gpa, 3 * PAGE, 0x55);
    slow.let_go(held);
    daemon.wait_for_line("has finished");
    assert!(memory.read_vec(gpa, 3 * PAGE) == [0x55; 3 * PAGE], "what the host brought late is nowhere");
    guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    assert_serves(&mut client);
    drop(slow);
    assert_eq!(client.read(node, fh, 0, 16).map(|data| data.len()), Ok(16), "the guest's memory is in its place again");
}

/// A process whose thread is in the host may be one that cannot be ended, although the guest has had the answer.
#[test]
fn a_request_that_was_given_up_delays_an_upgrade_until_the_host_has_finished_it() {
    let (daemon, guest, mut client) = mounted(&["--stop-timeout", "0.5"], &GuestOptions::default());
    let Some(slow) = SlowFile::new(&daemon.put("slow", "content")) else { return };
    let held = read_held_up(&mut client, &slow);
    let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE is answered");
    guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    assert_eq!(daemon.metrics().get("withdrawn"), 1);
    let upgrade = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatherfsctl"));
        command.arg("--socket-path").arg(daemon.socket()).arg("upgrade").output().expect("gatherfsctl starts")
    };
    let worker = daemon.serving();
    let refused = upgrade();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("gatherfsctl upgrade --force"), "{said}");
    assert_eq!(daemon.serving(), worker, "{}", daemon.log());
    assert_serves(&mut client);
    slow.let_go(held);
    drop(slow);
    assert!(eventually(|| upgrade().status.success()), "{}", daemon.log());
    assert_ne!(daemon.serving(), worker);
    assert_serves(&mut client);
}

/// Has the guest send a READ of "slow", which the host does not finish.
fn read_held_up(client: &mut Client, slow: &SlowFile) -> WaitingRead {
    let (node, fh) = open(client, "slow", libc::O_RDONLY);
    let read = ReadIn { fh, size: 7, ..ReadIn::default() };
    let _never_finished = client.begin(&Call { room: 7, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
    slow.wait_for_read()
}

#[test]
fn a_daemon_ends_although_the_host_does_not_finish_a_request() {
    let (mut daemon, guest, mut client) = mounted(&["--stop-timeout", "0.5"], &GuestOptions::default());
    let Some(slow) = SlowFile::new(&daemon.put("slow", "content")) else { return };
    let held = read_held_up(&mut client, &slow);
    drop((client, guest));
    assert!(eventually(|| !daemon.is_running()), "the daemon waits for the host\n{}", daemon.log());
    assert!(daemon.wait().success());
    slow.let_go(held);
}

#[test]
fn a_request_that_the_host_finishes_after_a_reset_is_none_of_the_next_session() {
    let (mut daemon, guest, mut client) = mounted(&["--stop-timeout", "0.5"], &GuestOptions::default());
    let Some(slow) = SlowFile::new(&daemon.put("slow", "content")) else { return };
    let held = read_held_up(&mut client, &slow);
    guest.reboot(true).expect("RESET_DEVICE is answered");
    client.init().expect("INIT");
    assert_serves(&mut client);
    slow.let_go(held);
    daemon.wait_for_line("has finished");
    drop(slow);
    assert!(eventually(|| !has_open(&daemon, "slow")), "what the late request used is closed");
    assert_serves(&mut client);
    drop((client, guest));
    assert!(eventually(|| !daemon.is_running()), "the daemon ends\n{}", daemon.log());
    assert!(daemon.wait().success());
}

#[test]
fn an_open_file_whose_answer_does_not_fit_is_closed() {
    let (daemon, _guest, mut client) = mounted(&[], &GuestOptions::default());
    let node = client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let open = OpenIn { flags: libc::O_RDONLY.cast_unsigned(), ..OpenIn::default() };
    let create = CreateIn { flags: libc::O_RDWR.cast_unsigned(), mode: libc::S_IFREG | 0o600, ..CreateIn::default() };
    for room in [0, 15] {
        assert_eq!(client.raw(opcode::OPEN, node, open.as_bytes(), room).expect("an answer").header.error, -libc::EIO);
        let args: &[&[u8]] = &[create.as_bytes(), &fuse::name("made")];
        let reply = client.exchange(&Call { room, ..Call::new(opcode::CREATE, ROOT, args) }).expect("an answer");
        assert_eq!(reply.header.error, -libc::EIO);
    }
    assert!(!has_open(&daemon, FILE) && !has_open(&daemon, "made"));
    assert_serves(&mut client);
}
