//! What is opened is what was checked: no object of the host is opened for reading or writing unless its own type was
//! seen, through one descriptor, to be a regular file or a directory. Guests and host processes replace files by
//! devices, FIFOs, sockets and symbolic links while others look the same names up and open them.
//!
//! A guest sees what it has opened by GETATTR of the handle.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gatherfs_support::guest::client::{CallError, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, GuestOptions};
use gatherfs_support::guest::fuse::{ROOT, init};
use gatherfs_support::private_mounts::{self, Mount};
use gatherfs_support::share::{Scratch, Setup, Share};
use rustix::fs::{CWD, FileType, Mode, makedev};

/// Queues that a racing guest uses.
const QUEUES: usize = 8;
/// How long it races.
const RACE: Duration = Duration::from_secs(10);
/// The name that a queue replaces, and the one that a host process does.
const NAME: &str = "name";
const HOST_NAME: &str = "host";
/// What takes a file's place.
const SPECIAL: [u32; 4] = [libc::S_IFCHR, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFLNK];

/// A share whose root is a file system of type `kind`. `None`, with the reason printed, where it cannot be mounted.
fn fresh(kind: &str, guest: GuestOptions, before: Vec<String>) -> Option<(Share, Mount)> {
    let directory = Scratch::on_disk();
    let mount = match kind {
        "tmpfs" => Mount::new(kind, directory.path()),
        // XFS wants 300 MB; the image is sparse.
        _ => Mount::image(&[&format!("mkfs.{kind}"), "-q"], 320 << 20, directory.path())?,
    };
    let mut share = Share::start_unmounted(Setup { directory, guest, before, ..Setup::default() });
    // A node goes with its last lookup, so that numbers come again soon.
    share.client().init_with(init::LINUX & !init::EXPORT_SUPPORT).expect("INIT succeeds");
    Some((share, mount))
}

/// Makes a special file on the host.
fn make_special(path: &Path, kind: u32) {
    if kind == libc::S_IFLNK {
        return std::os::unix::fs::symlink("/dev/zero", path).expect("a symbolic link");
    }
    // Character device 1, 5 is /dev/zero.
    let device = if kind == libc::S_IFCHR { makedev(1, 5) } else { 0 };
    rustix::fs::mknodat(CWD, path, FileType::from_raw_mode(kind), Mode::from_raw_mode(0o666), device).expect("a special file");
}

/// Opens `node` and tells which type the daemon has opened; closes it again. `None` where it refused.
fn type_opened(client: &mut Client, node: u64) -> Option<u32> {
    // For reading and writing: a FIFO then opens at once, and is seen, also where nobody else has it open.
    let opened = match client.open(node, libc::O_RDWR) {
        Ok(opened) => opened,
        Err(CallError::Errno(_)) => return None,
        Err(e) => panic!("OPEN was not answered: {e:?}"),
    };
    let attr = client.getattr(node, Some(opened.fh)).expect("an open file has attributes").attr;
    client.release(node, opened.fh).expect("RELEASE succeeds");
    Some(attr.mode & libc::S_IFMT)
}

/// A tracer that holds up each `call` before it begins.
fn delaying(call: &str, delay: Duration) -> Vec<String> {
    let inject = format!("inject={call}:delay_enter={}", delay.as_micros());
    ["strace", "-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject].map(str::to_owned).to_vec()
}

fn can_trace() -> bool {
    let traced = std::process::Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).status();
    let can = traced.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: strace cannot be run or may not trace here");
    }
    can
}

/// Looks `name` up while `swap` replaces it on the host between two of the daemon's calls.
fn look_up_during(share: &mut Share, parent: u64, name: &str, delay: Duration, swap: impl FnOnce()) -> Option<u64> {
    let mut client = share.client().on_queue(FIRST_REQUEST);
    let name = name.to_owned();
    let looker = std::thread::spawn(move || client.lookup(parent, &name));
    std::thread::sleep(delay / 2);
    swap();
    looker.join().expect("the looker ends").ok().map(|entry| entry.nodeid)
}

#[test]
fn a_name_that_changes_hands_within_a_lookup_opens_nothing_special() {
    const DELAY: Duration = Duration::from_millis(400);
    if !private_mounts::enter() || !can_trace() {
        return;
    }
    let Some((mut share, _mount)) = fresh("ext4", GuestOptions::default(), delaying("name_to_handle_at", DELAY)) else { return };
    for kind in SPECIAL {
        let path = share.path("name");
        std::fs::write(&path, b"regular").unwrap();
        let before = std::fs::metadata(&path).unwrap().ino();
        let node = look_up_during(&mut share, ROOT, "name", DELAY, || {
            std::fs::remove_file(&path).unwrap();
            make_special(&path, kind);
        });
        let after = std::fs::symlink_metadata(&path).unwrap().ino();
        assert_eq!(after, before, "the number of the removed file is used again");
        if let Some(node) = node {
            // On a busy host the names may have been swapped too early or too late: then it is the regular file.
            let opened = type_opened(share.client(), node);
            assert!(opened.is_none_or(|opened| opened == libc::S_IFREG), "type {kind:#o} was opened");
            share.client().forget(node, 1).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_first_file_of_a_submount_is_opened_by_its_own_type() {
    const DELAY: Duration = Duration::from_millis(400);
    if !private_mounts::enter() || !can_trace() {
        return;
    }
    for kind in SPECIAL {
        // O_PATH descriptors by name come from openat2.
        let mut share = Share::start(Setup { before: delaying("openat2", DELAY), ..Setup::default() });
        std::fs::write(share.path("name"), b"").unwrap();
        let outside = Scratch::on_tmpfs();
        let there = Mount::new("tmpfs", &outside.path().join("there"));
        let file = outside.path().join("there/file");
        std::fs::write(&file, b"regular").unwrap();
        let special = outside.path().join("there/special");
        make_special(&special, kind);
        // A file that is a mount point, of a file system of which the guest knows no other.
        let bound = Mount::bind(&file, &share.path("name"));
        let over = share.path("name");
        let node = look_up_during(&mut share, ROOT, "name", DELAY, || {
            // The name leads to the special file instead, on the same file system.
            drop(bound);
            if kind == libc::S_IFLNK {
                let _ = std::fs::remove_file(&over);
                std::os::unix::fs::symlink("/dev/zero", &over).unwrap();
            } else {
                std::fs::write(&over, b"").unwrap();
                std::mem::forget(Mount::bind(&special, &over));
            }
        });
        let daemon = share.pid();
        for fd in std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().flatten() {
            let Ok(target) = std::fs::read_link(fd.path()) else { continue };
            let is_ours = [&special, &over].iter().any(|p| target == **p) || target.ends_with("special");
            let info = std::fs::read_to_string(format!("/proc/{daemon}/fdinfo/{}", fd.file_name().display())).unwrap_or_default();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map_or(0, |f| i32::from_str_radix(f.trim(), 8).unwrap());
            assert!(!is_ours || flags & libc::O_PATH != 0, "{} is open with flags {flags:#o}", target.display());
        }
        if let Some(node) = node {
            // On a busy host the names may have been swapped too early or too late: then it is the regular file.
            let opened = type_opened(share.client(), node);
            assert!(opened.is_none_or(|opened| opened == libc::S_IFREG), "type {kind:#o} was opened");
        }
        let _ = rustix::mount::unmount(share.path("name"), rustix::mount::UnmountFlags::DETACH);
        drop(there);
    }
}

/// Replaces a name by turns, as a guest does on its own queue.
fn replace_in_guest(client: &mut Client, name: &str, turn: usize) {
    let _ = client.unlink(ROOT, name);
    let made = match turn % 8 {
        0 | 2 | 4 | 6 => client.mknod(ROOT, name, libc::S_IFREG | 0o666, 0),
        1 => client.mknod(ROOT, name, libc::S_IFCHR | 0o666, 0x105),
        3 => client.mknod(ROOT, name, libc::S_IFIFO | 0o666, 0),
        5 => client.mknod(ROOT, name, libc::S_IFSOCK | 0o666, 0),
        _ => client.symlink(ROOT, name, "/dev/zero"),
    };
    if let Ok(made) = made {
        client.forget(made.nodeid, 1).unwrap();
    }
}

/// The same by a process of the host.
fn replace_on_host(path: &Path, turn: usize) {
    let _ = std::fs::remove_file(path);
    if turn.is_multiple_of(2) { _ = std::fs::write(path, b"regular") } else { make_special(path, SPECIAL[turn / 2 % 4]) }
}

/// What came of a race.
#[derive(Debug, Default)]
struct Race {
    opened: AtomicU64,
    refused: AtomicU64,
    hits: AtomicU64,
}

/// Eight queues of one guest and a thread of the host replace names, look them up, open and truncate them.
fn race(kind: &str) {
    if !private_mounts::enter() {
        return;
    }
    let guest = GuestOptions { request_queues: QUEUES, ..GuestOptions::default() };
    let Some((mut share, _mount)) = fresh(kind, guest, Vec::new()) else { return };
    let (stop, race) = (AtomicBool::new(false), Race::default());
    let clients: Vec<Client> = (0..QUEUES).map(|queue| share.client().on_queue(FIRST_REQUEST + queue)).collect();
    let host_path = share.path(HOST_NAME);
    let began = Instant::now();
    let mut first_hit = None;
    std::thread::scope(|scope| {
        for (number, mut client) in clients.into_iter().enumerate() {
            let (stop, race) = (&stop, &race);
            scope.spawn(move || {
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    if number == 0 {
                        replace_in_guest(&mut client, NAME, turn);
                        continue;
                    }
                    let name = if number == 1 { HOST_NAME } else { NAME };
                    let Ok(entry) = client.lookup(ROOT, name) else { continue };
                    match type_opened(&mut client, entry.nodeid) {
                        Some(libc::S_IFREG) => race.opened.fetch_add(1, Ordering::Relaxed),
                        Some(_) => race.hits.fetch_add(1, Ordering::Relaxed),
                        None => race.refused.fetch_add(1, Ordering::Relaxed),
                    };
                    client.forget(entry.nodeid, 1).unwrap();
                }
            });
        }
        let (stop, race, first_hit) = (&stop, &race, &mut first_hit);
        scope.spawn(move || {
            let mut turn = 0;
            while began.elapsed() < RACE {
                turn += 1;
                replace_on_host(&host_path, turn);
                if first_hit.is_none() && race.hits.load(Ordering::Relaxed) > 0 {
                    *first_hit = Some(began.elapsed());
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{kind}: {QUEUES} queues for {RACE:?}: {} regular files opened, {} refused, {} special files opened, first after {first_hit:?}",
        count(&race.opened),
        count(&race.refused),
        count(&race.hits)
    );
    assert!(count(&race.opened) > 0 && count(&race.refused) > 0, "{race:?}: there was no race");
    assert_eq!(count(&race.hits), 0, "special files were opened");
}

#[test]
fn racing_queues_open_nothing_special_on_ext4() {
    race("ext4");
}

#[test]
fn racing_queues_open_nothing_special_on_tmpfs() {
    race("tmpfs");
}

#[test]
fn racing_queues_open_nothing_special_on_xfs() {
    race("xfs");
}
