//! Requests in the wrong order, and lookup counts that are wrong.

use gatherfs_support::daemon::{Daemon, eventually};
use gatherfs_support::guest::client::{Call, CallError, Client};
use gatherfs_support::guest::frontend::HIPRIO;
use gatherfs_support::guest::fuse::*;
use zerocopy::IntoBytes;

use super::{FILE, Mounted, QUEUES, errno};

/// Every request that has a reply, other than INIT, is EIO in `client`'s session.
fn assert_no_session(client: &mut Client) {
    let eio = CallError::Errno(libc::EIO);
    assert_eq!(client.lookup(ROOT, FILE).err(), Some(eio.clone()));
    assert_eq!(client.getattr(ROOT, None).err(), Some(eio.clone()));
    assert_eq!(client.opendir(ROOT).err(), Some(eio.clone()));
    assert_eq!(client.mkdir(ROOT, "dir", 0o755).err(), Some(eio.clone()));
    assert_eq!(client.read(ROOT, 0, 0, 64).err(), Some(eio.clone()));
    assert_eq!(client.destroy().err(), Some(eio));
}

#[test]
fn requests_before_init_are_eio_and_counted() {
    let mut mounted = Mounted::before_init(Daemon::start(&[]));
    for queue in QUEUES {
        assert_no_session(&mut mounted.on(queue));
    }
    assert_eq!(mounted.count("out_of_session"), 12);
    assert!(!mounted.daemon.share().join("dir").exists());
    mounted.client.init().expect("INIT");
    mounted.assert_serves("requests before INIT");
}

#[test]
fn forget_before_init_comes_back_empty() {
    let mut mounted = Mounted::before_init(Daemon::start(&[]));
    assert_eq!(mounted.client.forget(ROOT, 1), Ok(()));
    assert_eq!(mounted.client.batch_forget(&[ForgetOne { nodeid: ROOT, nlookup: 1 }]), Ok(()));
    mounted.client.init().expect("INIT");
    mounted.assert_serves("FORGET before INIT");
}

#[test]
fn a_second_init_lets_go_of_what_was_held_and_begins_anew() {
    let mut mounted = Mounted::new(&["--locks", "host"]);
    for (waits, queue) in (1..).zip(QUEUES) {
        let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
        let open = mounted.client.open(file, libc::O_RDWR).expect("OPEN").fh;
        let lk = FileLock { start: 0, end: 9, kind: libc::F_RDLCK as u32, pid: 1 };
        let lock = |lk| LkIn { fh: open, owner: 1, lk, lk_flags: 0, padding: 0 };
        mounted.client.setlk(file, &lock(lk), false).expect("SETLK");
        let of_another = LkIn { owner: 2, ..lock(FileLock { kind: libc::F_WRLCK as u32, ..lk }) };
        let waiting = mounted.client.begin(&Call::new(opcode::SETLKW, file, &[of_another.as_bytes()]));
        // A queue has several threads: no later answer says that the wait has begun. A request that comes beside the INIT
        // would find no session (EIO) or no file (EBADF).
        assert!(eventually(|| mounted.count("parked") == waits), "the lock is waited for");
        mounted.on(queue).init().unwrap_or_else(|e| panic!("INIT on queue {queue}: {e:?}"));
        assert_eq!(mounted.client.finish(waiting).expect("an answer").header.error, -libc::ESTALE, "the wait ends");
        assert_eq!(mounted.client.read(file, open, 0, 64).err(), Some(libc::EBADF.into()));
        assert_eq!(mounted.client.getattr(file, None).err(), Some(libc::ESTALE.into()));
        mounted.assert_serves("a second INIT");
    }
}

#[test]
fn init_works_on_the_hiprio_queue_too() {
    let mut mounted = Mounted::before_init(Daemon::start(&[]));
    mounted.on(HIPRIO).init().expect("INIT");
    mounted.assert_serves("INIT on hiprio");
}

#[test]
fn requests_after_destroy_are_eio_until_a_new_init() {
    let mut mounted = Mounted::new(&[]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let open = mounted.client.open(file, libc::O_RDONLY).expect("OPEN").fh;
    assert_eq!(mounted.client.destroy(), Ok(()));
    for queue in QUEUES {
        assert_no_session(&mut mounted.on(queue));
    }
    mounted.client.init().expect("INIT after DESTROY");
    assert_eq!(mounted.client.read(file, open, 0, 64).err(), Some(libc::EBADF.into()), "handles ended with the session");
    assert_eq!(mounted.client.getattr(file, None).err(), Some(libc::ESTALE.into()), "nodes ended with the session");
    mounted.assert_serves("DESTROY and INIT");
}

#[test]
fn an_init_of_another_major_or_of_an_old_minor_begins_no_session() {
    let mut mounted = Mounted::before_init(Daemon::start(&[]));
    let init = |major, minor| InitIn { major, minor, max_readahead: 4096, ..InitIn::default() };
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        let newer = client.raw(opcode::INIT, 0, init(8, 0).as_bytes(), 64).expect("a reply");
        assert_eq!((errno(&newer), newer.payload[..4].as_bytes()), (0, 7u32.as_bytes()), "the daemon names its own major");
        for (major, minor) in [(7, 26), (6, 45), (0, 0)] {
            let old = client.raw(opcode::INIT, 0, init(major, minor).as_bytes(), 64).expect("a reply");
            assert_eq!(errno(&old), libc::EPROTO, "{major}.{minor}");
        }
        let short = client.raw(opcode::INIT, 0, &init(7, 45).as_bytes()[..15], 64).expect("a reply");
        assert_eq!(errno(&short), libc::EINVAL);
        assert_eq!(client.statfs(ROOT).err(), Some(libc::EIO.into()), "no session has begun");
    }
    mounted.client.init().expect("INIT");
    mounted.assert_serves("odd INITs");
}

#[test]
fn a_forget_of_more_than_was_looked_up_ends_the_node_and_no_other() {
    let mut mounted = Mounted::before_init(Daemon::start(&[]));
    // A guest that does not export: a node is gone with its last lookup.
    mounted.client.init_with(init::LINUX & !init::EXPORT_SUPPORT).expect("INIT");
    mounted.daemon.put("other", "");
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let other = mounted.client.lookup(ROOT, "other").expect("LOOKUP").nodeid;
    assert_eq!(mounted.client.forget(file, 1000), Ok(()));
    assert_eq!(mounted.client.forget(file, u64::MAX), Ok(()));
    assert_eq!(mounted.client.getattr(file, None).err(), Some(libc::ESTALE.into()));
    assert_eq!(mounted.client.getattr(other, None).map(|a| a.attr.size), Ok(0));
    let again = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    assert_ne!(again, file, "an id that was forgotten is not given again at once");
    mounted.assert_serves("FORGET of too much");
}

#[test]
fn the_root_and_unknown_nodes_survive_every_forget() {
    let mut mounted = Mounted::new(&[]);
    for node in [ROOT, 0, 77, u64::MAX] {
        assert_eq!(mounted.client.forget(node, u64::MAX), Ok(()), "FORGET of node {node}");
        assert_eq!(mounted.client.batch_forget(&[ForgetOne { nodeid: node, nlookup: u64::MAX }; 3]), Ok(()));
    }
    assert!(mounted.client.getattr(ROOT, None).is_ok());
    mounted.assert_serves("FORGET of the root");
}

#[test]
fn a_batch_forget_that_lies_about_its_count_is_counted_and_forgets_nothing() {
    let mut mounted = Mounted::new(&[]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let one = ForgetOne { nodeid: file, nlookup: 1 };
    for count in [2, 1 << 28, u32::MAX] {
        let head = BatchForgetIn { count, dummy: 0 };
        let args: &[&[u8]] = &[head.as_bytes(), one.as_bytes()];
        assert_eq!(mounted.client.send_hiprio(&Call::new(opcode::BATCH_FORGET, 0, args)), Ok(()), "count {count}");
    }
    assert_eq!(mounted.count("malformed_requests"), 3);
    assert!(mounted.client.getattr(file, None).is_ok(), "the node is known");
    mounted.assert_serves("a lying BATCH_FORGET");
}

#[test]
fn a_forget_with_room_for_a_reply_gets_none() {
    let mut mounted = Mounted::new(&[]);
    let forget = ForgetIn { nlookup: 1 };
    for queue in QUEUES {
        let reply = mounted.on(queue).raw(opcode::FORGET, ROOT, forget.as_bytes(), 64);
        assert!(matches!(&reply, Err(CallError::Violation(what)) if what.contains("used length 0 ")), "{reply:?}");
    }
    // Nor is a malformed one answered.
    let reply = mounted.client.raw(opcode::FORGET, ROOT, &[], 64);
    assert!(matches!(&reply, Err(CallError::Violation(what)) if what.contains("used length 0 ")), "{reply:?}");
    assert_eq!(mounted.daemon.metrics().requests("FORGET"), 3);
    mounted.assert_serves("FORGET with room");
}

#[test]
fn an_interrupt_of_nothing_comes_back_empty() {
    let mut mounted = Mounted::new(&[]);
    for unique in [0, 2, u64::MAX] {
        assert_eq!(mounted.client.interrupt(unique), Ok(()));
    }
    assert_eq!(mounted.client.send_hiprio(&Call::new(opcode::INTERRUPT, 0, &[b"shrt"])), Ok(()));
    assert_eq!(mounted.count("malformed_requests"), 1);
    mounted.assert_serves("INTERRUPT of nothing");
}

#[test]
fn files_that_need_two_descriptors_leave_some_for_the_daemon() {
    let mut mounted = Mounted::new(&["--allow-direct-io", "--rlimit-nofile", "256"]);
    let node = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let mut open = Vec::new();
    let refused = loop {
        match mounted.client.open(node, libc::O_RDWR | libc::O_DIRECT) {
            Ok(opened) => open.push(opened.fh),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, CallError::Errno(libc::ENFILE));
    for &fh in &open {
        // No block begins there: it takes a descriptor without O_DIRECT.
        assert_eq!(mounted.client.read(node, fh, 5, 64).as_deref(), Ok(&super::CONTENT[5..]));
    }
    mounted.client.release(node, open[0]).expect("RELEASE");
    mounted.assert_serves("as many open files as there may be");
}
