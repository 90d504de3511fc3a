//! Who keeps whom from a lock, and what ends one.

use std::path::Path;

use gatherfs_support::daemon;
use gatherfs_support::guest::frontend::GuestOptions;
use gatherfs_support::guest::fuse::{FlushIn, ReleaseIn, flag, init, opcode};

use super::*;

fn open_files(daemon: &Daemon) -> usize {
    let path = daemon.share().join(FILE);
    let links = std::fs::read_dir(Path::new("/proc").join(daemon.keeper().to_string()).join("fd")).expect("the process is there");
    links.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()).filter(|target| *target == path).count()
}

#[test]
fn processes_of_one_guest_exclude_each_other_byte_by_byte() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, WRITE, 0, 99), 0);
    assert_eq!(l.set(2, READ, 50, 60), libc::EAGAIN);
    assert_eq!(l.set(2, WRITE, 100, 199), 0);
    assert_eq!(l.set(1, READ, 0, 99), 0, "one's own lock may change");
    assert_eq!(l.set(2, READ, 0, 99), 0);
    assert_eq!(l.set(1, WRITE, 0, 0), libc::EAGAIN);
    assert_eq!(l.set(2, NONE, 0, 49), 0);
    assert_eq!(l.set(1, WRITE, 0, 49), 0);
    assert_eq!(l.set(1, WRITE, 50, 50), libc::EAGAIN);
}

#[test]
fn getlk_names_the_lock_in_the_way_and_its_process() {
    let (daemon, mut l) = locker();
    assert_eq!(l.get(1, WRITE).kind, NONE as u32);
    assert_eq!(l.set(2, READ, 10, 19), 0);
    let held = l.get(1, WRITE);
    assert_eq!((held.start, held.end, held.kind, held.pid), (10, 19, READ as u32, 1002));
    assert_eq!(l.get(1, READ).kind, NONE as u32, "shared locks get along");
    assert_eq!(l.get(2, WRITE).kind, NONE as u32, "one's own lock is in nobody's way");
    assert_eq!(l.set(2, NONE, 0, 100), 0);
    let host = on_host(&daemon);
    assert_eq!(host_set(&host, WRITE), 0);
    let held = l.get(1, READ);
    assert_eq!((held.start, held.end, held.kind, held.pid), (0, i64::MAX as u64, WRITE as u32, 0), "no process of the guest");
}

#[test]
fn guests_of_two_daemons_and_host_processes_exclude_each_other() {
    let (daemon, mut one) = locker();
    let (_process, _scratch, socket) = second(&daemon);
    let mut two = Locker::connect(&socket, &GuestOptions::default());
    let host = on_host(&daemon);
    assert_eq!(one.set(1, WRITE, 0, 9), 0);
    assert_eq!(two.set(1, WRITE, 5, 5), libc::EAGAIN, "the same process number of another guest");
    assert_eq!(two.get(1, WRITE).kind, WRITE as u32);
    assert_eq!(host_set(&host, READ), libc::EAGAIN);
    assert_eq!(one.set(1, NONE, 0, 9), 0);
    assert_eq!(host_set(&host, READ), 0);
    assert_eq!(two.set(1, READ, 5, 5), 0);
    assert_eq!(one.set(1, WRITE, 5, 5), libc::EAGAIN);
    // Not by closing it: a process that another test is about to start may hold it for a moment.
    assert_eq!(host_set(&host, NONE), 0);
    assert_eq!(two.set(1, NONE, 5, 5), 0);
    assert_eq!(one.set(1, WRITE, 5, 5), 0);
}

#[test]
fn flock_is_apart_from_record_locks_and_reaches_the_host_as_flock() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    assert_eq!(l.flock(1, READ), 0);
    assert_eq!(l.flock(2, READ), 0);
    assert_eq!(host_flock(&host, libc::LOCK_SH), 0);
    assert_eq!(l.set(3, WRITE, 0, 9), 0, "record locks do not see it");
    assert_eq!(l.flock(1, NONE), 0);
    assert_eq!(host_flock(&host, libc::LOCK_UN), 0);
    assert_eq!(l.flock(2, WRITE), 0, "alone now");
    assert_eq!(host_flock(&host, libc::LOCK_EX), libc::EAGAIN);
    assert_eq!(l.flock(1, READ), libc::EAGAIN);
    let release = ReleaseIn { fh: l.fh, flags: 0, release_flags: flag::RELEASE_FLOCK_UNLOCK, lock_owner: 2 };
    let released = l.client.raw(opcode::RELEASE, l.node, release.as_bytes(), 0).expect("RELEASE");
    assert_eq!(released.header.error, 0);
    assert_eq!(host_flock(&host, libc::LOCK_EX), 0, "the release ended it");
}

#[test]
fn a_process_that_closes_the_file_loses_its_record_locks_and_no_other() {
    let (daemon, mut l) = locker();
    assert_eq!((l.set(1, WRITE, 0, 9), l.set(2, WRITE, 10, 19)), (0, 0));
    let before = open_files(&daemon);
    let flush = FlushIn { fh: l.fh, lock_owner: 1, ..FlushIn::default() };
    assert_eq!(l.client.raw(opcode::FLUSH, l.node, flush.as_bytes(), 0).expect("FLUSH").header.error, 0);
    assert_eq!(l.set(3, WRITE, 0, 9), 0);
    assert_eq!(l.set(3, WRITE, 10, 10), libc::EAGAIN);
    assert_eq!(open_files(&daemon), before, "one description less, one more");
}

/// Linux tells of no end of the locks of an open file (F_OFD_SETLK): their owner is the file, and FLUSH names a process.
#[test]
fn the_locks_of_an_open_file_end_with_its_release() {
    let (daemon, mut l) = locker();
    let before = open_files(&daemon);
    let fh = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    let request = LkIn { fh, ..l.request(77, WRITE, 0, 9) };
    assert_eq!(errno_of(l.client.setlk(l.node, &request, false)), 0);
    assert_eq!(l.set(2, WRITE, 10, 19), 0);
    let waiting = l.wait_for(3, WRITE, 0, 9);
    let flush = FlushIn { fh, lock_owner: 1, ..FlushIn::default() };
    assert_eq!(l.client.raw(opcode::FLUSH, l.node, flush.as_bytes(), 0).expect("FLUSH").header.error, 0);
    assert!(!l.client.is_answered(&waiting));
    let release = ReleaseIn { fh, ..ReleaseIn::default() };
    assert_eq!(l.client.raw(opcode::RELEASE, l.node, release.as_bytes(), 0).expect("RELEASE").header.error, 0);
    assert_eq!(l.end_of(waiting), 0);
    assert_eq!(l.set(1, WRITE, 10, 10), libc::EAGAIN, "a lock that was taken through another file stays");
    assert_eq!(open_files(&daemon), before + 2, "those of the two that hold something");
}

#[test]
fn locks_end_with_the_node_and_with_the_guest() {
    let (daemon, mut l) = locker();
    let host = on_host(&daemon);
    let before = open_files(&daemon);
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    assert_eq!(open_files(&daemon), before + 1);
    l.client.forget(l.node, 1).expect("FORGET");
    assert!(daemon::eventually(|| host_set(&host, WRITE) == 0), "the node is gone and its locks with it");
    assert_eq!(host_set(&host, NONE), 0);

    let node = l.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    (l.node, l.fh) = (node, l.client.open(node, libc::O_RDWR).expect("OPEN").fh);
    assert_eq!(l.set(1, WRITE, 0, 9), 0);
    assert_eq!(host_set(&host, WRITE), libc::EAGAIN);
    l.guest.reboot(false).expect("a reboot");
    l.client.init().expect("INIT");
    assert_eq!(host_set(&host, WRITE), 0, "the guest began anew");
}

#[test]
fn locks_stay_in_the_guest_unless_the_option_says_otherwise() {
    for options in [&[][..], &["--locks", "guest"]] {
        let daemon = Daemon::start_on_tmpfs(options);
        daemon.put(FILE, [7; 16]);
        let mut l = Locker::connect(daemon.socket(), &GuestOptions::default());
        assert_eq!(l.client.init_flags() & (init::POSIX_LOCKS | init::FLOCK_LOCKS), 0);
        assert_eq!(l.set(1, WRITE, 0, 9), libc::ENOSYS);
    }
    let (_daemon, l) = locker();
    let both = init::POSIX_LOCKS | init::FLOCK_LOCKS;
    assert_eq!(l.client.init_flags() & both, both);
}

#[test]
fn locks_that_make_no_sense_are_refused() {
    let (_daemon, mut l) = locker();
    assert_eq!(l.set(1, 77, 0, 9), libc::EINVAL);
    assert_eq!(l.set(1, WRITE, 10, 9), libc::EINVAL);
    assert_eq!(l.set(1, WRITE, u64::MAX, u64::MAX), libc::EINVAL);
    assert_eq!(l.set(1, WRITE, 5, u64::MAX), 0, "an end beyond any file is the end");
    assert_eq!(l.get(2, READ).end, i64::MAX as u64);
    l.fh ^= 1 << 40;
    assert_eq!(l.set(1, WRITE, 0, 9), libc::EBADF);
    l.fh ^= 1 << 40;
    l.node = ROOT;
    assert_eq!(l.set(1, WRITE, 0, 9), libc::EBADF);
}

#[test]
fn a_readonly_share_has_shared_locks_only() {
    let daemon = Daemon::start_on_tmpfs(&["--readonly", "--locks", "host"]);
    daemon.put(FILE, [7; 16]);
    let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    let node = client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
    let mut l = Locker { client, guest, node, fh };
    assert_eq!(l.set(1, READ, 0, 9), 0);
    assert_eq!(l.set(1, WRITE, 0, 9), libc::EBADF);
}

/// F_OFD_SETLK in the guest: its owner is the open file, for which no FLUSH comes.
#[test]
fn record_locks_end_with_the_release_of_the_open_file_they_were_taken_through() {
    let (_daemon, mut l) = locker();
    let fh = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    let request = LkIn { fh, ..l.request(77, WRITE, 0, 9) };
    assert_eq!(errno_of(l.client.setlk(l.node, &request, false)), 0);
    let release = ReleaseIn { fh, ..ReleaseIn::default() };
    assert_eq!(l.client.raw(opcode::RELEASE, l.node, release.as_bytes(), 0).expect("RELEASE").header.error, 0);
    assert_eq!(l.set(1, WRITE, 0, 9), 0, "nobody has the file open that the lock was taken through");
}

/// An NFS client outside keeps (node id, generation) over a restart of the guest and of its daemon.
#[test]
fn an_id_of_an_earlier_daemon_is_no_other_file() {
    let daemon = Daemon::start_on_tmpfs(&[]);
    daemon.put(FILE, b"one");
    daemon.put("other", b"two");
    let (_process, _scratch, socket) = second(&daemon);
    let id = |entry: gatherfs_support::guest::fuse::EntryOut| (entry.nodeid, entry.generation);
    let look_up = |socket: &std::path::Path, name: &str| {
        let guest = Guest::connect(socket, &GuestOptions::default()).expect("a connection");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.init().expect("INIT");
        let by_name = client.lookup(ROOT, name).expect("LOOKUP");
        let by_id = client.lookup(by_name.nodeid, ".").expect("LOOKUP of .");
        assert_eq!(id(by_name), id(by_id));
        (id(by_id), by_id.attr.ino)
    };
    let (before, after) = (look_up(daemon.socket(), FILE), look_up(&socket, "other"));
    assert_ne!(before.1, after.1);
    assert_ne!(before.0, after.0, "one (node id, generation), two files");
}
