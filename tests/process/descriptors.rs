//! How many inodes, open files and locks there are under a limit of open files.

use std::fs;

use gatherfs_support::daemon::{Daemon, Scratch, children_of, eventually, only_child};
use gatherfs_support::guest::client::{CallError, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;
use gatherfs_support::places::is_served_by_handles;
use rustix::process::{Pid, Signal, kill_process};

use super::{assert_serves, mount};

const ENFILE: Option<CallError> = Some(CallError::Errno(libc::ENFILE));

/// Looks the files of the share up until no more can be known: their nodes, and what came then.
fn look_up_all(client: &mut Client, files: usize) -> (Vec<u64>, Option<CallError>) {
    let mut nodes = Vec::new();
    for i in 0..files {
        match client.lookup(ROOT, &format!("file{i}")) {
            Ok(entry) => nodes.push(entry.nodeid),
            Err(e) => return (nodes, Some(e)),
        }
    }
    (nodes, None)
}

/// Opens `node` until no more can be open: the handles, and what came then.
fn open_all(client: &mut Client, node: u64) -> (Vec<u64>, Option<CallError>) {
    let mut handles = Vec::new();
    loop {
        match client.open(node, libc::O_RDONLY) {
            Ok(open) => handles.push(open.fh),
            Err(e) => return (handles, Some(e)),
        }
    }
}

#[test]
fn inodes_take_the_descriptors_that_nobody_else_needs() {
    const LIMIT: usize = 1024;
    let daemon =
        Daemon::start(&["--inode-file-handles", "never", "--rlimit-nofile", "1024", "--num-request-queues", "1", "--keep-listening"]);
    for i in 0..LIMIT {
        daemon.put(&format!("file{i}"), "content");
    }
    for connection in 0..3 {
        let (guest, mut client) = mount(daemon.socket());
        let (nodes, refusal) = look_up_all(&mut client, LIMIT);
        assert_eq!(refusal, ENFILE, "connection {connection}: {} inodes", nodes.len());
        assert!(nodes.len() > LIMIT * 3 / 4, "connection {connection}: {} inodes", nodes.len());
        // A part is for open files alone.
        let (handles, refusal) = open_all(&mut client, nodes[0]);
        assert!(handles.len() > LIMIT / 32, "connection {connection}: {} open files", handles.len());
        assert_eq!(refusal, ENFILE);
        assert_eq!(client.read(nodes[0], handles[0], 0, 100).as_deref(), Ok(&b"content"[..]));
        assert_eq!(client.getattr(nodes[1], None).map(|a| a.attr.size), Ok(7), "known inodes are served");
        // What inodes gave up, open files can have.
        for node in &nodes[100..300] {
            client.forget(*node, 1).expect("FORGET");
        }
        let (more, refusal) = open_all(&mut client, nodes[1]);
        assert_eq!((more.len(), refusal), (200, ENFILE), "connection {connection}");
        for handle in more {
            client.release(nodes[1], handle).expect("RELEASE");
        }
        assert!(client.lookup(ROOT, "file150").is_ok());
        assert_serves(&mut client, "dir");
        drop((guest, client));
    }
}

#[test]
fn recently_used_inodes_give_way_to_open_files() {
    let scratch = Scratch::with_file_handles();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    if !is_served_by_handles(&scratch.join("share")) {
        println!("skipped: inodes are kept as descriptors here");
        return;
    }
    let daemon = Daemon::start_in(scratch, &["--rlimit-nofile", "1024", "--num-request-queues", "1"]);
    let (_guest, mut client) = mount(daemon.socket());
    // Each directory that is looked into is kept open for a while.
    for i in 0..64 {
        let directory = client.mkdir(ROOT, &format!("dir{i}"), 0o755).expect("MKDIR").nodeid;
        client.mkdir(directory, "below", 0o755).expect("MKDIR");
    }
    daemon.put("file", "content");
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let before = descriptors(&daemon);
    let (handles, refusal) = open_all(&mut client, node);
    assert_eq!(refusal, ENFILE);
    // 896 descriptors are the guest's; one is the root's, and one the root's for workers to come.
    assert_eq!(handles.len(), 894, "{before} descriptors were open before");
    for handle in handles {
        client.release(node, handle).expect("RELEASE");
    }
    assert_serves(&mut client, "dir");
}

/// A worker that follows one that died needs descriptors before it has closed what that one had: there are some for each queue.
#[test]
fn a_guest_that_holds_every_descriptor_keeps_its_session_when_the_worker_dies() {
    let daemon = Daemon::start(&["--rlimit-nofile", "1024"]);
    daemon.put("file", "content");
    let options = GuestOptions { request_queues: 16, ..GuestOptions::default() };
    let guest = Guest::connect(daemon.socket(), &options).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let (handles, refusal) = open_all(&mut client, node);
    assert_eq!(refusal, ENFILE);
    for _ in 0..3 {
        let worker = only_child(daemon.keeper());
        kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
        assert_eq!(client.read(node, handles[0], 0, 100).as_deref(), Ok(&b"content"[..]), "{}", daemon.log());
        assert!(eventually(|| matches!(children_of(daemon.keeper())[..], [next] if next != worker)), "{}", daemon.log());
    }
}

/// How many descriptors the daemon has open.
fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.keeper())).expect("the process is there").count()
}
