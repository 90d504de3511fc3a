//! Queues that stop and start again: a pause of the guest, its reboot, a reset of the device.

use std::fs;

use gatherfs_support::daemon::{Daemon, eventually};
use gatherfs_support::guest::client::Call;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::{ROOT, opcode};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::{FILE, assert_serves, content, mounted, open};

/// Whether the daemon holds an open descriptor of the file in its share, other than O_PATH.
pub fn has_open(daemon: &Daemon, name: &str) -> bool {
    let path = daemon.share().join(name);
    let proc = format!("/proc/{}", daemon.serving());
    let descriptors = fs::read_dir(format!("{proc}/fd")).expect("the process is there");
    descriptors.filter_map(Result::ok).any(|fd| {
        let info = fs::read_to_string(format!("{proc}/fdinfo/{}", fd.file_name().display())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0");
        let is_path = i32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & libc::O_PATH != 0);
        !is_path && fs::read_link(fd.path()).is_ok_and(|target| target == path)
    })
}

#[test]
fn a_stopped_queue_goes_on_where_it_was_and_keeps_the_session() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let (node, fh) = open(&mut client, FILE, libc::O_RDONLY);
    for queue in [FIRST_REQUEST, HIPRIO, FIRST_REQUEST] {
        let base = guest.stop_queue(queue).expect("GET_VRING_BASE");
        let ring = guest.lock(queue);
        assert_eq!((base, ring.used_idx()), (ring.avail_idx(), ring.avail_idx()), "all that was offered is answered");
        drop(ring);
        guest.restart_queue(queue, base).expect("the queue starts");
        assert_eq!(client.read(node, fh, 0, 16_384), Ok(content()), "the handle is still open");
    }
    assert_serves(&mut client);
}

#[test]
fn what_is_offered_to_a_stopped_queue_is_served_when_it_starts() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
    let waiting: Vec<_> = (0..10).map(|_| client.begin(&Call { room: 80, ..Call::new(opcode::STATFS, ROOT, &[]) })).collect();
    assert_serves(&mut client.on_queue(HIPRIO));
    assert!(waiting.iter().all(|pending| !client.is_answered(pending)), "a stopped queue was served");
    guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    for pending in waiting {
        assert_eq!(client.finish(pending).expect("STATFS").header.error, 0);
    }
}

#[test]
fn what_is_answered_before_the_call_is_set_is_signalled_with_it() {
    let options = GuestOptions { event_idx: false, ..GuestOptions::default() };
    let (_daemon, guest, mut client) = mounted(&[], &options);
    let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
    let waiting = client.begin(&Call { room: 80, ..Call::new(opcode::STATFS, ROOT, &[]) });
    let _ = guest.lock(FIRST_REQUEST).call_fd().read();
    guest.restart_queue_without_call(FIRST_REQUEST, base).expect("the queue starts");
    assert!(eventually(|| guest.lock(FIRST_REQUEST).used_idx() == base.wrapping_add(1)), "the request is answered");
    assert!(guest.lock(FIRST_REQUEST).call_fd().read().is_err(), "nobody could tell the guest");
    guest.set_call(FIRST_REQUEST).expect("SET_VRING_CALL");
    assert!(eventually(|| guest.lock(FIRST_REQUEST).call_fd().read().is_ok()), "the guest is told");
    assert_eq!(client.finish(waiting).expect("STATFS").header.error, 0);
}

#[test]
fn stopping_a_busy_queue_waits_for_what_it_has_taken() {
    let (daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    let waiting: Vec<_> = (0..100)
        .map(|i| {
            let name = format!("dir {i}\0");
            let args: &[&[u8]] = &[&[0xed, 1, 0, 0, 0, 0, 0, 0], name.as_bytes()];
            client.begin(&Call { room: 128, ..Call::new(opcode::MKDIR, ROOT, args) })
        })
        .collect();
    let base = guest.stop_queue(FIRST_REQUEST).expect("GET_VRING_BASE");
    let made = fs::read_dir(daemon.share()).expect("the share").count() - 1;
    assert_eq!(guest.lock(FIRST_REQUEST).used_idx(), base, "what was taken is answered");
    assert_eq!(u16::try_from(made).ok(), base.checked_sub(1), "and nothing else was done, INIT apart");
    guest.restart_queue(FIRST_REQUEST, base).expect("the queue starts");
    for pending in waiting {
        assert_eq!(client.finish(pending).expect("MKDIR").header.error, 0, "each is done once");
    }
}

#[test]
fn a_rebooted_guest_mounts_anew_and_what_it_had_open_is_closed() {
    for reset in [false, true] {
        let (daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
        let (node, fh) = open(&mut client, FILE, libc::O_RDONLY);
        assert!(has_open(&daemon, FILE));
        for _ in 0..3 {
            guest.reboot(reset).expect("a reboot");
            client.init().expect("INIT after a reboot");
            assert!(!has_open(&daemon, FILE), "reset {reset}");
            assert_eq!(client.read(node, fh, 0, 64).err(), Some(libc::EBADF.into()), "reset {reset}");
            assert_eq!(client.getattr(node, None).err(), Some(libc::ESTALE.into()), "reset {reset}");
            assert_serves(&mut client);
            // Nor when the new session has as many files.
            let (_, again) = open(&mut client, FILE, libc::O_RDONLY);
            assert_eq!(client.read(node, fh, 0, 64).err(), Some(libc::EBADF.into()), "reset {reset}");
            assert_eq!(client.getattr(node, None).err(), Some(libc::ESTALE.into()), "reset {reset}");
            client.release(node, again).expect("RELEASE");
        }
    }
}

#[test]
fn a_guest_that_held_every_descriptor_mounts_anew() {
    let (daemon, guest, mut client) = mounted(&["--rlimit-nofile", "256", "--num-request-queues", "1"], &GuestOptions::default());
    for _ in 0..3 {
        let node = client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
        let opened = (0..256).map_while(|_| client.open(node, libc::O_RDONLY).ok()).count();
        assert!((100..256).contains(&opened), "{opened} files until ENFILE");
        guest.reboot(true).expect("a reboot");
        client.init().expect("INIT after a reboot");
        assert_serves(&mut client);
    }
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[test]
fn a_guest_may_mount_as_often_and_as_fast_as_it_likes() {
    let (_daemon, _guest, mut client) = mounted(&[], &GuestOptions::default());
    for round in 0..500 {
        client.destroy().expect("DESTROY");
        assert!(client.init().is_ok(), "INIT {round}");
    }
    assert_serves(&mut client);
}

#[test]
fn a_reset_device_closes_files_at_once_and_has_no_session() {
    let (daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    open(&mut client, FILE, libc::O_RDONLY);
    guest.reboot(true).expect("a reboot");
    assert!(!has_open(&daemon, FILE));
    assert_eq!(client.statfs(ROOT).err(), Some(libc::EIO.into()));
    client.init().expect("INIT");
    assert_serves(&mut client);
}

#[test]
fn a_device_is_reset_while_its_queues_run() {
    // vhost-user: RESET_DEVICE disables all rings by itself; nothing says that they were stopped before.
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    guest.session().reset_device().expect("RESET_DEVICE");
    guest.session().set_features(guest.info().accepted).expect("SET_FEATURES");
    for queue in [HIPRIO, FIRST_REQUEST] {
        guest.lock(queue).reset();
        guest.restart_queue(queue, 0).expect("the queue starts");
    }
    client.init().expect("INIT after the reset");
    assert_serves(&mut client);
    assert_serves(&mut client.on_queue(HIPRIO));
}

#[test]
fn a_guest_that_destroys_its_session_before_a_reboot_mounts_anew() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    for _ in 0..5 {
        assert_eq!(client.destroy(), Ok(()));
        guest.reboot(true).expect("a reboot");
        client.init().expect("INIT");
        assert_serves(&mut client);
    }
}
