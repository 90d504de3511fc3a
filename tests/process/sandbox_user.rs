//! The namespace sandbox of a user who is not root: who is who in its user namespace. The tests start as
//! root and give up being it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use gatherfs_support::daemon::{Process, Scratch, eventually, gatherfsd, is_root, is_there, status_field};
use gatherfs_support::guest::client::{Caller, Client};
use gatherfs_support::guest::fuse::ROOT;
use rustix::process::Signal;

use super::{mount, refused};

/// A user without any rights.
const USER: u32 = 65534;

/// A share that everybody may write to, in a directory of the user's.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    for path in [scratch.path(), &scratch.join("share")] {
        chown(path, Some(USER), Some(USER)).expect("root may");
    }
    fs::set_permissions(scratch.join("share"), PermissionsExt::from_mode(0o777)).expect("a mode");
    scratch
}

fn daemon(scratch: &Scratch, options: &[&str]) -> Command {
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(scratch.join("s")).args(options);
    command.uid(USER).gid(USER);
    command
}

fn start(mut command: Command) -> Process {
    let process = Process::spawn(&mut command);
    process.wait_for_line("sharing ");
    process
}

/// Has `uid` and `gid` make file `name`: its owner as the guest and as the host see it, or the errno.
fn create(client: &mut Client, share: &Path, (uid, gid): (u32, u32), name: &str) -> Result<[(u32, u32); 2], i32> {
    client.caller = Caller { uid, gid, pid: 1 };
    let made = client.create(ROOT, name, 0o644, libc::O_RDWR).map_err(|e| e.errno().expect("an errno"))?;
    assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"content"), Ok(7));
    let host = fs::metadata(share.join(name)).expect("the file");
    Ok([(made.entry.attr.uid, made.entry.attr.gid), (host.uid(), host.gid())])
}

fn namespace_of(pid: u32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace").display().to_string()
}

#[test]
fn a_user_gets_a_sandbox_in_a_user_namespace_by_default() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = scratch();
    let mut process = start(daemon(&scratch, &[]));
    let inside = process.children()[0];
    for kind in ["user", "mnt", "net", "pid"] {
        assert_ne!(namespace_of(inside, kind), namespace_of(std::process::id(), kind), "{kind}");
    }
    let map = |file| fs::read_to_string(format!("/proc/{inside}/{file}")).expect("a map").split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!((map("uid_map"), map("gid_map"), map("setgroups")), ("65534 65534 1".into(), "65534 65534 1".into(), "deny".into()));
    let mounts = fs::read_to_string(format!("/proc/{inside}/mountinfo")).expect("its mounts");
    assert_eq!(mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect::<Vec<_>>(), ["/"]);
    assert_eq!((status_field(inside, "NoNewPrivs"), status_field(inside, "Seccomp")), ("1".into(), "2".into()));

    let (guest, mut client) = mount(&scratch.join("s"));
    let share = scratch.join("share");
    let own = (USER, USER);
    assert_eq!(create(&mut client, &share, (0, 0), "roots"), Ok([own, own]), "the guest's root is whoever the daemon is");
    assert_eq!(create(&mut client, &share, own, "own"), Ok([own, own]));
    assert_eq!(create(&mut client, &share, (5, 5), "others"), Err(libc::EINVAL), "there is no such user here");
    client.caller = Caller { uid: 0, gid: 0, pid: 1 };
    assert!(client.mkdir(ROOT, "dir", 0o755).is_ok());
    assert_eq!(client.rename(ROOT, "own", ROOT, "renamed"), Ok(()));
    drop((guest, client));
    assert_eq!(process.wait().code(), Some(0));
    assert!(!scratch.join("s").exists(), "the socket is removed");
}

#[test]
fn a_user_who_maps_root_to_themself_is_the_guests_root() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = scratch();
    let _process = start(daemon(&scratch, &["--uid-map", ":0:65534:1:", "--gid-map", "/0/65534/1/"]));
    let (_guest, mut client) = mount(&scratch.join("s"));
    let share = scratch.join("share");
    assert_eq!(create(&mut client, &share, (0, 0), "roots"), Ok([(0, 0), (USER, USER)]));
    assert_eq!(create(&mut client, &share, (5, 5), "others"), Err(libc::EINVAL));
    assert_eq!(create(&mut client, &share, (0, 0), "again"), Ok([(0, 0), (USER, USER)]), "the thread is itself again");
}

/// Whether the programs that map ranges are there.
fn can_map_ranges() -> bool {
    let there = ["newuidmap", "newgidmap"].iter().all(|p| Command::new(p).output().is_ok());
    if !there {
        println!("skipped: newuidmap and newgidmap are not installed (package uidmap)");
    }
    there
}

/// As `daemon`, where /etc/subuid and /etc/subgid allow the user ids 200000 to 200999.
fn daemon_with_ranges(scratch: &Scratch, options: &[&str]) -> Command {
    fs::write(scratch.join("allowed"), format!("{USER}:200000:1000\n")).expect("a file");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec"]);
    let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
    command.arg(format!("mount --bind \"$1\" /etc/subuid; mount --bind \"$1\" /etc/subgid; shift; exec {user} \"$@\"")).arg("sh");
    command.arg(scratch.join("allowed")).arg(gatherfsd().get_program());
    command.arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(scratch.join("s")).args(options);
    command
}

#[test]
fn ranges_of_users_are_mapped_by_newuidmap_and_creates_come_out_mapped() {
    if !is_root("becoming another user") || !can_map_ranges() {
        return;
    }
    let scratch = scratch();
    let maps = ["--uid-map", ":0:65534:1:", "--uid-map", ":1:200000:1000:", "--gid-map", ":0:65534:1:", "--gid-map", ":1:200000:1000:"];
    let mut process = start(daemon_with_ranges(&scratch, &maps));
    let (guest, mut client) = mount(&scratch.join("s"));
    let share = scratch.join("share");
    assert_eq!(create(&mut client, &share, (0, 0), "roots"), Ok([(0, 0), (USER, USER)]));
    assert_eq!(create(&mut client, &share, (5, 6), "users"), Ok([(5, 6), (200_004, 200_005)]));
    assert_eq!(create(&mut client, &share, (1000, 1), "last"), Ok([(1000, 1), (200_999, 200_000)]));
    assert_eq!(create(&mut client, &share, (1001, 1), "beyond"), Err(libc::EINVAL));
    // Another user's file is the guest's root's too.
    client.caller = Caller { uid: 0, gid: 0, pid: 1 };
    let users = client.lookup(ROOT, "users").expect("LOOKUP").nodeid;
    assert!(client.open(users, libc::O_RDWR).is_ok());
    drop((guest, client));
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    assert!(!scratch.join("s").exists(), "the socket is removed");
}

#[test]
fn a_daemon_that_became_another_user_ends_with_the_process_outside() {
    if !is_root("becoming another user") || !can_map_ranges() {
        return;
    }
    for signal in [Signal::TERM, Signal::KILL] {
        let scratch = scratch();
        let mut process = start(daemon_with_ranges(&scratch, &["--uid-map", ":0:200000:1000:", "--gid-map", ":0:200000:1000:"]));
        let inside = process.children()[0];
        assert_eq!(status_field(inside, "Uid").split_whitespace().next(), Some("200000"), "the namespace's root");
        let (guest, mut client) = mount(&scratch.join("s"));
        let made = create(&mut client, &scratch.join("share"), (0, 0), "roots");
        assert_eq!(made, Ok([(0, 0), (200_000, 200_000)]));
        process.signal(signal);
        assert_eq!(process.wait().code(), (signal == Signal::TERM).then_some(0), "{}", process.log());
        assert!(eventually(|| !is_there(inside)), "{signal:?}: process {inside} lives on");
        assert_eq!(scratch.join("s").exists(), signal == Signal::KILL, "whoever is killed removes nothing");
        drop((guest, client));
    }
}

#[test]
fn a_map_that_is_not_allowed_is_refused_with_what_to_do() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = scratch();
    if can_map_ranges() {
        let mut command = daemon_with_ranges(&scratch, &["--uid-map", ":0:300000:10:"]);
        let (_, said) = refused(&mut command);
        assert!(said.contains("--uid-map is refused") && said.contains("/etc/subuid"), "{said}");
        assert!(!scratch.join("s").exists(), "it left a socket");
    }
    let mut command = daemon(&scratch, &["--gid-map", ":0:300000:10:"]);
    let (_, said) = refused(command.env("PATH", "/nowhere"));
    assert!(said.contains("--gid-map needs the program newgidmap") && said.contains("uidmap"), "{said}");
    let cases = [("--uid-map", ":0:1:"), ("--gid-map", ":0:x:1:")];
    for (option, map) in cases {
        let (status, said) = refused(&mut daemon(&scratch, &[option, map]));
        assert_eq!(status.code(), Some(2));
        assert!(said.starts_with(&format!("gatherfsd: {option}: range 1 ({map})")) && said.lines().count() == 1, "{said}");
    }
    let (_, said) = refused(&mut daemon(&scratch, &["--sandbox", "none", "--uid-map", ":0:65534:1:"]));
    assert!(said.contains("--uid-map needs --sandbox namespace"), "{said}");
    assert!(!scratch.join("s").exists(), "it left a socket");
}

#[test]
fn where_users_may_make_no_namespace_one_sentence_says_what_to_do() {
    if !is_root("limiting namespaces") {
        return;
    }
    let scratch = scratch();
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o777)).expect("a mode");
    // A namespace in which there may be one more, and in that one a user who is not root.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-ec"]);
    command.arg("echo 1 >/proc/sys/user/max_user_namespaces; exec unshare --user --map-user=1000 \"$@\"").arg("sh");
    command.arg(gatherfsd().get_program()).arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(scratch.join("s"));
    let (_, said) = refused(&mut command);
    assert!(said.contains("cannot make a user namespace") && said.contains("--sandbox none"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!scratch.join("s").exists(), "it left a socket");
}
