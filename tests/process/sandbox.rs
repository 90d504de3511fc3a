//! The sandboxes of root: what the serving process sees and may do, and that it ends with the one outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use gatherfs_support::daemon::{Daemon, Process, Scratch, eventually, gatherfsd, is_root, is_there, status_field};
use gatherfs_support::guest::fuse::{ROOT, SetattrIn, flag};
use gatherfs_support::private_mounts::{self, Mount};
use rustix::process::{Pid, Signal, kill_process};

use super::{assert_serves, mount};

const SANDBOXES: [&str; 2] = ["namespace", "chroot"];
/// Those with a process outside: all of them, where there is a keeper.
const WITH_OUTER: [&str; 3] = ["namespace", "chroot", "none"];

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, MKNOD and SETFCAP
/// (linux/capability.h).
const KEPT: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;

fn start(sandbox: &str) -> Daemon {
    Daemon::start(&["--sandbox", sandbox])
}

/// The one process that serves.
fn inner(daemon: &Daemon) -> u32 {
    let children = daemon.children();
    assert_eq!(children.len(), 1, "one process inside: {children:?}");
    children[0]
}

/// The mount, network and process namespaces of a process.
fn namespaces(pid: &str) -> [PathBuf; 3] {
    ["mnt", "net", "pid"].map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace"))
}

#[test]
fn a_sandboxed_daemon_serves_its_share() {
    if !is_root("a sandbox") {
        return;
    }
    for sandbox in SANDBOXES {
        let mut daemon = start(sandbox);
        let (guest, mut client) = mount(daemon.socket());
        let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
        assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"from inside"), Ok(11));
        let chmod = SetattrIn { valid: flag::FATTR_MODE, mode: 0o600, ..SetattrIn::default() };
        assert_eq!(client.setattr(made.entry.nodeid, &chmod).map(|a| a.attr.mode), Ok(0o100_600));
        assert_serves(&mut client, "dir");
        assert_eq!(daemon.content("file"), b"from inside");
        assert_eq!(daemon.metrics().requests("WRITE"), 1, "SIGUSR1 reaches the one that serves");
        drop((guest, client));
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(!daemon.socket().exists(), "the socket is removed");
    }
}

#[test]
fn the_serving_process_has_the_share_as_its_root() {
    if !is_root("a sandbox") {
        return;
    }
    for sandbox in SANDBOXES {
        let daemon = start(sandbox);
        let share = fs::metadata(daemon.share()).expect("the share");
        for place in ["root", "cwd"] {
            let place = fs::metadata(format!("/proc/{}/{place}/.", inner(&daemon))).expect("a directory");
            assert_eq!((place.dev(), place.ino()), (share.dev(), share.ino()), "--sandbox {sandbox}");
        }
    }
}

#[test]
fn a_mount_below_the_share_is_served_in_every_sandbox() {
    if !private_mounts::enter() {
        return;
    }
    for sandbox in ["none", "chroot", "namespace"] {
        let scratch = Scratch::with_file_handles();
        let mounted = Mount::new("tmpfs", &scratch.join("share/below"));
        fs::write(scratch.join("share/below/file"), b"inside").expect("a file");
        let daemon = Daemon::start_in(scratch, &["--sandbox", sandbox]);
        let (_guest, mut client) = mount(daemon.socket());

        let below = client.lookup(ROOT, "below").expect("LOOKUP");
        assert_ne!(below.attr.flags & flag::ATTR_SUBMOUNT, 0, "--sandbox {sandbox}");
        let file = client.lookup(below.nodeid, "file").expect("LOOKUP").nodeid;
        let fh = client.open(file, libc::O_RDONLY).expect("OPEN").fh;
        assert_eq!(client.read(file, fh, 0, 100).as_deref(), Ok(&b"inside"[..]), "--sandbox {sandbox}");
        assert_eq!(client.lookup(below.nodeid, "..").map(|e| e.nodeid), Ok(ROOT), "--sandbox {sandbox}");
        // Before the daemon's directory is removed.
        drop(mounted);
    }
}

#[test]
fn the_namespace_sandbox_has_mounts_network_and_process_ids_of_its_own() {
    if !is_root("a sandbox") {
        return;
    }
    let daemon = start("namespace");
    let theirs = namespaces(&inner(&daemon).to_string());
    assert!(namespaces("self").iter().all(|namespace| !theirs.contains(namespace)), "{theirs:?}");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", inner(&daemon))).expect("its mounts");
    let points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(points, ["/"], "nothing but the share is mounted");
    let routes = fs::read_to_string(format!("/proc/{}/net/route", inner(&daemon))).expect("its network");
    assert!(routes.lines().count() <= 1, "a title and no route: {routes}");
}

#[test]
fn no_device_of_the_share_can_be_opened_in_the_namespace_sandbox() {
    if !is_root("a sandbox") || !private_mounts::enter() {
        return;
    }
    let scratch = Scratch::new();
    let below = Mount::new("tmpfs", &scratch.join("share/below"));
    let daemon = Daemon::start_in(scratch, &["--sandbox", "namespace"]);
    let (_guest, mut client) = mount(daemon.socket());
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", inner(&daemon))).expect("its mounts");
    let options: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(5)).collect();
    assert!(options.len() == 2 && options.iter().all(|o| o.split(',').any(|o| o == "nodev")), "{mounts}");

    let mount_node = client.lookup(ROOT, "below").unwrap().nodeid;
    for (parent, path) in [(ROOT, "device"), (mount_node, "below/device")] {
        // Character device 1, 5 is /dev/zero.
        let made = client.mknod(parent, "device", libc::S_IFCHR | 0o666, 0x105).expect("a device can be made");
        assert_eq!(made.attr.rdev, 0x105);
        assert!(fs::File::open(daemon.share().join(path)).is_ok(), "the host itself can open it");
        let opened = fs::File::open(format!("/proc/{}/root/{path}", inner(&daemon)));
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EACCES), "{path}");
        client.unlink(parent, "device").expect("and removed");
    }
    drop(below);
}

#[test]
fn the_chroot_sandbox_stays_in_the_namespaces_of_the_host() {
    if !is_root("a sandbox") {
        return;
    }
    let daemon = start("chroot");
    assert_eq!(namespaces("self"), namespaces(&inner(&daemon).to_string()));
}

#[test]
fn every_thread_that_serves_has_the_reduced_capabilities_and_gets_no_new_ones() {
    if !is_root("a sandbox") {
        return;
    }
    for sandbox in ["namespace", "chroot", "none"] {
        let daemon = start(sandbox);
        let (_guest, mut client) = mount(daemon.socket());
        assert_serves(&mut client, "dir");
        let serving = daemon.serving();
        let tasks: Vec<_> = fs::read_dir(format!("/proc/{serving}/task")).expect("threads").filter_map(Result::ok).collect();
        assert!(tasks.len() >= 4, "{} threads", tasks.len());
        for task in tasks {
            let tid: u32 = task.file_name().to_str().and_then(|tid| tid.parse().ok()).expect("a number");
            let name = fs::read_to_string(task.path().join("comm"));
            if name.is_err() || name.is_ok_and(|name| name == "room\n") {
                // The thread that looks for room has ended, or is about to (src/device/session.rs).
                continue;
            }
            let held = |set| u64::from_str_radix(&status_field(tid, set), 16).expect("a number");
            assert_eq!(held("CapEff"), KEPT, "--sandbox {sandbox}: {:#x}", held("CapEff"));
            assert_eq!((held("CapPrm"), held("CapInh"), held("CapAmb")), (KEPT, 0, 0), "--sandbox {sandbox}");
            assert_eq!(status_field(tid, "NoNewPrivs"), "1", "--sandbox {sandbox}");
            // A filter, SECCOMP_MODE_FILTER.
            assert_eq!(status_field(tid, "Seccomp"), "2", "--sandbox {sandbox}");
            let comm = fs::read_to_string(format!("/proc/{tid}/comm")).expect("a thread");
            if sandbox != "none" && (comm.starts_with("request") || comm.starts_with("hiprio")) {
                // Nothing lies above where the thread works: neither the host's /proc nor its root.
                let place = |path: &str| fs::metadata(format!("/proc/{serving}/task/{tid}/cwd/{path}")).map(|m| (m.dev(), m.ino()));
                assert_eq!(place("../..").expect("a directory"), place(".").expect("a directory"), "--sandbox {sandbox}");
            }
            assert_eq!(status_field(tid, "Groups"), "", "--sandbox {sandbox}");
        }
    }
}

#[test]
fn the_process_outside_keeps_what_it_needs_to_signal_and_to_remove_the_socket() {
    if !is_root("a sandbox") {
        return;
    }
    for sandbox in WITH_OUTER {
        let daemon = start(sandbox);
        let held = || u64::from_str_radix(&daemon.status_field("CapEff"), 16).expect("a number");
        // DAC_OVERRIDE, FOWNER and KILL. The other process may have come to serve first.
        assert!(eventually(|| held() == 1 << 1 | 1 << 3 | 1 << 5), "--sandbox {sandbox}: {:#x}", held());
        assert_eq!(daemon.status_field("NoNewPrivs"), "1", "--sandbox {sandbox}");
    }
}

#[test]
fn modcaps_and_inode_file_handles_decide_which_capabilities_are_kept() {
    if !is_root("a sandbox") {
        return;
    }
    const HANDLES: u64 = 1 << 2;
    const CHOWN: u64 = 1;
    const SYS_PTRACE: u64 = 1 << 19;
    let cases: [(&[&str], u64); 4] = [
        (&["--inode-file-handles", "never"], KEPT & !HANDLES),
        (&["--modcaps", "-chown:+SYS_PTRACE"], KEPT & !CHOWN | SYS_PTRACE),
        (&["--modcaps=-dac_read_search"], KEPT & !HANDLES),
        (&["--modcaps=-chown:-dac_read_search", "--inode-file-handles", "never"], KEPT & !CHOWN & !HANDLES),
    ];
    for (options, kept) in cases {
        let daemon = Daemon::start(options);
        let held = u64::from_str_radix(&status_field(daemon.serving(), "CapEff"), 16).expect("a number");
        assert_eq!(held, kept, "{options:?}: {held:#x}");
    }
}

#[test]
fn seccomp_none_installs_no_filter_and_the_others_do() {
    for (action, mode) in [("none", "0"), ("log", "2"), ("trap", "2"), ("kill", "2")] {
        let daemon = Daemon::start(&["--seccomp", action]);
        let (_guest, mut client) = mount(daemon.socket());
        client.caller.uid = rustix::process::geteuid().as_raw();
        client.caller.gid = rustix::process::getegid().as_raw();
        assert_serves(&mut client, "dir");
        assert_eq!(status_field(daemon.serving(), "Seccomp"), mode, "--seccomp {action}");
        // A daemon that confines itself cannot take it back: there are no new privileges.
        assert_eq!(status_field(daemon.serving(), "NoNewPrivs"), "1", "--seccomp {action}");
    }
}

#[test]
fn the_serving_process_ends_when_the_outer_one_is_killed() {
    if !is_root("a sandbox") {
        return;
    }
    for sandbox in WITH_OUTER {
        let mut daemon = start(sandbox);
        let (_guest, mut client) = mount(daemon.socket());
        assert_serves(&mut client, "dir");
        let inside = inner(&daemon);
        daemon.signal(Signal::KILL);
        assert_eq!(daemon.wait().code(), None);
        assert!(eventually(|| !is_there(inside)), "--sandbox {sandbox}: process {inside} lives on");
    }
}

#[test]
fn the_outer_process_ends_when_the_serving_one_is_killed_and_removes_the_socket() {
    if !is_root("a sandbox") {
        return;
    }
    for sandbox in WITH_OUTER {
        let mut daemon = start(sandbox);
        let inside = Pid::from_raw(inner(&daemon).cast_signed()).expect("a process id");
        kill_process(inside, Signal::KILL).expect("the process is there");
        assert_eq!(daemon.wait().code(), Some(128 + 9), "as a shell would say it");
        assert!(!daemon.socket().exists());
    }
}

#[test]
fn a_signal_to_the_outer_process_ends_both_and_removes_the_socket() {
    if !is_root("a sandbox") {
        return;
    }
    for sandbox in WITH_OUTER {
        for connected in [false, true] {
            let mut daemon = start(sandbox);
            let guest = connected.then(|| mount(daemon.socket()));
            let inside = inner(&daemon);
            daemon.signal(Signal::TERM);
            assert_eq!(daemon.wait().code(), Some(0), "--sandbox {sandbox}");
            assert!(!is_there(inside) && !daemon.socket().exists(), "--sandbox {sandbox}");
            drop(guest);
        }
    }
}

#[test]
fn a_signal_that_comes_with_the_socket_ends_a_sandboxed_daemon_too() {
    if !is_root("a sandbox") {
        return;
    }
    for round in 0..20 {
        let sandbox = WITH_OUTER[round % 3];
        let scratch = Scratch::new();
        let (share, socket) = (scratch.join("share"), scratch.join("s"));
        fs::create_dir(&share).expect("the shared directory");
        let mut command = gatherfsd();
        command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket).args(["--sandbox", sandbox]);
        let mut process = Process::spawn(&mut command);
        assert!(eventually(|| socket.exists()));
        process.signal(Signal::TERM);
        assert_eq!(process.wait().code(), Some(0), "round {round}, --sandbox {sandbox}: {}", process.log());
        assert!(!socket.exists(), "round {round}, --sandbox {sandbox}: the socket is removed");
    }
}

#[test]
fn a_link_out_of_the_share_is_a_link_and_is_not_followed() {
    let sandboxes = if is_root("a sandbox") { &["none", "namespace", "chroot"][..] } else { &["none"] };
    for sandbox in sandboxes {
        let daemon = start(sandbox);
        symlink("/etc/passwd", daemon.share().join("link")).expect("a link");
        symlink("/etc", daemon.share().join("dir")).expect("a link");
        let (_guest, mut client) = mount(daemon.socket());
        for (name, target) in [("link", &b"/etc/passwd"[..]), ("dir", b"/etc")] {
            let entry = client.lookup(ROOT, name).expect("LOOKUP");
            assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK, "--sandbox {sandbox}");
            assert_eq!(client.readlink(entry.nodeid).as_deref(), Ok(target));
            let open = client.open(entry.nodeid, libc::O_RDONLY);
            assert!(open.as_ref().is_err_and(|e| e.errno().is_some()), "--sandbox {sandbox}: {open:?}");
            assert_eq!(client.opendir(entry.nodeid).err(), Some(libc::ENOTDIR.into()));
            let through = client.lookup(entry.nodeid, "passwd").err();
            assert_eq!(through, Some(libc::ENOTDIR.into()), "--sandbox {sandbox}");
            assert!(client.create(entry.nodeid, "new", 0o644, libc::O_RDWR).is_err());
        }
    }
}

/// A file system that is mounted until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: PathBuf) -> Mounted {
        fs::create_dir_all(&at).expect("a mount point");
        let done = Command::new("mount").args(["-t", "tmpfs", "gatherfs-test"]).arg(&at).status().expect("mount is there");
        assert!(done.success(), "root may mount");
        Mounted(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_that_is_mounted_below_the_share_is_served_in_every_sandbox() {
    if !is_root("mounting") {
        return;
    }
    for sandbox in ["none", "namespace", "chroot"] {
        for handles in ["prefer", "never"] {
            let case = format!("--sandbox {sandbox} --inode-file-handles {handles}");
            let scratch = Scratch::new();
            let share = scratch.join("share");
            let before = Mounted::tmpfs(share.join("before"));
            fs::write(before.0.join("file"), "content").expect("a file");
            let daemon = Daemon::start_in(scratch, &["--sandbox", sandbox, "--inode-file-handles", handles]);
            // A sandbox with mounts of its own sees later ones where the host's are shared (mount_namespaces(7)).
            let after = (sandbox != "namespace").then(|| Mounted::tmpfs(share.join("after")));
            let (_guest, mut client) = mount(daemon.socket());
            for mounted in [Some(&before), after.as_ref()].into_iter().flatten() {
                let name = mounted.0.file_name().and_then(|n| n.to_str()).expect("a name");
                let dir = client.lookup(ROOT, name).expect("LOOKUP").nodeid;
                let made = client.create(dir, "new", 0o644, libc::O_RDWR).unwrap_or_else(|e| panic!("{case}: CREATE in {name}: {e:?}"));
                assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"content"), Ok(7), "{case}");
                assert_eq!(fs::read(mounted.0.join("new")).expect("the file"), b"content", "{case}");
                assert_eq!(client.rename(dir, "new", dir, "renamed"), Ok(()), "{case}");
                assert!(client.open(made.entry.nodeid, libc::O_RDWR).is_ok(), "{case}");
                assert_eq!(client.rename(dir, "renamed", ROOT, "x").err(), Some(libc::EXDEV.into()), "{case}");
            }
        }
    }
}

/// Whether this kernel's Landlock can confine files (ABI 2).
fn has_landlock() -> bool {
    // SAFETY: asks for the version only.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    if abi < 2 {
        println!("skipped: this kernel has no Landlock");
    }
    abi >= 2
}

#[test]
fn without_file_handles_what_the_host_moves_out_of_the_share_is_out_of_reach() {
    if !has_landlock() {
        return;
    }
    let scratch = Scratch::new();
    let outside = scratch.join("outside");
    let daemon = Daemon::start_in(scratch, &["--inode-file-handles", "never"]);
    daemon.put("file", "content");
    let (_guest, mut client) = mount(daemon.socket());
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let open = client.open(node, libc::O_RDWR).expect("OPEN");
    fs::rename(daemon.share().join("file"), &outside).expect("the host may");
    assert_eq!(client.open(node, libc::O_RDONLY).err(), Some(libc::EACCES.into()));
    // What is open stays open, and the file is found again when it comes back.
    assert_eq!(client.write(node, open.fh, 0, b"CONTENT"), Ok(7));
    assert_eq!(fs::read(&outside).expect("the file"), b"CONTENT");
    fs::rename(&outside, daemon.share().join("back")).expect("the host may");
    assert!(client.open(node, libc::O_RDONLY).is_ok());
}

#[test]
fn names_change_and_move_freely_without_file_handles() {
    let mut daemon = Daemon::start(&["--inode-file-handles", "never"]);
    let (guest, mut client) = mount(daemon.socket());
    client.caller.uid = rustix::process::geteuid().as_raw();
    client.caller.gid = rustix::process::getegid().as_raw();
    let (a, b) = (client.mkdir(ROOT, "a", 0o755).expect("MKDIR").nodeid, client.mkdir(ROOT, "b", 0o755).expect("MKDIR").nodeid);
    let made = client.create(a, "file", 0o644, libc::O_RDWR).expect("CREATE");
    assert_eq!(client.rename(a, "file", b, "moved"), Ok(()), "Landlock must allow renames between directories");
    assert!(client.link(made.entry.nodeid, a, "again").is_ok());
    assert_eq!(client.rename2((a, "again"), (b, "moved"), libc::RENAME_EXCHANGE), Ok(()));
    assert_eq!(client.rename(ROOT, "a", b, "inner"), Ok(()));
    assert_eq!(client.truncate(made.entry.nodeid, None, 10).map(|a| a.attr.size), Ok(10));
    assert_eq!(client.symlink(b, "link", "moved").map(|e| e.attr.mode & libc::S_IFMT), Ok(libc::S_IFLNK));
    let tmp = client.tmpfile(ROOT, 0o600, libc::O_RDWR).expect("TMPFILE");
    assert!(client.link(tmp.entry.nodeid, b, "named").is_ok());
    assert_eq!(client.unlink(b, "moved"), Ok(()));
    assert!(client.open(made.entry.nodeid, libc::O_RDWR).is_ok(), "it has another name");
    drop((guest, client));
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.socket().exists(), "the socket is removed");
}
