//! POSIX ACLs: agreed on as a whole or not at all; the host then applies default ACLs or the umask.

use std::os::unix::fs::{PermissionsExt, chown};

use gatherfs_support::guest::fuse::{ROOT, flag, init};
use gatherfs_support::share::{Scratch, Setup, Share, errno, is_root};

use super::{listed, mode, on_host, put, set_mode};

const ACL_FLAGS: u64 = init::POSIX_ACL | init::DONT_MASK | init::SETXATTR_EXT;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// An ACL (man acl(5)): user::rwx, user:1000:r-x, group::r-x, mask::rwx, other::r--.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [(1, 7, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 4, u32::MAX)];
    let bytes = |&(tag, perm, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    [2u32.to_le_bytes().to_vec()].into_iter().chain(entries.iter().map(bytes)).flatten().collect()
}

fn acl_share(option: &str) -> Share {
    Share::on_disk(&[option])
}

#[test]
fn acls_are_agreed_on_as_a_whole() {
    for option in ["--posix-acl", "--posix-acl=always", "--posix-acl=auto"] {
        assert_eq!(acl_share(option).client().init_flags() & ACL_FLAGS, ACL_FLAGS, "{option}");
    }
    assert_eq!(acl_share("--posix-acl=never").client().init_flags() & ACL_FLAGS, 0);
    for missing in [init::POSIX_ACL, init::DONT_MASK, init::SETXATTR_EXT] {
        for (option, refused) in [("--posix-acl=auto", false), ("--posix-acl=always", true)] {
            let directory = Scratch::on_disk();
            let mut share = Share::start_unmounted(Setup { options: &[option], directory, ..Setup::default() });
            let init = share.client().init_with(init::LINUX & !missing);
            if refused {
                assert_eq!(errno(init), libc::EPROTO);
                assert!(share.client().init().is_ok(), "another guest may have them");
            } else {
                init.unwrap();
                assert_eq!(share.client().init_flags() & ACL_FLAGS, 0, "{missing:#x}");
                let file = share.make("file");
                assert_eq!(errno(share.client().setxattr(file.node, ACCESS, &acl(), 0)), libc::EOPNOTSUPP);
            }
        }
    }
}

#[test]
fn acls_are_those_of_the_host_file() {
    let mut share = acl_share("--posix-acl");
    let file = share.make("file");
    let c = share.client();

    c.setxattr(file.node, ACCESS, &acl(), 0).unwrap();
    assert_eq!(c.getxattr(file.node, ACCESS, 100).unwrap(), acl());
    assert_eq!(c.getattr(file.node, None).unwrap().attr.mode & 0o7777, 0o774, "the mask is the group's bits");
    assert_eq!(listed(c, file.node), [ACCESS]);
    c.removexattr(file.node, ACCESS).unwrap();
    assert_eq!(listed(c, file.node), [""; 0]);
    c.setxattr(ROOT, DEFAULT, &acl(), 0).unwrap();
    assert_eq!(on_host(share.root(), DEFAULT).unwrap(), acl());
}

#[test]
fn a_default_acl_takes_the_umasks_place_and_without_one_the_umask_counts() {
    let mut share = acl_share("--posix-acl");
    std::fs::create_dir(share.path("dir")).unwrap();
    put(&share, "dir", DEFAULT, &acl());
    let c = share.client();
    c.umask = 0o077;
    let dir = c.lookup(ROOT, "dir").unwrap().nodeid;
    let modes = |c: &mut gatherfs_support::guest::client::Client, parent| {
        [
            c.create(parent, "file", 0o666, libc::O_RDWR).unwrap().entry.attr,
            c.mknod(parent, "fifo", libc::S_IFIFO | 0o666, 0).unwrap().attr,
            c.mkdir(parent, "sub", 0o777).unwrap().attr,
            c.tmpfile(parent, 0o666, libc::O_RDWR).unwrap().entry.attr,
        ]
        .map(|attr| attr.mode & 0o7777)
    };

    assert_eq!(modes(c, ROOT), [0o600, 0o600, 0o700, 0o600]);
    assert_eq!(modes(c, dir), [0o664, 0o664, 0o774, 0o664]);
    c.umask = 0;
    assert_eq!(c.mkdir(ROOT, "open", 0o777).unwrap().attr.mode & 0o7777, 0o777, "the umask was the request's only");

    assert_eq!(on_host(&share.path("dir/sub"), DEFAULT).unwrap(), acl(), "directories pass it on");
    assert!(on_host(&share.path("dir/file"), ACCESS).is_ok() && on_host(&share.path("file"), ACCESS).is_err());
}

/// An ACL of these permissions; None without the entries of single users and the mask.
fn acl_of(user: u16, group: u16, mask: Option<u16>, other: u16) -> Vec<u8> {
    let mut entries = vec![(1u16, user, u32::MAX), (4, group, u32::MAX), (0x20, other, u32::MAX)];
    if let Some(mask) = mask {
        entries.insert(1, (2, 6, 1000));
        entries.insert(3, (0x10, mask, u32::MAX));
    }
    let bytes = |(tag, perm, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    [2u32.to_le_bytes().to_vec()].into_iter().chain(entries.iter().map(bytes)).flatten().collect()
}

#[test]
fn whatever_the_acl_mode_and_umask_new_files_are_as_the_host_makes_them() {
    use rustix::fs::{CWD, FileType, Mode, mkdirat, mknodat};
    // The umask of this thread alone.
    gatherfs::sys::process::unshare(rustix::thread::UnshareFlags::FS).unwrap();
    let mut share = acl_share("--posix-acl");
    let twin = Scratch::on_disk();
    let defaults =
        [None, Some(acl_of(7, 5, None, 0)), Some(acl_of(6, 7, Some(5), 1)), Some(acl_of(0, 0, Some(0), 7)), Some(acl_of(5, 2, Some(7), 4))];
    for (i, default) in defaults.iter().enumerate() {
        let dir = format!("dir{i}");
        for root in [share.root(), twin.path()] {
            std::fs::create_dir(root.join(&dir)).unwrap();
            std::fs::set_permissions(root.join(&dir), std::fs::Permissions::from_mode(0o755)).unwrap();
            if let Some(acl) = default {
                rustix::fs::setxattr(root.join(&dir), DEFAULT, acl, rustix::fs::XattrFlags::empty()).unwrap();
            }
        }
        let node = share.client().lookup(ROOT, &dir).unwrap().nodeid;
        for (mode, umask) in [(0o777, 0), (0o666, 0o022), (0o640, 0o077), (0o1753, 0o027), (0o000, 0o777)] {
            let name = |kind: &str| format!("{kind}-{mode:o}-{umask:o}");
            let c = share.client();
            c.umask = umask;
            c.create(node, &name("file"), mode, libc::O_RDWR).unwrap();
            c.mkdir(node, &name("dir"), mode).unwrap();
            c.mknod(node, &name("fifo"), libc::S_IFIFO | mode, 0).unwrap();
            let at = |kind: &str| twin.path().join(&dir).join(name(kind));
            let old = rustix::process::umask(Mode::from_raw_mode(umask));
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::openat(CWD, at("file"), rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR, mode).unwrap();
            mkdirat(CWD, at("dir"), mode).unwrap();
            mknodat(CWD, at("fifo"), FileType::Fifo, mode, 0).unwrap();
            rustix::process::umask(old);
            for kind in ["file", "dir", "fifo"] {
                let (ours, hosts) = (share.root().join(&dir).join(name(kind)), at(kind));
                let look = |path: &std::path::Path| {
                    let mode = std::fs::symlink_metadata(path).unwrap().permissions().mode();
                    (mode, on_host(path, ACCESS).ok(), on_host(path, DEFAULT).ok())
                };
                assert_eq!(look(&ours), look(&hosts), "{dir} {}", name(kind));
            }
        }
    }
}

#[test]
fn a_new_access_acl_takes_setgid_away_where_the_guest_says_so() {
    if !is_root() {
        return;
    }
    let mut share = acl_share("--posix-acl");
    let file = share.make("file");
    chown(share.path("file"), Some(1000), Some(2000)).unwrap();
    let mut set = |flags: u32, name: &str| {
        set_mode(&share, "file", 0o6755);
        let c = share.client();
        c.setxattr_flags = flags;
        let done = c.setxattr(file.node, name, if name == "user.a" { b"x".to_vec() } else { acl() }.as_slice(), 0);
        (done.is_ok(), mode(&share, "file"))
    };

    assert_eq!(set(0, ACCESS), (true, 0o6774));
    assert_eq!(set(flag::SETXATTR_ACL_KILL_SGID, ACCESS), (true, 0o4774));
    assert_eq!(set(flag::SETXATTR_ACL_KILL_SGID, "user.a"), (true, 0o6755), "no ACL");
    assert_eq!(set(flag::SETXATTR_ACL_KILL_SGID, DEFAULT), (false, 0o6755), "a file has no default ACL");
}

#[test]
fn acls_that_a_map_renames_are_kept_for_the_guest_to_enforce() {
    let mut share = Share::on_disk(&["--posix-acl", "--xattrmap", ":map:system.:user.v.:"]);
    let file = share.make("file");
    set_mode(&share, "file", 0o2755);
    let c = share.client();
    c.setxattr_flags = flag::SETXATTR_ACL_KILL_SGID;

    c.setxattr(file.node, ACCESS, &acl(), 0).unwrap();

    assert_eq!(c.getxattr(file.node, ACCESS, 100).unwrap(), acl());
    assert_eq!(listed(c, file.node), [ACCESS]);
    assert_eq!(mode(&share, "file"), 0o755, "setgid goes by the guest's name of the ACL");
    assert_eq!(on_host(&share.path("file"), "user.v.system.posix_acl_access").unwrap(), acl());
    assert!(on_host(&share.path("file"), ACCESS).is_err());
}

#[test]
fn acls_without_the_option_stay_the_hosts_and_new_files_still_inherit_them() {
    let mut share = Share::on_disk(&["--xattr"]);
    let everyone = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(share.root(), everyone).unwrap();
    put(&share, ".", DEFAULT, &acl());
    let c = share.client();
    let made = c.create(ROOT, "file", 0o666, libc::O_RDWR).unwrap();

    assert_eq!(made.entry.attr.mode & 0o7777, 0o664 & !0o022, "the guest applied its umask");
    assert!(on_host(&share.path("file"), ACCESS).is_ok());
    assert_eq!(errno(share.client().getxattr(made.entry.nodeid, ACCESS, 100)), libc::EOPNOTSUPP);
}
