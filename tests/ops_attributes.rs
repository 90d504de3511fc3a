//! Attributes: GETATTR, SETATTR, STATX, ACCESS, extended attributes, and what the guest may cache.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use gatherfs_support::guest::fuse::{ROOT, SetattrIn, flag, init};
use gatherfs_support::share::{self, Setup, Share, change, errno};

/// ACLs are system attributes of their own (man acl(5)): version 2, then tag, permissions and id of each entry.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [(1, 7, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (0x10, 5, u32::MAX), (0x20, 4, u32::MAX)];
    let bytes =
        |&(tag, permissions, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat();
    [2u32.to_le_bytes().to_vec()].into_iter().chain(entries.iter().map(bytes)).flatten().collect()
}

#[test]
fn getattr_tells_by_node_and_by_handle_what_the_host_has_now() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        share.put("file", b"changed by the host");
        std::fs::set_permissions(share.path("file"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        std::fs::hard_link(share.path("file"), share.path("link")).unwrap();
        let on_host = std::fs::metadata(share.path("file")).unwrap();
        let number = share.number(on_host.dev(), on_host.ino());

        for fh in [None, Some(file.fh)] {
            let attr = share.client().getattr(file.node, fh).unwrap().attr;

            assert_eq!((attr.size, attr.mode, attr.nlink, attr.ino), (19, libc::S_IFREG | 0o4711, 2, number));
            assert_eq!((attr.uid, attr.gid, attr.blocks), (on_host.uid(), on_host.gid(), on_host.blocks()));
            assert_eq!((attr.mtime, attr.mtimensec), (on_host.mtime() as u64, on_host.mtime_nsec() as u32));
            assert_eq!((attr.ctime, attr.ctimensec), (on_host.ctime() as u64, on_host.ctime_nsec() as u32));
            assert_eq!((attr.atime, attr.atimensec), (on_host.atime() as u64, on_host.atime_nsec() as u32));
        }
        assert_eq!(share.client().getattr(ROOT, None).unwrap().attr.mode, libc::S_IFDIR | 0o755);
        for node in [0, 99, u64::MAX, 1 << 32 | 1] {
            assert_eq!(errno(share.client().getattr(node, None)), libc::ESTALE, "{node:#x}");
        }
    }
}

#[test]
fn setattr_changes_what_it_names_and_nothing_else() {
    let mut share = Share::new();
    let file = share.make("file");
    share.client().write(file.node, file.fh, 0, b"0123456789").unwrap();
    let reader = share.open("file", libc::O_RDONLY);
    let c = share.client();

    let mode = c.setattr(file.node, &SetattrIn { mode: libc::S_IFREG | 0o1712, ..change(flag::FATTR_MODE) }).unwrap().attr;
    assert_eq!((mode.mode, mode.size), (libc::S_IFREG | 0o1712, 10));
    assert_eq!(c.truncate(file.node, None, 4).unwrap().attr.size, 4);
    assert_eq!(c.truncate(file.node, Some(file.fh), 8).unwrap().attr.size, 8);
    assert_eq!(c.truncate(file.node, Some(reader.fh), 6).unwrap().attr.size, 6, "a handle for reading only");
    assert_eq!(errno(c.truncate(file.node, None, u64::MAX)), libc::EFBIG);
    assert_eq!(errno(c.truncate(ROOT, None, 0)), libc::EISDIR);
    let nothing = c.setattr(file.node, &change(0)).unwrap().attr;

    assert_eq!((nothing.mode, nothing.size), (libc::S_IFREG | 0o1712, 6));
    assert_eq!(share.contents("file"), b"0123\0\0");
    let dir = share.client().mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
    let set = SetattrIn { mode: 0o1700, ..change(flag::FATTR_MODE) };
    assert_eq!(share.client().setattr(dir, &set).unwrap().attr.mode, libc::S_IFDIR | 0o1700);
}

#[test]
fn setattr_changes_owner_and_group_apart_or_together() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    let file = share.make("file");
    let link = share.client().symlink(ROOT, "link", "file").unwrap().nodeid;
    std::fs::set_permissions(share.path("file"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let ids = |share: &Share, name: &str| {
        let st = std::fs::symlink_metadata(share.path(name)).unwrap();
        (st.uid(), st.gid())
    };

    let both = SetattrIn { uid: 1000, gid: 1001, ..change(flag::FATTR_UID | flag::FATTR_GID) };
    let attr = share.client().setattr(file.node, &both).unwrap().attr;
    assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (1000, 1001, 0o755), "setuid goes with the owner");
    share.client().setattr(file.node, &SetattrIn { uid: 7, ..change(flag::FATTR_UID) }).unwrap();
    assert_eq!(ids(&share, "file"), (7, 1001));
    share.client().setattr(file.node, &SetattrIn { gid: 8, ..change(flag::FATTR_GID) }).unwrap();
    assert_eq!(ids(&share, "file"), (7, 8));
    let with_mode = SetattrIn { uid: 9, mode: 0o4755, ..change(flag::FATTR_UID | flag::FATTR_MODE) };
    assert_eq!(share.client().setattr(file.node, &with_mode).unwrap().attr.mode & 0o7777, 0o4755, "the mode comes after the owner");
    share.client().setattr(link, &both).unwrap();

    assert_eq!((ids(&share, "link"), ids(&share, "file")), ((1000, 1001), (9, 8)), "the link itself");
}

#[test]
fn an_owner_that_is_no_id_is_refused() {
    let mut share = Share::new();
    let file = share.make("file");
    let before = share.client().getattr(file.node, None).unwrap().attr;

    for valid in [flag::FATTR_UID, flag::FATTR_GID, flag::FATTR_UID | flag::FATTR_GID] {
        let set = SetattrIn { uid: u32::MAX, gid: u32::MAX, ..change(valid) };
        assert_eq!(errno(share.client().setattr(file.node, &set)), libc::EINVAL, "{valid:#x}");
    }

    assert_eq!(share.client().getattr(file.node, None).unwrap().attr, before);
}

#[test]
fn setattr_sets_times_to_the_nanosecond_or_to_now() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        let link = share.client().symlink(ROOT, "link", "file").unwrap().nodeid;
        let times = SetattrIn {
            atime: 1_000_000_000,
            atimensec: 123_456_789,
            mtime: 2_000_000_000,
            mtimensec: 987_654_321,
            ..change(flag::FATTR_ATIME | flag::FATTR_MTIME)
        };

        let attr = share.client().setattr(file.node, &times).unwrap().attr;
        assert_eq!((attr.atime, attr.atimensec, attr.mtime, attr.mtimensec), (1_000_000_000, 123_456_789, 2_000_000_000, 987_654_321));
        let attr = share.client().setattr(file.node, &SetattrIn { mtime: 5, ..change(flag::FATTR_MTIME) }).unwrap().attr;
        assert_eq!((attr.atime, attr.atimensec, attr.mtime, attr.mtimensec), (1_000_000_000, 123_456_789, 5, 0));
        share.client().setattr(link, &times).unwrap();
        assert_eq!(std::fs::symlink_metadata(share.path("link")).unwrap().mtime(), 2_000_000_000);
        assert_eq!(std::fs::metadata(share.path("file")).unwrap().mtime(), 5, "the link's target");

        share.client().setattr(file.node, &change(flag::FATTR_ATIME | flag::FATTR_ATIME_NOW)).unwrap();
        let accessed = std::fs::metadata(share.path("file")).unwrap().accessed().unwrap();
        assert!(accessed > SystemTime::now() - Duration::from_secs(3600), "{accessed:?}");
        assert_eq!(std::fs::metadata(share.path("file")).unwrap().mtime(), 5);
        let old = SetattrIn { mtime: (-5i64).cast_unsigned(), ..change(flag::FATTR_MTIME) };
        share.client().setattr(file.node, &old).unwrap();
        assert_eq!(std::fs::metadata(share.path("file")).unwrap().mtime(), -5, "before 1970");
        let bad = SetattrIn { mtimensec: 1_000_000_000, ..change(flag::FATTR_MTIME) };
        assert_eq!(errno(share.client().setattr(file.node, &bad)), libc::EINVAL);
    }
}

#[test]
fn nanoseconds_with_a_meaning_of_their_own_on_the_host_are_refused() {
    let mut share = Share::new();
    let file = share.make("file");
    let set = SetattrIn { atime: 5, mtime: 5, ..change(flag::FATTR_ATIME | flag::FATTR_MTIME) };
    share.client().setattr(file.node, &set).unwrap();

    // UTIME_NOW and UTIME_OMIT (man utimensat(2)).
    for nsec in [0x3fff_ffff, 0x3fff_fffe] {
        let bad = SetattrIn { mtimensec: nsec, ..set };
        assert_eq!(errno(share.client().setattr(file.node, &bad)), libc::EINVAL, "{nsec:#x}");
        let bad = SetattrIn { atimensec: nsec, ..set };
        assert_eq!(errno(share.client().setattr(file.node, &bad)), libc::EINVAL, "{nsec:#x}");
    }

    let attr = share.client().getattr(file.node, None).unwrap().attr;
    assert_eq!((attr.atime, attr.mtime), (5, 5));
}

#[test]
fn without_the_option_there_are_no_birth_times_and_no_statx() {
    let mut share = Share::start(Setup { options: &["--birth-times=false"], ..Setup::default() });
    let file = share.make("file");
    for fh in [None, Some(file.fh)] {
        assert_eq!(errno(share.client().statx(file.node, fh, 0xfff)), libc::ENOSYS);
    }
}

#[test]
fn statx_tells_the_birth_time() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        share.client().write(file.node, file.fh, 0, b"12345").unwrap();
        let dir = std::fs::File::open(share.root()).unwrap();
        let wanted = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
        let on_host = rustix::fs::statx(dir, "file", rustix::fs::AtFlags::empty(), wanted).unwrap();
        let device = rustix::fs::makedev(on_host.stx_dev_major, on_host.stx_dev_minor);
        let number = share.number(device, on_host.stx_ino);

        for fh in [None, Some(file.fh)] {
            let st = share.client().statx(file.node, fh, wanted.bits()).unwrap().stat;

            assert_eq!(st.mask & libc::STATX_BTIME, on_host.stx_mask & libc::STATX_BTIME);
            assert_eq!((st.btime.tv_sec, st.btime.tv_nsec), (on_host.stx_btime.tv_sec, on_host.stx_btime.tv_nsec));
            assert_eq!((st.mtime.tv_sec, st.mtime.tv_nsec), (on_host.stx_mtime.tv_sec, on_host.stx_mtime.tv_nsec));
            assert_eq!((st.size, st.ino, u32::from(st.mode), st.nlink), (5, number, libc::S_IFREG | 0o644, 1));
            assert_eq!((st.dev_major, st.dev_minor), (on_host.stx_dev_major, on_host.stx_dev_minor));
        }
        assert_eq!(errno(share.client().statx(99, None, u32::MAX)), libc::ESTALE);
        assert!(share.client().statx(file.node, None, u32::MAX).is_ok(), "bits of the future");
    }
}

#[test]
fn access_goes_by_the_callers_rights() {
    let mut share = Share::new();
    share.put("file", b"");
    std::fs::set_permissions(share.path("file"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let file = share.client().lookup(ROOT, "file").unwrap();
    let mut access = |uid, gid, mask| {
        (share.client().caller.uid, share.client().caller.gid) = (uid, gid);
        share.client().access(file.nodeid, mask)
    };

    let (owner, group, stranger) = (file.attr.uid, file.attr.gid, 4321);
    assert_eq!(access(owner, group, 6), Ok(()));
    assert_eq!(access(stranger, group, 4), Ok(()));
    assert_eq!(errno(access(stranger, group, 2)), libc::EACCES);
    assert_eq!(errno(access(stranger, stranger, 4)), libc::EACCES);
    assert_eq!(access(stranger, stranger, 0), Ok(()), "it exists");
    assert_eq!(access(0, 0, 6), Ok(()));
    assert_eq!(errno(access(0, 0, 1)), libc::EACCES, "nobody may execute it");
}

#[test]
fn each_cache_policy_tells_the_guest_how_long_and_what_it_may_keep() {
    let day = 86_400;
    let past_the_cache = flag::FOPEN_DIRECT_IO | flag::FOPEN_PARALLEL_DIRECT_WRITES;
    let cases = [
        ("auto", 1, 0, 0),
        ("always", day, flag::FOPEN_KEEP_CACHE, flag::FOPEN_KEEP_CACHE | flag::FOPEN_CACHE_DIR),
        ("never", 0, past_the_cache, 0),
        ("metadata", day, past_the_cache, flag::FOPEN_KEEP_CACHE | flag::FOPEN_CACHE_DIR),
    ];
    for (policy, seconds, of_file, of_directory) in cases {
        // Whether a FLUSH is wanted is another matter.
        let kept = |open_flags: u32| open_flags & !flag::FOPEN_NOFLUSH;
        let mut share = Share::start_unmounted(Setup { options: &["--cache", policy], ..Setup::default() });
        let c = share.client();
        // A guest that opens directories.
        c.init_with(init::LINUX & !init::NO_OPENDIR_SUPPORT).unwrap();

        let made = c.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
        let node = made.entry.nodeid;
        let found = c.lookup(ROOT, "file").unwrap();
        let dir = c.opendir(ROOT).unwrap();
        let listed = c.readdirplus(ROOT, dir.fh, 0, 4096).unwrap();
        let listed = listed.iter().find(|e| e.name == b"file").unwrap().entry.unwrap();

        for entry in [made.entry, found, listed] {
            assert_eq!((entry.entry_valid, entry.attr_valid), (seconds, seconds), "{policy}");
            assert_eq!((entry.entry_valid_nsec, entry.attr_valid_nsec), (0, 0), "{policy}");
        }
        assert_eq!(c.getattr(node, None).unwrap().attr_valid, seconds, "{policy}");
        assert_eq!(c.statx(node, None, 0xfff).unwrap().attr_valid, seconds, "{policy}");
        assert_eq!(c.truncate(node, None, 0).unwrap().attr_valid, seconds, "{policy}");
        assert_eq!(kept(made.open.open_flags), of_file, "{policy}");
        assert_eq!(kept(c.open(node, libc::O_RDONLY).unwrap().open_flags), of_file, "{policy}");
        assert_eq!(dir.open_flags, of_directory, "{policy}");
    }
}

#[test]
fn without_the_option_extended_attributes_are_enosys() {
    let mut share = Share::on_disk(&[]);
    let file = share.make("file");
    let c = share.client();

    assert_eq!(errno(c.getxattr(file.node, "user.a", 100)), libc::ENOSYS);
    assert_eq!(errno(c.getxattr_size(file.node, "user.a")), libc::ENOSYS);
    assert_eq!(errno(c.setxattr(file.node, "user.a", b"x", 0)), libc::ENOSYS);
    assert_eq!(errno(c.listxattr(file.node, 100)), libc::ENOSYS);
    assert_eq!(errno(c.removexattr(file.node, "user.a")), libc::ENOSYS);
}

#[test]
fn extended_attributes_are_those_of_the_host_file() {
    let mut share = Share::on_disk(&["--xattr"]);
    let file = share.make("file");
    let path = share.path("file");
    let on_host = |name: &str| {
        let mut value = [0u8; 100];
        rustix::fs::getxattr(&path, name, &mut value).map(|len| value[..len].to_vec())
    };
    rustix::fs::setxattr(&path, "user.host", b"of the host", rustix::fs::XattrFlags::empty()).unwrap();
    let c = share.client();

    c.setxattr(file.node, "user.a", b"value\0with NUL", 0).unwrap();
    assert_eq!(on_host("user.a").unwrap(), b"value\0with NUL");
    c.setxattr(file.node, "user.empty", b"", 0).unwrap();
    assert_eq!(on_host("user.empty").unwrap(), b"");
    assert_eq!(errno(c.setxattr(file.node, "user.a", b"x", libc::XATTR_CREATE.cast_unsigned())), libc::EEXIST);
    assert_eq!(errno(c.setxattr(file.node, "user.none", b"x", libc::XATTR_REPLACE.cast_unsigned())), libc::ENODATA);

    assert_eq!(c.getxattr(file.node, "user.a", 100).unwrap(), b"value\0with NUL");
    assert_eq!(c.getxattr(file.node, "user.a", 14).unwrap().len(), 14, "exactly its length");
    assert_eq!(c.getxattr_size(file.node, "user.a").unwrap(), 14);
    assert_eq!(errno(c.getxattr(file.node, "user.a", 13)), libc::ERANGE);
    assert_eq!(errno(c.getxattr(file.node, "user.none", 100)), libc::ENODATA);
    assert_eq!(errno(c.getxattr_size(file.node, "user.none")), libc::ENODATA);
    assert_eq!(c.getxattr(file.node, "user.empty", 100).unwrap(), b"");

    let mut names: Vec<_> = c.listxattr(file.node, 1000).unwrap().split_inclusive(|b| *b == 0).map(<[u8]>::to_vec).collect();
    names.retain(|n| n.starts_with(b"user."));
    names.sort();
    assert_eq!(names, [&b"user.a\0"[..], b"user.empty\0", b"user.host\0"]);
    let len = c.listxattr_size(file.node).unwrap();
    assert_eq!(c.listxattr(file.node, len).unwrap().len() as u32, len);
    assert_eq!(errno(c.listxattr(file.node, len - 1)), libc::ERANGE);

    c.removexattr(file.node, "user.host").unwrap();
    assert_eq!(on_host("user.host").unwrap_err(), rustix::io::Errno::NODATA);
    assert_eq!(errno(c.removexattr(file.node, "user.host")), libc::ENODATA);
    for bad in ["", &"user.".repeat(60)] {
        assert_eq!(errno(c.setxattr(file.node, bad, b"x", 0)), libc::ERANGE);
        assert_eq!(errno(c.getxattr(file.node, bad, 10)), libc::ERANGE);
    }
    assert_eq!(errno(c.setxattr(file.node, "nonsense.a", b"x", 0)), libc::EOPNOTSUPP);
    c.setxattr(ROOT, "user.dir", b"of a directory", 0).unwrap();
    assert_eq!(c.getxattr(ROOT, "user.dir", 100).unwrap(), b"of a directory");
}

#[test]
fn a_long_attribute_value_takes_the_form_that_init_agreed_on() {
    let mut share = Share::on_disk(&["--xattr"]);
    let file = share.make("file");
    let value = share::noise(1, 1500);

    share.client().setxattr(file.node, "user.long", &value, 0).unwrap();

    assert_eq!(share.client().getxattr(file.node, "user.long", 65_536).unwrap(), value);
    let too_long = vec![0; 65_537];
    assert_eq!(errno(share.client().setxattr(file.node, "user.long", &too_long, 0)), libc::E2BIG);
}

#[test]
fn acls_are_neither_shown_nor_set() {
    let mut share = Share::on_disk(&["--xattr"]);
    let file = share.make("file");
    let set = rustix::fs::setxattr(share.path("file"), "system.posix_acl_access", &acl(), rustix::fs::XattrFlags::empty());
    let c = share.client();
    assert!(c.init_flags() & init::POSIX_ACL == 0);

    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        assert_eq!(errno(c.setxattr(file.node, name, &acl(), 0)), libc::EOPNOTSUPP);
        assert_eq!(errno(c.getxattr(file.node, name, 100)), libc::EOPNOTSUPP);
        assert_eq!(errno(c.getxattr_size(file.node, name)), libc::EOPNOTSUPP);
        assert_eq!(errno(c.removexattr(file.node, name)), libc::EOPNOTSUPP);
    }

    assert!(set.is_ok() || set == Err(rustix::io::Errno::OPNOTSUPP), "{set:?}");
    let names = c.listxattr(file.node, 1000).unwrap();
    assert!(!String::from_utf8_lossy(&names).contains("posix_acl"), "{names:?}");
}

#[test]
fn extended_attributes_of_symlinks_and_special_files_are_their_own() {
    let mut share = Share::on_disk(&["--xattr"]);
    share.put("target", b"");
    rustix::fs::setxattr(share.path("target"), "user.a", b"the target's", rustix::fs::XattrFlags::empty()).unwrap();
    let link = share.client().symlink(ROOT, "link", "target").unwrap().nodeid;
    let fifo = share.client().mknod(ROOT, "fifo", libc::S_IFIFO | 0o644, 0).unwrap().nodeid;
    let c = share.client();

    for node in [link, fifo] {
        // Files of these types have no user attributes (man xattr(7)).
        assert_eq!(errno(c.getxattr(node, "user.a", 100)), libc::ENODATA);
        assert_eq!(errno(c.setxattr(node, "user.a", b"x", 0)), libc::EPERM);
        assert!(!String::from_utf8_lossy(&c.listxattr(node, 1000).unwrap()).contains("user.a"));
    }
}
