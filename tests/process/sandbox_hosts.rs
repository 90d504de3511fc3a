//! Hosts and shares that are not the usual ones, and what the sandbox makes of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use caps::{CapSet, Capability};

use super::daemon::{Process, Scratch, gatherfsd, is_root};
use super::guest::client::Client;
use super::guest::fuse::ROOT;
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
