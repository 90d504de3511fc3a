//! Whose files are whose when guest and host count differently: translated ids, forbidden ones, and mounts of the
//! guest that map ids themselves. Only root may act for others, so these tests are skipped for other users.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use gatherfs_support::guest;
use gatherfs_support::guest::fuse::{ROOT, SetattrIn, flag, init};
use gatherfs_support::share::{self, Share, change, errno};

/// A share whose root every user may write to.
fn open_share(options: &[&str]) -> Share {
    let share = Share::with(options);
    std::fs::set_permissions(share.root(), std::fs::Permissions::from_mode(0o777)).unwrap();
    share
}

fn on_host(share: &Share, name: &str) -> (u32, u32) {
    let st = std::fs::symlink_metadata(share.path(name)).unwrap();
    (st.uid(), st.gid())
}

#[test]
fn ids_are_translated_both_ways_wherever_they_cross() {
    if !share::is_root() {
        return;
    }
    let mut share = open_share(&["--translate-uid", "map:1000:5000:10", "--translate-gid", "map/2000/7000/10"]);
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (1003, 2004);

    let made = [
        ("file", c.create(ROOT, "file", 0o640, libc::O_RDWR).unwrap().entry),
        ("dir", c.mkdir(ROOT, "dir", 0o755).unwrap()),
        ("fifo", c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o600, 0).unwrap()),
        ("link", c.symlink(ROOT, "link", "x").unwrap()),
    ];
    let tmpfile = c.tmpfile(ROOT, 0o600, libc::O_RDWR).unwrap().entry.attr;
    assert_eq!((tmpfile.uid, tmpfile.gid), (1003, 2004));
    for (name, entry) in made {
        let c = share.client();
        assert_eq!((entry.attr.uid, entry.attr.gid), (1003, 2004), "{name}");
        let found = c.lookup(ROOT, name).unwrap().attr;
        let attr = c.getattr(entry.nodeid, None).unwrap().attr;
        let st = c.statx(entry.nodeid, None, 0xfff).unwrap().stat;
        assert_eq!([(found.uid, found.gid), (attr.uid, attr.gid), (st.uid, st.gid)], [(1003, 2004); 3], "{name}");
        assert_eq!(on_host(&share, name), (5003, 7004), "{name}");
    }
    let c = share.client();
    let dir = c.opendir(ROOT).unwrap();
    let listed = c.readdirplus(ROOT, dir.fh, 0, 4096).unwrap();
    for entry in listed.iter().filter(|e| !e.name.starts_with(b".")) {
        let attr = entry.entry.unwrap().attr;
        assert_eq!((attr.uid, attr.gid), (1003, 2004), "{:?}", entry.name);
    }

    let node = made[0].1.nodeid;
    let set = SetattrIn { uid: 1009, gid: 2000, ..change(flag::FATTR_UID | flag::FATTR_GID) };
    let attr = c.setattr(node, &set).unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (1009, 2000));
    assert_eq!(c.access(node, 4), Err(libc::EACCES.into()), "1003 is no longer the owner");
    (c.caller.uid, c.caller.gid) = (1009, 1);
    assert_eq!(c.access(node, 6), Ok(()), "the owner, as the guest knows it");
    (c.caller.uid, c.caller.gid) = (1, 2000);
    assert_eq!(c.access(node, 4), Ok(()), "the group");
    assert_eq!(on_host(&share, "file"), (5009, 7000));
    // Beyond the ranges nothing changes.
    let c = share.client();
    c.setattr(node, &SetattrIn { uid: 1010, gid: 1999, ..set }).unwrap();
    assert_eq!(on_host(&share, "file"), (1010, 1999));
}

#[test]
fn a_supplementary_group_is_translated_too() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::with(&["--translate-gid", "guest:2002:7002:1"]);
    chown(share.root(), Some(0), Some(7002)).unwrap();
    std::fs::set_permissions(share.root(), std::fs::Permissions::from_mode(0o775)).unwrap();
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (1000, 1000);

    c.groups = vec![7002];
    assert!(c.mkdir(ROOT, "hosts", 0o755).is_ok(), "an id beyond the rule is what it is");
    c.groups = vec![2002];
    assert!(c.mkdir(ROOT, "guests", 0o755).is_ok());
    c.groups = vec![2003];
    assert_eq!(errno(c.mkdir(ROOT, "others", 0o755)), libc::EACCES);
}

#[test]
fn squashed_ids_become_one_in_their_direction_only() {
    if !share::is_root() {
        return;
    }
    let rules = ["squash-guest:0:65534:1000", "squash-host:65534:0:1"];
    let mut share = open_share(&["--translate-uid", rules[0], "--translate-uid", rules[1], "--translate-gid", rules[0]]);
    for (caller, name) in [(0, "root"), (999, "other")] {
        let c = share.client();
        (c.caller.uid, c.caller.gid) = (caller, caller);
        let attr = c.mkdir(ROOT, name, 0o755).unwrap().attr;
        assert_eq!((attr.uid, attr.gid), (0, 65534), "the group has no way back");
        assert_eq!(on_host(&share, name), (65534, 65534));
    }
}

#[test]
fn forbidden_ids_make_nothing_and_own_nothing() {
    if !share::is_root() {
        return;
    }
    let mut share = open_share(&["--translate-uid", "forbid-guest:1000:10", "--translate-gid", "forbid-guest:2000:10"]);
    let file = share.make("file");
    let before = on_host(&share, "file");
    let c = share.client();

    for (uid, gid, groups) in [(1000, 0, vec![]), (0, 2009, vec![]), (1, 1, vec![2005])] {
        (c.caller.uid, c.caller.gid, c.groups) = (uid, gid, groups);
        assert_eq!(errno(c.create(ROOT, "new", 0o644, libc::O_RDWR)), libc::EPERM, "{uid} {gid}");
        assert_eq!(errno(c.mkdir(ROOT, "new", 0o755)), libc::EPERM);
        assert_eq!(errno(c.mknod(ROOT, "new", libc::S_IFIFO | 0o644, 0)), libc::EPERM);
        assert_eq!(errno(c.symlink(ROOT, "new", "x")), libc::EPERM);
        assert_eq!(errno(c.tmpfile(ROOT, 0o644, libc::O_RDWR)), libc::EPERM);
    }
    for (valid, uid, gid) in [(flag::FATTR_UID, 1005, 0), (flag::FATTR_GID, 0, 2005), (flag::FATTR_UID | flag::FATTR_GID, 1, 2005)] {
        assert_eq!(errno(c.setattr(file.node, &SetattrIn { uid, gid, ..change(valid) })), libc::EPERM);
    }
    // What is there already is shown, and reading is no use of an id.
    (c.caller.uid, c.caller.gid) = (1000, 2000);
    assert!(c.open(file.node, libc::O_RDONLY).is_ok());
    chown(share.path("file"), Some(1000), Some(2000)).unwrap();
    let attr = share.client().getattr(file.node, None).unwrap().attr;

    assert_eq!((attr.uid, attr.gid), (1000, 2000));
    assert_eq!((before, std::fs::read_dir(share.root()).unwrap().count()), ((0, 0), 1));
}

#[test]
fn with_mapped_mounts_only_creates_have_a_caller() {
    if !share::is_root() {
        return;
    }
    let mut share = open_share(&["--xattr", "--killpriv-v2"]);
    assert!(share.client().init_flags() & init::ALLOW_IDMAP != 0);
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (1000, 1000);
    let made = c.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
    let (node, fh) = (made.entry.nodeid, made.open.fh);

    // FUSE_INVALID_UIDGID, as Linux 6.12 sends with everything else.
    (c.caller.uid, c.caller.gid) = (u32::MAX, u32::MAX);
    assert_eq!(c.write(node, fh, 0, b"bytes").unwrap(), 5);
    assert_eq!(c.read(node, fh, 0, 5).unwrap(), b"bytes");
    let set = SetattrIn { uid: 1001, mode: 0o600, ..change(flag::FATTR_UID | flag::FATTR_MODE) };
    assert_eq!(c.setattr(node, &set).unwrap().attr.uid, 1001);
    assert_eq!(c.lookup(ROOT, "file").unwrap().nodeid, node);
    c.fallocate(node, &guest::fuse::FallocateIn { fh, length: 100, ..Default::default() }).unwrap();
    c.setxattr(node, "user.a", b"x", 0).unwrap();
    c.link(node, ROOT, "link").unwrap();
    c.rename(ROOT, "link", ROOT, "other").unwrap();
    c.unlink(ROOT, "other").unwrap();
    let dir = c.opendir(ROOT).unwrap();
    assert!(c.readdirplus(ROOT, dir.fh, 0, 4096).unwrap().iter().any(|e| e.name == b"file"));
    assert_eq!(errno(c.mkdir(ROOT, "dir", 0o755)), libc::EINVAL, "a create by nobody");

    assert_eq!(on_host(&share, "file"), (1001, 1000));
}
