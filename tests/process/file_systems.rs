//! Shares on file systems that lack something: it is said once at start, and the guest gets the right errno.

use std::fs;

use super::daemon::{Daemon, Scratch};
use super::guest::fuse::{ROOT, init};
use super::mount;
use super::private_mounts::{self, Mount};

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
        daemon.wait_for_line("a monitor connected");
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
    let (daemon, mounted) = share_of("mqueue", &[]);
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
