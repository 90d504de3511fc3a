//! A host that stops answering while the guest has files open there: it keeps no queue, no reset and no later guest waiting,
//! and what it brings late changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use gatherfs_support::daemon::{Daemon, Metrics, Scratch, eventually};
use gatherfs_support::guest::client::{Call, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest};
use gatherfs_support::guest::fuse::{self, FileLock, LkIn, OpenIn, ROOT, SetattrIn, flag, opcode};
use gatherfs_support::private_mounts;
use zerocopy::IntoBytes;

use super::bindfs::Fuse;
use super::{assert_serves, mount};

/// A local share with a FUSE file system below it, in which "data" is a file of ten bytes, and a guest that has mounted it.
/// `None`, with the reason printed, where there can be none.
fn host(options: &[&str]) -> Option<(Daemon, Fuse, (Arc<Guest>, Client))> {
    if !private_mounts::enter() {
        return None;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    let fuse = Fuse::mount(&scratch.join("behind"), &scratch.join("share/fuse"))?;
    fs::write(scratch.join("behind/data"), "0123456789").expect("a file");
    fs::set_permissions(scratch.join("behind/data"), fs::Permissions::from_mode(0o644)).expect("its mode");
    fs::write(scratch.join("behind/other"), "").expect("a file");
    let daemon = Daemon::start_in(scratch, &[&["--stop-timeout", "0.5", "--keep-listening"], options].concat());
    let guest = mount(daemon.socket());
    Some((daemon, fuse, guest))
}

/// Descriptors of the daemon that lead to a file below the FUSE file system.
fn kept(daemon: &Daemon) -> Vec<String> {
    let of = |fd: fs::DirEntry| fs::read_link(fd.path()).ok().map(|target| target.display().to_string());
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.keeper())).expect("the process is there");
    open.filter_map(Result::ok).filter_map(of).filter(|target| target.contains("/fuse/")).collect()
}

/// Has the guest open "data" and write to it; a close(2) of it waits for the FUSE server then.
fn write_data(client: &mut Client) -> (u64, u64) {
    let below = client.lookup(ROOT, "fuse").expect("LOOKUP").nodeid;
    let data = client.lookup(below, "data").expect("LOOKUP").nodeid;
    let fh = client.open(data, libc::O_RDWR).expect("OPEN").fh;
    assert_eq!(client.write(data, fh, 0, b"x"), Ok(1));
    (data, fh)
}

#[test]
fn a_reset_does_not_wait_for_files_that_the_host_does_not_close() {
    let Some((daemon, fuse, (guest, mut client))) = host(&[]) else { return };
    let (data, fh) = write_data(&mut client);
    fuse.pause();
    guest.reboot(true).expect("RESET_DEVICE is answered");
    daemon.wait_for_line("has not closed all files");
    client.init().expect("INIT");
    assert_serves(&mut client, "local");
    assert_eq!(client.write(data, fh, 0, b"y").err(), Some(libc::EBADF.into()), "an open file of the last session");
    assert!(!kept(&daemon).is_empty(), "the host has not closed it");
    fuse.go_on();
    assert!(eventually(|| kept(&daemon).is_empty()), "{:?}", kept(&daemon));
}

#[test]
fn the_next_guest_does_not_wait_for_files_that_the_host_does_not_close() {
    let Some((daemon, fuse, (guest, mut client))) = host(&[]) else { return };
    write_data(&mut client);
    fuse.pause();
    drop((guest, client));
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "local");
    daemon.wait_for_line("has not closed all files");
    fuse.go_on();
    assert!(eventually(|| kept(&daemon).is_empty()), "{:?}", kept(&daemon));
}

#[test]
fn what_the_host_finishes_late_is_undone_and_goes_no_further() {
    let Some((daemon, fuse, (guest, mut client))) = host(&[]) else { return };
    let below = client.lookup(ROOT, "fuse").expect("LOOKUP").nodeid;
    let data = client.lookup(below, "data").expect("LOOKUP").nodeid;
    let before = kept(&daemon);
    fuse.pause();
    let open = OpenIn { flags: libc::O_RDONLY.cast_unsigned(), ..OpenIn::default() };
    let set = SetattrIn { valid: flag::FATTR_SIZE | flag::FATTR_MODE, size: 5, mode: libc::S_IFREG | 0o600, ..SetattrIn::default() };
    let late = [
        client.begin(&Call { room: 256, ..Call::new(opcode::LOOKUP, below, &[&fuse::name("other")]) }),
        client.begin(&Call { room: 256, ..Call::new(opcode::OPEN, data, &[open.as_bytes()]) }),
        client.begin(&Call { room: 256, ..Call::new(opcode::SETATTR, data, &[set.as_bytes()]) }),
    ];
    let is_served =
        |metrics: Metrics| metrics.requests("LOOKUP") == 3 && ["OPEN", "SETATTR"].iter().all(|opcode| metrics.requests(opcode) == 1);
    assert!(eventually(|| is_served(daemon.metrics())), "{}", daemon.metrics().json());
    let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE is answered");
    for pending in late {
        assert_eq!(client.finish(pending).expect("an answer").header.error, -libc::EIO);
    }
    assert_eq!(daemon.metrics().get("withdrawn"), 3);
    guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    assert_serves(&mut client, "local");
    fuse.go_on();
    assert!(eventually(|| daemon.metrics().get("withdrawn_finished") == 3), "{}", daemon.log());
    assert_eq!(kept(&daemon), before, "neither an open file nor a node is left");
    // The host was in the middle of the new length; what follows it in the same request was never begun.
    let mode = fs::metadata(daemon.share().join("../behind/data")).expect("the file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
    assert_eq!(client.lookup(below, "other").map(|entry| entry.attr.size), Ok(0));
}

#[test]
fn a_lock_that_the_host_grants_after_the_guest_forgot_the_file_is_not_kept() {
    let Some((daemon, fuse, (_guest, mut client))) = host(&["--locks", "host"]) else { return };
    let (data, fh) = write_data(&mut client);
    let lock = LkIn {
        fh,
        owner: 1,
        lk: FileLock { end: 9, kind: libc::F_WRLCK.cast_unsigned(), pid: 1, ..FileLock::default() },
        ..LkIn::default()
    };
    fuse.pause();
    // The daemon opens the file once more for the lock.
    let pending = client.begin(&Call::new(opcode::SETLK, data, &[lock.as_bytes()]));
    assert!(eventually(|| daemon.metrics().requests("SETLK") == 1));
    client.forget(data, 1).expect("FORGET");
    fuse.go_on();
    assert_eq!(client.finish(pending).expect("an answer").header.error, -libc::ESTALE);
    assert_eq!(kept(&daemon).iter().filter(|path| path.ends_with("data")).count(), 1, "what the guest has open: {:?}", kept(&daemon));
}
