//! How the daemon opens a file for its locks: for writing only where the lock needs it.

use std::fs::{create_dir, read_dir, read_link, read_to_string, write};
use std::path::Path;

use gatherfs_support::daemon;
use gatherfs_support::guest::fuse::ReleaseIn;
use gatherfs_support::private_mounts::{Mount, enter};

use super::*;

/// The access modes with which the daemon has `path` open, sorted; O_PATH descriptors left out.
fn modes(daemon: &Daemon, path: &Path) -> Vec<i32> {
    let process = Path::new("/proc").join(daemon.serving().to_string());
    let descriptors = read_dir(process.join("fd")).expect("the process is there").flatten();
    let of_file = descriptors.filter(|fd| read_link(fd.path()).is_ok_and(|target| target == path));
    let flags = of_file.filter_map(|fd| {
        let info = read_to_string(process.join("fdinfo").join(fd.file_name())).ok()?;
        i32::from_str_radix(info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim(), 8).ok()
    });
    let mut modes: Vec<i32> = flags.filter(|flags| flags & libc::O_PATH == 0).map(|flags| flags & libc::O_ACCMODE).collect();
    modes.sort_unstable();
    modes
}

/// A guest that has the file open for reading only.
fn reader() -> (Daemon, Locker) {
    let daemon = Daemon::start_on_tmpfs(&["--locks", "host"]);
    daemon.put(FILE, [7; 4096]);
    let locker = Locker::open(daemon.socket(), &GuestOptions::default(), libc::O_RDONLY);
    (daemon, locker)
}

const RO: i32 = libc::O_RDONLY;
const RW: i32 = libc::O_RDWR;

#[test]
fn a_read_lock_through_a_read_only_file_opens_it_for_reading_only() {
    let (daemon, mut l) = reader();
    let path = daemon.share().join(FILE);
    assert_eq!(l.set(1, READ, 0, 9), 0);
    assert_eq!(modes(&daemon, &path), [RO, RO]);
    assert_eq!(l.set(1, WRITE, 0, 9), libc::EBADF, "man fcntl(2)");
    assert_eq!(modes(&daemon, &path), [RO, RO]);
    assert_eq!(l.get(2, WRITE).kind, READ as u32, "the read lock is still held");
    // flock(2) needs no right to write here.
    assert_eq!(l.flock(1, WRITE), 0);
    assert_eq!(modes(&daemon, &path), [RO; 3]);
    assert_eq!(host_flock(&on_host(&daemon), libc::LOCK_SH), libc::EAGAIN);
}

#[test]
fn read_locks_are_held_on_while_their_owner_gets_a_write_lock() {
    let (daemon, mut l) = reader();
    let path = daemon.share().join(FILE);
    let host = on_host(&daemon);
    assert_eq!((l.set(1, READ, 0, 9), l.set(1, READ, 20, 29)), (0, 0));
    let writer = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    let through_writer = |l: &mut Locker, kind, start, end| {
        let request = LkIn { fh: writer, ..l.request(1, kind, start, end) };
        errno_of(l.client.setlk(l.node, &request, false))
    };
    assert_eq!(modes(&daemon, &path), [RO, RO, RW], "two of the guest, one for its locks");
    assert_eq!(through_writer(&mut l, WRITE, 40, 49), 0);
    assert_eq!(modes(&daemon, &path), [RO, RW, RW]);
    // All three are held, by one owner.
    for (byte, kind) in [(0u32, READ), (9, READ), (20, READ), (29, READ), (40, WRITE)] {
        assert_eq!(l.set(2, READ, byte.into(), byte.into()) == 0, kind == READ, "byte {byte}");
        assert_eq!(l.set(2, NONE, 0, 99), 0);
        assert_eq!(host_set_range(&host, WRITE, byte.into(), byte.into()), libc::EAGAIN, "byte {byte}");
    }
    assert_eq!(host_set_range(&host, WRITE, 10, 19), 0, "and no other");
    // A read lock becomes a write lock in place, where nobody else holds one.
    assert_eq!(host_set_range(&host, READ, 0, 0), 0);
    assert_eq!(through_writer(&mut l, WRITE, 0, 9), libc::EAGAIN);
    assert_eq!(host_set_range(&host, WRITE, 5, 5), libc::EAGAIN, "what was held is held on");
    assert_eq!(host_set_range(&host, NONE, 0, 99), 0);
    assert_eq!(through_writer(&mut l, WRITE, 0, 9), 0);
    assert_eq!(through_writer(&mut l, NONE, 0, 99), 0);
    assert_eq!(host_set_range(&host, WRITE, 0, 99), 0, "one unlock took all of them off");
    assert_eq!(modes(&daemon, &path), [RO, RW], "the guest's own");
}

/// A host process's try of a record lock of bytes `start` to `end`.
fn host_set_range(file: &File, kind: i32, start: i64, end: i64) -> i32 {
    let len = end - start + 1;
    let lock = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 };
    // SAFETY: the kernel reads the structure.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().expect("an errno")
}

#[test]
fn a_wait_for_a_write_lock_keeps_the_read_locks_of_its_owner() {
    let (daemon, mut l) = reader();
    let host = on_host(&daemon);
    assert_eq!((l.set(1, READ, 0, 9), l.set(2, READ, 0, 9)), (0, 0));
    let fh = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    let request = LkIn { fh, ..l.request(1, WRITE, 0, 9) };
    let waiting = l.client.begin(&Call::new(opcode::SETLKW, l.node, &[request.as_bytes()]));
    assert!(daemon::eventually(|| daemon.metrics().get("parked") == 1));
    assert_eq!(host_set_range(&host, WRITE, 0, 9), libc::EAGAIN);
    assert_eq!(l.set(2, NONE, 0, 9), 0);
    assert_eq!(l.end_of(waiting), 0);
    assert_eq!(host_set_range(&host, READ, 0, 9), libc::EAGAIN);
    let release = ReleaseIn { fh, ..ReleaseIn::default() };
    assert_eq!(l.client.raw(opcode::RELEASE, l.node, release.as_bytes(), 0).expect("RELEASE").header.error, 0);
    assert_eq!(host_set_range(&host, WRITE, 0, 9), 0);
}

#[test]
fn a_lock_through_a_read_only_file_copies_nothing_up_on_an_overlay() {
    if !enter() {
        return;
    }
    let scratch = Scratch::on_tmpfs();
    let layers = scratch.path().to_owned();
    for name in ["lower", "upper", "work", "share"] {
        create_dir(layers.join(name)).expect("a directory");
    }
    write(layers.join("lower").join(FILE), [7; 4096]).expect("a file");
    let Some(_mount) = Mount::overlay(&layers, &layers.join("share"), "") else { return };
    let copied = layers.join("upper").join(FILE);
    let daemon = Daemon::start_in(scratch, &["--locks", "host"]);
    let mut l = Locker::open(daemon.socket(), &GuestOptions::default(), libc::O_RDONLY);
    assert_eq!((l.set(1, READ, 0, 9), l.flock(1, WRITE)), (0, 0));
    assert!(!copied.exists(), "a lock is no write");
    let fh = l.client.open(l.node, libc::O_RDWR).expect("OPEN").fh;
    let request = LkIn { fh, ..l.request(1, WRITE, 0, 9) };
    assert_eq!(errno_of(l.client.setlk(l.node, &request, false)), 0);
    assert!(copied.exists());
}

/// NFS makes an exclusive flock a record lock, for which the file must be open for writing. ramfs stands for it: what the
/// daemon does not know it treats so.
#[test]
fn an_exclusive_flock_below_the_share_opens_for_writing_where_the_file_system_may_need_it() {
    if !enter() {
        return;
    }
    let scratch = Scratch::on_tmpfs();
    let below = scratch.join("share").join("below");
    create_dir(scratch.join("share")).expect("a directory");
    let _mount = Mount::new("ramfs", &below);
    let path = below.join(FILE);
    write(&path, [7; 16]).expect("a file");
    let daemon = Daemon::start_in(scratch, &["--locks", "host"]);
    daemon.put(FILE, [7; 16]);
    let mut l = Locker::open(daemon.socket(), &GuestOptions::default(), libc::O_RDONLY);
    assert_eq!(l.flock(1, WRITE), 0);
    assert_eq!(modes(&daemon, &daemon.share().join(FILE)), [RO, RO], "a local file system");

    let dir = l.client.lookup(ROOT, "below").expect("LOOKUP").nodeid;
    l.node = l.client.lookup(dir, FILE).expect("LOOKUP").nodeid;
    l.fh = l.client.open(l.node, libc::O_RDONLY).expect("OPEN").fh;
    assert_eq!(l.flock(2, READ), 0);
    assert_eq!(modes(&daemon, &path), [RO, RO], "a shared one needs no right to write");
    assert_eq!(l.flock(2, WRITE), 0);
    assert_eq!(modes(&daemon, &path), [RO, RW]);
    assert_eq!(host_flock(&File::open(&path).expect("the file"), libc::LOCK_SH), libc::EAGAIN);
}
