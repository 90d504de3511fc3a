//! Hosts, shares and limits that are not the usual ones, and what the sandbox makes of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use caps::{CapSet, Capability};
use gatherfs_support::daemon::{Daemon, Process, Scratch, gatherfsd, is_root};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::ROOT;
use gatherfs_support::places::is_served_by_handles;
use gatherfs_support::private_mounts::{self, Mount};
use rustix::fs::{Gid, Uid};
use rustix::pipe::pipe;
use rustix::thread::UnshareFlags;

use super::{assert_serves, mount, refused};

/// A user without any rights.
const USER: u32 = 65534;

/// gatherfsd for `share`, with its socket in `scratch`.
fn daemon(scratch: &Scratch, share: &Path, options: &[&str]) -> Command {
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(share).arg("--socket-path").arg(scratch.join("s")).args(options);
    command
}

/// A directory that belongs to `user`.
fn scratch_of(user: u32) -> Scratch {
    let scratch = Scratch::new();
    std::os::unix::fs::chown(scratch.path(), Some(user), Some(user)).expect("root may");
    scratch
}

fn start(command: &mut Command) -> Process {
    let process = Process::spawn(command);
    process.wait_for_line("sharing ");
    process
}

/// What the guest reads from the file at `path` below its root.
fn content(client: &mut Client, path: &Path) -> Vec<u8> {
    let mut node = ROOT;
    for name in path.iter().filter_map(|name| name.to_str()).filter(|name| *name != "/") {
        node = client.lookup(node, name).unwrap_or_else(|e| panic!("LOOKUP of {name}: {e:?}")).nodeid;
    }
    let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
    client.read(node, fh, 0, 100).expect("READ")
}

#[test]
fn the_whole_host_can_be_shared_in_each_sandbox() {
    if !is_root("a sandbox") {
        return;
    }
    for (user, sandbox) in [(0, "namespace"), (0, "chroot"), (USER, "namespace")] {
        let scratch = scratch_of(user);
        fs::write(scratch.join("file"), "the host's").expect("a file");
        let mut command = daemon(&scratch, Path::new("/"), &["--sandbox", sandbox]);
        let mut process = start(command.uid(user).gid(user));
        let (guest, mut client) = mount(&scratch.join("s"));
        assert_eq!(content(&mut client, &scratch.join("file")), b"the host's", "--sandbox {sandbox} of user {user}");
        drop((guest, client));
        assert_eq!(process.wait().code(), Some(0), "{}", process.log());
        assert!(!scratch.join("s").exists(), "the socket is removed");
    }
}

/// Has root start `command` without a capability, as containers do.
fn without(capability: Capability, command: &mut Command) -> &mut Command {
    let drop = move || caps::drop(None, CapSet::Bounding, capability).map_err(std::io::Error::other);
    // SAFETY: prctl(2) is one system call and may be made between fork and exec.
    unsafe { command.pre_exec(drop) }
}

#[test]
fn the_chroot_sandbox_needs_no_more_rights_than_chroot() {
    if !is_root("a sandbox") {
        return;
    }
    let scratch = Scratch::new();
    let share = scratch.join("share");
    fs::create_dir(&share).expect("the shared directory");
    let mut process = start(without(Capability::CAP_SYS_ADMIN, &mut daemon(&scratch, &share, &["--sandbox", "chroot"])));
    let root = fs::metadata(format!("/proc/{}/root/.", process.children()[0])).expect("its root");
    assert_eq!(root.ino(), fs::metadata(&share).expect("the share").ino());
    let (guest, mut client) = mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
}

#[test]
fn root_without_the_rights_for_a_sandbox_is_told_which() {
    if !is_root("a sandbox") {
        return;
    }
    let cases = [("namespace", Capability::CAP_SYS_ADMIN), ("chroot", Capability::CAP_SYS_CHROOT)];
    for (sandbox, capability) in cases {
        let scratch = Scratch::new();
        let (_, said) = refused(without(capability, &mut daemon(&scratch, scratch.path(), &["--sandbox", sandbox])));
        assert!(said.contains(&capability.to_string()) && said.contains("--sandbox none"), "{said}");
        assert!(!said.contains("as root") && said.lines().count() == 1, "{said}");
    }
}

/// A directory in which the daemon can run as its root: the host's programs and libraries, /proc, and what is in `scratch`.
fn chroot_tree(scratch: &Scratch) -> (std::path::PathBuf, Vec<Mount>) {
    let root = scratch.join("root");
    let mut mounts = Vec::new();
    for name in ["usr", "lib", "lib64", "proc"] {
        let (on_host, in_root) = (Path::new("/").join(name), root.join(name));
        match fs::read_link(&on_host) {
            Ok(target) => std::os::unix::fs::symlink(target, in_root).expect("a link"),
            Err(_) if !on_host.exists() => {}
            Err(_) => {
                fs::create_dir_all(&in_root).expect("a mount point");
                mounts.push(Mount::bind_all(&on_host, &in_root).read_only());
            }
        }
    }
    for name in ["share", "run"] {
        fs::create_dir(root.join(name)).expect("a directory");
        std::os::unix::fs::chown(root.join(name), Some(USER), Some(USER)).expect("root may");
    }
    // By another process: one that this one starts in the meantime would have the file open for writing, and then it cannot be executed.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_gatherfsd")).arg(root.join("gatherfsd")).status();
    assert!(copied.expect("cp starts").success());
    (root, mounts)
}

/// The daemon as `user`, in a process whose root directory is `root`.
fn in_chroot(root: &Path, user: u32, sandbox: &str) -> Command {
    let mut command = Command::new("/gatherfsd");
    command.args(["--shared-dir", "/share", "--socket-path", "/run/s", "--sandbox", sandbox]);
    let root = root.to_owned();
    let enter = move || {
        rustix::process::chroot(&root)?;
        rustix::process::chdir("/")?;
        rustix::thread::set_thread_res_gid(Gid::from_raw(user), Gid::from_raw(user), Gid::from_raw(user))?;
        rustix::thread::set_thread_res_uid(Uid::from_raw(user), Uid::from_raw(user), Uid::from_raw(user))?;
        Ok(())
    };
    // SAFETY: four system calls, which may be made between fork and exec.
    unsafe { command.pre_exec(enter) };
    command
}

#[test]
fn in_a_plain_chroot_it_is_said_that_the_root_is_no_mount_point_and_what_helps_does() {
    if !private_mounts::enter() {
        return;
    }
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let (root, mut mounts) = chroot_tree(&scratch);
    for (user, advice) in [(0, "use --sandbox chroot, or bind the directory to itself"), (USER, "use --sandbox none")] {
        let (_, said) = refused(&mut in_chroot(&root, user, "namespace"));
        assert!(said.contains("/ is not a mount point") && said.contains(advice), "{said}");
        assert!(said.lines().count() == 1 && !root.join("run/s").exists(), "{said}");
    }
    let assert_works = |user, sandbox| {
        let mut process = start(&mut in_chroot(&root, user, sandbox));
        let (guest, mut client) = mount(&root.join("run/s"));
        client.caller.uid = user;
        client.caller.gid = user;
        assert_serves(&mut client, "dir");
        drop((guest, client));
        assert_eq!(process.wait().code(), Some(0), "--sandbox {sandbox} of user {user}: {}", process.log());
    };
    assert_works(0, "chroot");
    assert_works(USER, "none");
    mounts.push(Mount::bind_all(&root, &root));
    assert_works(0, "namespace");
    mounts.into_iter().rev().for_each(drop);
}

/// Ids of the namespace that `start_without_groups` makes.
const IDS: u32 = 100_000;

/// Whether this process may map so many ids: those of its own user namespace, which a container may have few of.
fn has_ids() -> bool {
    let has = |file| {
        let map = fs::read_to_string(file).unwrap_or_default();
        let numbers: Vec<u64> = map.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [0, _, count] if count >= u64::from(IDS))
    };
    let has = has("/proc/self/uid_map") && has("/proc/self/gid_map");
    if !has {
        println!("skipped: this user namespace has too few ids");
    }
    has
}

/// Starts `command` as root of a user namespace with many ids, where groups may not be set (man user_namespaces(7)).
fn start_without_groups(command: &mut Command) -> Process {
    let ((its_pid, tells_pid), (is_mapped, tells_mapped)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
    let enter = move || {
        // SAFETY: the process has one thread after fork.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }?;
        rustix::io::write(&tells_pid, &std::process::id().to_ne_bytes())?;
        rustix::io::read(&is_mapped, &mut [0; 1])?;
        Ok(())
    };
    // SAFETY: three system calls, which may be made between fork and exec.
    unsafe { command.pre_exec(enter) };
    let map = move || {
        let mut pid = [0; 4];
        rustix::io::read(&its_pid, &mut pid).expect("its process id");
        let map = format!("0 0 {IDS}");
        for (file, text) in [("setgroups", "deny"), ("uid_map", &map), ("gid_map", &map)] {
            fs::write(format!("/proc/{}/{file}", u32::from_ne_bytes(pid)), text).expect("root may");
        }
        rustix::io::write(&tells_mapped, &[1]).expect("it waits");
    };
    let mapper = std::thread::spawn(map);
    let process = start(command);
    mapper.join().expect("it is mapped");
    process
}

#[test]
fn root_that_may_not_set_groups_serves_in_each_sandbox() {
    if !is_root("mapping ids") || !has_ids() {
        return;
    }
    for sandbox in ["namespace", "chroot", "none"] {
        // With a supplementary group that cannot be left, and without any.
        for groups in [&[27][..], &[]] {
            let scratch = Scratch::new();
            let share = scratch.join("share");
            fs::create_dir(&share).expect("the shared directory");
            let mut command = daemon(&scratch, &share, &["--sandbox", sandbox]);
            let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            let set = move || Ok(rustix::thread::set_thread_groups(&groups)?);
            // SAFETY: one system call, which may be made between fork and exec.
            unsafe { command.pre_exec(set) };
            let mut process = start_without_groups(&mut command);
            let (guest, mut client) = mount(&scratch.join("s"));
            assert_serves(&mut client, "dir");
            client.caller.uid = 5;
            client.caller.gid = 6;
            fs::set_permissions(&share, fs::Permissions::from_mode(0o777)).expect("a mode");
            assert!(client.mkdir(ROOT, "theirs", 0o755).is_ok());
            let made = fs::metadata(share.join("theirs")).expect("the directory");
            assert_eq!((made.uid(), made.gid()), (5, 6), "--sandbox {sandbox}");
            // A group that the daemon cannot take on: the guest's kernel has checked it.
            std::os::unix::fs::chown(&share, Some(0), Some(7)).expect("a group");
            fs::set_permissions(&share, fs::Permissions::from_mode(0o775)).expect("a mode");
            client.groups = vec![7];
            assert_eq!(client.mkdir(ROOT, "teams", 0o777).map_err(|e| e.to_string()).map(|e| (e.attr.uid, e.attr.gid)), Ok((5, 6)));
            client.groups.clear();
            assert!(client.mkdir(ROOT, "others", 0o777).is_err(), "without the group the host refuses");
            drop((guest, client));
            assert_eq!(process.wait().code(), Some(0), "{}", process.log());
        }
    }
}

#[test]
fn a_share_that_may_be_searched_but_not_read_is_served_and_not_listed() {
    if !is_root("becoming another user") {
        return;
    }
    for sandbox in ["namespace", "none"] {
        let scratch = scratch_of(USER);
        let share = scratch.join("share");
        fs::create_dir(&share).expect("the shared directory");
        fs::write(share.join("file"), "known by name").expect("a file");
        fs::set_permissions(&share, fs::Permissions::from_mode(0o711)).expect("a mode");
        let mut process = start(daemon(&scratch, &share, &["--sandbox", sandbox]).uid(USER).gid(USER));
        let (guest, mut client) = mount(&scratch.join("s"));
        assert_eq!(content(&mut client, Path::new("file")), b"known by name", "--sandbox {sandbox}");
        assert_eq!(client.getattr(ROOT, None).map(|a| a.attr.mode & 0o7777), Ok(0o711));
        assert!(client.statfs(ROOT).is_ok());
        assert_eq!(client.opendir(ROOT).err(), Some(libc::EACCES.into()), "--sandbox {sandbox}");
        assert_eq!(client.mkdir(ROOT, "dir", 0o755).err(), Some(libc::EACCES.into()), "--sandbox {sandbox}");
        drop((guest, client));
        assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    }
}

#[test]
fn a_limit_of_open_files_that_serves_no_guest_is_refused_and_the_least_one_serves() {
    for limit in ["1", "12", "63"] {
        let scratch = Scratch::new();
        let (_, said) = refused(&mut daemon(&scratch, scratch.path(), &["--sandbox", "none", "--rlimit-nofile", limit]));
        assert!(said.contains(&format!("{limit} open files")) && said.contains("--rlimit-nofile 64 or more"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!scratch.join("s").exists(), "it left a socket");
    }
    let daemon = Daemon::start_in(Scratch::with_file_handles(), &["--rlimit-nofile", "64"]);
    let by_handles = is_served_by_handles(daemon.share());
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
    for number in 0..64 {
        let made = client.create(ROOT, &format!("file{number}"), 0o644, libc::O_RDWR).expect("CREATE");
        assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"content"), Ok(7));
        assert_eq!(client.release(made.entry.nodeid, made.open.fh), Ok(()));
        // Each node that the guest knows takes a descriptor where there are no handles.
        if !by_handles {
            assert_eq!(client.forget(made.entry.nodeid, 1), Ok(()));
        }
    }
    let files = daemon.share().read_dir().expect("the share").count();
    assert_eq!(files, 64);
}
