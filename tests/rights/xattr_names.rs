//! `--xattrmap`: what the guest calls an attribute and what the host does; and the share as the upper directory of
//! an overlayfs.

use gatherfs_support::guest::fuse::ROOT;
use gatherfs_support::places::has_whiteouts;
use gatherfs_support::share::{Scratch, Setup, Share, errno, is_root};

use super::{listed, on_host, put};

#[test]
fn a_prefix_stands_between_the_guests_attributes_and_the_hosts() {
    let mut share = Share::on_disk(&["--xattrmap", ":map::user.virtiofs.:"]);
    let file = share.make("file");
    put(&share, "file", "user.host", b"the host's own");
    let c = share.client();

    for name in ["user.a", "trusted.b", "security.selinux"] {
        c.setxattr(file.node, name, name.as_bytes(), 0).unwrap();
        assert_eq!(c.getxattr(file.node, name, 100).unwrap(), name.as_bytes());
    }
    assert_eq!(listed(c, file.node), ["security.selinux", "trusted.b", "user.a"]);
    assert_eq!(c.listxattr_size(file.node).unwrap(), "security.selinux.trusted.b.user.a.".len() as u32);
    assert_eq!(errno(c.getxattr(file.node, "user.host", 100)), libc::ENODATA);
    c.setxattr(file.node, "user.host", b"the guest's", 0).unwrap();
    assert_eq!(errno(c.setxattr(file.node, &format!("user.{}", "x".repeat(240)), b"", 0)), libc::ERANGE, "too long with its prefix");

    assert_eq!(on_host(&share.path("file"), "user.host").unwrap(), b"the host's own");
    assert_eq!(on_host(&share.path("file"), "user.virtiofs.user.host").unwrap(), b"the guest's");
    share.client().removexattr(file.node, "trusted.b").unwrap();
    assert!(on_host(&share.path("file"), "user.virtiofs.trusted.b").is_err());
}

#[test]
fn names_are_refused_and_hidden_as_the_rules_say() {
    let rules = ":bad:all:user.bad.:user.bad.: :unsupported:all:user.none.:user.none.: :ok:all:user.:user.:";
    let mut share = Share::on_disk(&["--xattrmap", rules]);
    let file = share.make("file");
    for name in ["user.bad.a", "user.none.a", "user.good"] {
        put(&share, "file", name, b"x");
    }
    let c = share.client();

    assert_eq!(listed(c, file.node), ["user.good"]);
    for (name, get, set) in [
        ("user.bad.a", libc::ENODATA, libc::EPERM),
        ("user.none.a", libc::EOPNOTSUPP, libc::EOPNOTSUPP),
        ("trusted.no.rule", libc::ENODATA, libc::EPERM),
    ] {
        assert_eq!(errno(c.getxattr(file.node, name, 100)), get, "{name}");
        assert_eq!(errno(c.getxattr_size(file.node, name)), get, "{name}");
        assert_eq!(errno(c.setxattr(file.node, name, b"y", 0)), set, "{name}");
        assert_eq!(errno(c.removexattr(file.node, name)), set, "{name}");
    }
    c.setxattr(file.node, "user.good", b"y", 0).unwrap();
    assert_eq!(on_host(&share.path("file"), "user.good").unwrap(), b"y");
    let printed = share.printed();
    assert!(printed.iter().any(|l| l.contains("add :ok:all::: or :bad:all::: at the end")), "{printed:?}");
}

#[test]
fn an_overlay_finds_what_its_upper_directory_needs() {
    // What overlayfs does when it mounts and when a lower file is deleted, renamed or its directory replaced.
    let options = &["--xattrmap", ":map:trusted.:user.virtiofs.:"];
    // An overlay cannot be another one's upper directory.
    let directory = if is_root() { Scratch::with("whiteouts", has_whiteouts) } else { Some(Scratch::on_disk()) };
    let Some(directory) = directory else { return };
    let mut share = Share::start(Setup { directory, options, ..Setup::default() });
    share.put("file", b"contents");
    let c = share.client();
    let dir = c.mkdir(ROOT, "dir", 0o755).unwrap().nodeid;

    c.setxattr(dir, "trusted.overlay.opaque", b"y", 0).unwrap();
    assert_eq!(c.getxattr(dir, "trusted.overlay.opaque", 10).unwrap(), b"y");
    assert_eq!(listed(c, dir), ["trusted.overlay.opaque"]);
    assert_eq!(errno(c.setxattr(dir, "user.virtiofs.trusted.overlay.opaque", b"n", 0)), libc::EPERM, "a guest's user may not");
    assert_eq!(c.tmpfile(ROOT, 0o600, libc::O_RDWR).unwrap().entry.attr.nlink, 0);
    if !is_root() {
        return;
    }
    let whiteout = c.mknod(ROOT, "deleted", libc::S_IFCHR, 0).unwrap().attr;
    assert_eq!((whiteout.mode & libc::S_IFMT, whiteout.rdev), (libc::S_IFCHR, 0));
    c.rename2((ROOT, "file"), (ROOT, "moved"), libc::RENAME_WHITEOUT).unwrap();
    let left = c.lookup(ROOT, "file").unwrap().attr;
    assert_eq!((left.mode & libc::S_IFMT, left.rdev, left.uid, left.gid), (libc::S_IFCHR, 0, 0, 0));
    (c.caller.uid, c.caller.gid) = (1000, 1001);
    c.rename2((ROOT, "moved"), (ROOT, "again"), libc::RENAME_WHITEOUT).unwrap();
    let left = c.lookup(ROOT, "moved").unwrap().attr;
    assert_eq!((left.uid, left.gid), (1000, 1001), "what a caller makes is the caller's");
    assert_eq!(c.lookup(ROOT, "again").unwrap().attr.uid, 0, "and nothing else");
    (c.caller.uid, c.caller.gid) = (u32::MAX, u32::MAX);
    c.rename2((ROOT, "again"), (ROOT, "moved"), 0).unwrap();
    c.rename2((ROOT, "moved"), (ROOT, "deleted"), libc::RENAME_EXCHANGE).unwrap();

    assert_eq!(share.contents("deleted"), b"contents");
    assert_eq!(on_host(&share.path("dir"), "user.virtiofs.trusted.overlay.opaque").unwrap(), b"y");
}

#[test]
fn a_file_system_without_attributes_answers_eopnotsupp_and_is_told_once() {
    if !is_root() {
        return;
    }
    // A mount of this thread's and the daemon's alone.
    if gatherfs::sys::process::unshare(rustix::thread::UnshareFlags::FS | rustix::thread::UnshareFlags::NEWNS).is_err() {
        eprintln!("skipped: no mount may be made here");
        return;
    }
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let directory = Scratch::on_tmpfs();
    mount("none", directory.path(), "ramfs", MountFlags::empty(), None).unwrap();
    let path = directory.path().to_owned();
    let options = ["--xattr", "--posix-acl=auto", "--security-label=auto"];
    let mut share = Share::start(gatherfs_support::share::Setup { directory, options: &options, ..Default::default() });
    let file = share.make("file");
    let c = share.client();

    use gatherfs_support::guest::fuse::init;
    assert_eq!(c.init_flags() & (init::POSIX_ACL | init::DONT_MASK | init::SECURITY_CTX), 0, "both are off");
    assert_eq!(errno(c.setxattr(file.node, "user.a", b"x", 0)), libc::EOPNOTSUPP);
    assert_eq!(errno(c.getxattr(file.node, "user.a", 10)), libc::EOPNOTSUPP);
    assert_eq!(errno(c.removexattr(file.node, "user.a")), libc::EOPNOTSUPP);
    assert_eq!(c.listxattr(file.node, 100).unwrap(), b"");

    let printed = share.printed();
    assert_eq!(printed.iter().filter(|l| l.contains("does not support extended attributes")).count(), 1, "{printed:?}");
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn no_rule_leads_to_the_hosts_acls_without_the_guests_help() {
    let mut share = Share::on_disk(&["--xattrmap", ":prefix:client:posix_acl_:system.::ok:all:::"]);
    share.put("file", b"");
    let node = share.client().lookup(ROOT, "file").unwrap().nodeid;
    assert_eq!(errno(share.client().setxattr(node, "posix_acl_access", b"x", 0)), libc::EOPNOTSUPP);
    assert_eq!(errno(share.client().getxattr(node, "posix_acl_default", 10)), libc::EOPNOTSUPP);
}
