//! Shares on file systems that lack something: it is said once at start, and the guest gets the right errno.

use std::fs;

use gatherfs_support::daemon::{Daemon, Scratch};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::{ROOT, init};
use gatherfs_support::places::is_served_by_handles;
use gatherfs_support::private_mounts::{self, Mount};

use super::bindfs::Fuse;
use super::mount;

const SAYS: &str = "the file system of";

/// A daemon that shares a fresh file system of type `kind`.
fn share_of(kind: &str, options: &[&str]) -> (Daemon, Mount) {
    let scratch = Scratch::new();
    let mounted = Mount::new(kind, &scratch.join("share"));
    (Daemon::start_in(scratch, options), mounted)
}

#[test]
fn what_the_file_system_lacks_is_said_once_at_start() {
    if !private_mounts::enter() {
        return;
    }
    let all = ["no file handles", "no O_TMPFILE", "no birth times"];
    for (kind, options, lacks) in [
        ("mqueue", &[][..], &all[..]),
        // Not asked for where nothing is made.
        ("mqueue", &["--readonly"], &[all[0], all[2]]),
        ("ramfs", &[], &[all[0], all[2]]),
        ("tmpfs", &[], &[]),
    ] {
        let (daemon, mounted) = share_of(kind, options);
        let (_guest, _client) = mount(daemon.socket());
        // Said before a guest connects.
        daemon.wait_for_line("a VMM connected");
        let log = daemon.log();
        let said: Vec<&str> = log.lines().filter(|l| l.contains(SAYS)).collect();
        assert_eq!(said.len(), usize::from(!lacks.is_empty()), "{kind}: {log}");
        for lack in all {
            assert_eq!(said.iter().any(|l| l.contains(lack)), lacks.contains(&lack), "{kind}: {lack}: {said:?}");
        }
        assert_eq!(fs::read_dir(daemon.share()).expect("the share").count(), 0, "no trace is left");
        drop(mounted);
    }
}

#[test]
fn a_file_system_without_handles_birth_times_or_tmpfile_is_served_without_them() {
    if !private_mounts::enter() {
        return;
    }
    let (daemon, mounted) = share_of("mqueue", &["--birth-times"]);
    let (guest, mut client) = mount(daemon.socket());
    assert_eq!(client.init_flags() & init::EXPORT_SUPPORT, 0, "no handle finds a forgotten file");
    assert_eq!(client.tmpfile(ROOT, 0o600, libc::O_RDWR).err(), Some(libc::EOPNOTSUPP.into()));
    assert!(client.statx(ROOT, None, 0xfff).is_ok_and(|s| s.stat.mask & 0x800 == 0), "no birth time");
    drop((guest, client, mounted, daemon));

    let (daemon, mounted) = share_of("ramfs", &[]);
    let (_guest, mut client) = mount(daemon.socket());
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let node = made.entry.nodeid;
    assert_eq!(client.write(node, made.open.fh, 0, b"contents"), Ok(8));
    assert_eq!(client.lookup(ROOT, "file").map(|e| e.nodeid), Ok(node));
    client.unlink(ROOT, "file").expect("UNLINK");
    assert_eq!(client.read(node, made.open.fh, 0, 100).as_deref(), Ok(&b"contents"[..]));
    assert_ne!(client.create(ROOT, "file", 0o644, libc::O_RDWR).map(|m| m.entry.nodeid), Ok(node));
    let nameless = client.tmpfile(ROOT, 0o600, libc::O_RDWR).expect("TMPFILE");
    assert_eq!(client.link(nameless.entry.nodeid, ROOT, "named").map(|e| e.nodeid), Ok(nameless.entry.nodeid));
    drop(mounted);
}

/// Panics unless files that the guest looked up in `directory` are found after the host's cache let them go.
fn assert_outlives_the_cache(client: &mut Client, directory: u64, fuse: &Fuse) {
    let below = client.mkdir(directory, "below", 0o755).expect("MKDIR").nodeid;
    let made = client.create(below, "file", 0o644, libc::O_RDWR).expect("CREATE");
    assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"content"), Ok(7));
    client.release(made.entry.nodeid, made.open.fh).expect("RELEASE");
    // More than are kept open because they were used recently.
    let others: Vec<u64> = (0..200).map(|i| client.mkdir(below, &format!("dir{i}"), 0o755).expect("MKDIR").nodeid).collect();
    for node in others {
        client.getattr(node, None).expect("GETATTR");
    }
    fuse.drop_caches();
    assert_eq!(client.getattr(made.entry.nodeid, None).map(|a| a.attr.size), Ok(7));
    let fh = client.open(made.entry.nodeid, libc::O_RDONLY).expect("OPEN").fh;
    assert_eq!(client.read(made.entry.nodeid, fh, 0, 100).as_deref(), Ok(&b"content"[..]));
    assert_eq!(client.lookup(below, "file").map(|e| e.nodeid), Ok(made.entry.nodeid));
}

#[test]
fn a_share_on_a_fuse_file_system_keeps_descriptors_and_says_so_once() {
    if !private_mounts::enter() {
        return;
    }
    let scratch = Scratch::new();
    let Some(fuse) = Fuse::mount(&scratch.join("behind"), &scratch.join("share")) else { return };
    let daemon = Daemon::start_in(scratch, &["--rlimit-nofile", "1024"]);
    let (guest, mut client) = mount(daemon.socket());
    assert_outlives_the_cache(&mut client, ROOT, &fuse);
    assert_eq!(client.init_flags() & init::EXPORT_SUPPORT, 0, "no handle finds a forgotten file");
    assert!(daemon.wait_for_line("sharing ").contains("inodes as descriptors"));
    assert_eq!(daemon.log().matches("FUSE file system").count(), 1, "{}", daemon.log());
    drop((guest, client));
}

#[test]
fn below_a_share_each_mount_decides_whether_its_inodes_are_kept_as_handles() {
    if !private_mounts::enter() {
        return;
    }
    // A local file system with a FUSE one below it, and the other way round.
    let scratch = Scratch::with_file_handles();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    if !is_served_by_handles(scratch.path()) {
        println!("skipped: there are no file handles here");
        return;
    }
    let Some(fuse) = Fuse::mount(&scratch.join("behind"), &scratch.join("share/fuse")) else { return };
    let daemon = Daemon::start_in(scratch, &["--rlimit-nofile", "1024"]);
    let (guest, mut client) = mount(daemon.socket());
    let below = client.lookup(ROOT, "fuse").expect("LOOKUP").nodeid;
    assert_outlives_the_cache(&mut client, below, &fuse);
    assert_eq!(daemon.log().matches("FUSE file system").count(), 1, "{}", daemon.log());
    assert_ne!(client.init_flags() & init::EXPORT_SUPPORT, 0, "the share itself has handles");
    assert_eq!(kept_for_inodes(&daemon, &mut client, ROOT), 0, "the share's own inodes are handles");
    drop((guest, client, daemon, fuse));

    let scratch = Scratch::new();
    let Some(fuse) = Fuse::mount(&scratch.join("behind"), &scratch.join("share")) else { return };
    let local = Mount::new("tmpfs", &scratch.join("share/local"));
    let daemon = Daemon::start_in(scratch, &["--rlimit-nofile", "1024"]);
    let (guest, mut client) = mount(daemon.socket());
    let below = client.lookup(ROOT, "local").expect("LOOKUP").nodeid;
    assert_eq!(kept_for_inodes(&daemon, &mut client, below), 0, "inodes of the local file system are handles");
    assert_eq!(kept_for_inodes(&daemon, &mut client, ROOT), 100);
    drop((guest, client, daemon, local, fuse));
}

/// How many descriptors the daemon keeps for 100 inodes in `directory`.
fn kept_for_inodes(daemon: &Daemon, client: &mut Client, directory: u64) -> usize {
    let open = || fs::read_dir(format!("/proc/{}/fd", daemon.keeper())).expect("the process is there").count();
    let mknod = |client: &mut Client, name: &str| client.mknod(directory, name, libc::S_IFREG | 0o644, 0).expect("MKNOD");
    // The first one may have the mount opened.
    mknod(client, "first");
    // What the keeper and the worker open at their start is open: both have answered a signal.
    (0..3).for_each(|_| _ = daemon.metrics());
    let before = open();
    for i in 0..100 {
        mknod(client, &format!("file{i}"));
    }
    open() - before
}
