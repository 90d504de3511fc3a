//! Operations on names: LOOKUP and FORGET, what makes a name, moves it and takes it away.

use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use gatherfs_support::daemon::eventually;
use gatherfs_support::guest;
use gatherfs_support::guest::fuse::{ForgetOne, ROOT, opcode};
use gatherfs_support::share::{self, Setup, Share, change, errno};

#[test]
fn lookup_tells_node_type_size_and_owner_of_a_name() {
    let mut share = Share::new();
    share.put("file", b"seven b");
    let on_host = std::fs::metadata(share.path("file")).unwrap();

    let entry = share.client().lookup(ROOT, "file").unwrap();

    assert_eq!((entry.attr.ino, entry.attr.size, entry.attr.mode), (on_host.ino(), 7, on_host.mode()));
    assert_eq!((entry.attr.uid, entry.attr.gid, entry.attr.nlink), (on_host.uid(), on_host.gid(), 1));
    assert!(entry.nodeid > ROOT);
    assert_eq!(errno(share.client().lookup(ROOT, "other")), libc::ENOENT);
    assert_eq!(errno(share.client().lookup(entry.nodeid, "x")), libc::ENOTDIR);
}

#[test]
fn names_of_more_than_one_component_are_refused_everywhere() {
    let mut share = Share::new();
    share.put("file", b"");
    std::fs::create_dir(share.path("dir")).unwrap();
    let node = share.client().lookup(ROOT, "file").unwrap().nodeid;
    let c = share.client();

    for bad in ["", ".", "..", "dir/x", "/", "/etc", "../x"] {
        if !bad.starts_with('.') || bad.len() > 2 {
            assert_eq!(errno(c.lookup(ROOT, bad)), libc::EINVAL, "LOOKUP {bad:?}");
        }
        assert_eq!(errno(c.create(ROOT, bad, 0o644, libc::O_RDWR)), libc::EINVAL, "CREATE {bad:?}");
        assert_eq!(errno(c.mkdir(ROOT, bad, 0o755)), libc::EINVAL, "MKDIR {bad:?}");
        assert_eq!(errno(c.mknod(ROOT, bad, libc::S_IFREG | 0o644, 0)), libc::EINVAL, "MKNOD {bad:?}");
        assert_eq!(errno(c.symlink(ROOT, bad, "x")), libc::EINVAL, "SYMLINK {bad:?}");
        assert_eq!(errno(c.link(node, ROOT, bad)), libc::EINVAL, "LINK {bad:?}");
        assert_eq!(errno(c.unlink(ROOT, bad)), libc::EINVAL, "UNLINK {bad:?}");
        assert_eq!(errno(c.rmdir(ROOT, bad)), libc::EINVAL, "RMDIR {bad:?}");
        assert_eq!(errno(c.rename(ROOT, bad, ROOT, "y")), libc::EINVAL, "RENAME from {bad:?}");
        assert_eq!(errno(c.rename2((ROOT, "file"), (ROOT, bad), 0)), libc::EINVAL, "RENAME2 to {bad:?}");
    }
    let long = "x".repeat(256);
    assert_eq!(errno(c.lookup(ROOT, &long)), libc::ENAMETOOLONG);
    assert_eq!(errno(c.mkdir(ROOT, &long, 0o755)), libc::ENAMETOOLONG);
    assert!(c.mkdir(ROOT, &long[..255], 0o755).is_ok());
}

#[test]
fn a_symlink_is_looked_up_itself_and_nothing_is_reached_through_it() {
    let mut share = Share::new();
    let outside = share.outside("secret");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("key"), b"do not touch").unwrap();
    symlink(&outside, share.path("to-dir")).unwrap();
    symlink(outside.join("key"), share.path("to-file")).unwrap();
    symlink(outside.join("new"), share.path("dangling")).unwrap();
    let c = share.client();

    let to_dir = c.lookup(ROOT, "to-dir").unwrap();
    let to_file = c.lookup(ROOT, "to-file").unwrap();
    assert_eq!(to_dir.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(to_file.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(c.readlink(to_dir.nodeid).unwrap(), outside.to_str().unwrap().as_bytes());

    // As a directory.
    let dir = to_dir.nodeid;
    assert_eq!(errno(c.lookup(dir, "key")), libc::ENOTDIR);
    assert_eq!(errno(c.create(dir, "x", 0o644, libc::O_RDWR)), libc::ENOTDIR);
    assert_eq!(errno(c.mkdir(dir, "x", 0o755)), libc::ENOTDIR);
    assert_eq!(errno(c.unlink(dir, "key")), libc::ENOTDIR);
    assert_eq!(errno(c.rename(dir, "key", ROOT, "key")), libc::ENOTDIR);
    assert_eq!(errno(c.link(to_file.nodeid, dir, "x")), libc::ENOTDIR);
    assert_eq!(errno(c.opendir(dir)), libc::ENOTDIR);
    // As a file.
    assert_eq!(errno(c.open(to_file.nodeid, libc::O_RDWR | libc::O_TRUNC)), libc::EBADF);
    assert_eq!(errno(c.create(ROOT, "to-file", 0o644, libc::O_RDWR | libc::O_TRUNC)), libc::EBADF);
    assert_eq!(errno(c.create(ROOT, "dangling", 0o644, libc::O_RDWR)), libc::EBADF);
    assert_eq!(errno(c.create(ROOT, "dangling", 0o644, libc::O_RDWR | libc::O_EXCL)), libc::EEXIST);
    assert_eq!(errno(c.truncate(to_file.nodeid, None, 0)), libc::EINVAL);
    assert_eq!(
        errno(c.setattr(to_file.nodeid, &guest::fuse::SetattrIn { mode: 0, ..change(guest::fuse::flag::FATTR_MODE) })),
        libc::EOPNOTSUPP
    );
    c.unlink(ROOT, "to-file").unwrap();

    assert_eq!(std::fs::read(outside.join("key")).unwrap(), b"do not touch");
    let left: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["key"]);
}

#[test]
fn a_directory_that_the_host_replaces_by_a_symlink_stays_the_directory() {
    let mut share = Share::new();
    let outside = share.outside("secret");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("name"), b"outside").unwrap();
    std::fs::create_dir(share.path("dir")).unwrap();
    share.put("dir/name", b"in");
    let dir = share.client().lookup(ROOT, "dir").unwrap().nodeid;

    std::fs::rename(share.path("dir"), share.path("moved")).unwrap();
    symlink(&outside, share.path("dir")).unwrap();

    assert_eq!(share.client().lookup(dir, "name").unwrap().attr.size, 2);
    share.client().create(dir, "new", 0o644, libc::O_RDWR).unwrap();
    assert!(share.path("moved/new").exists() && !outside.join("new").exists());
}

#[test]
fn hard_links_share_one_node_and_count() {
    let mut share = Share::new();
    share.put("one", b"");
    std::fs::create_dir(share.path("dir")).unwrap();
    let one = share.client().lookup(ROOT, "one").unwrap();
    let dir = share.client().lookup(ROOT, "dir").unwrap().nodeid;

    let two = share.client().link(one.nodeid, dir, "two").unwrap();

    assert_eq!((two.nodeid, two.attr.nlink), (one.nodeid, 2));
    assert_eq!(share.client().lookup(dir, "two").unwrap().nodeid, one.nodeid);
    assert_eq!(errno(share.client().link(one.nodeid, dir, "two")), libc::EEXIST);
    assert_eq!(errno(share.client().link(dir, ROOT, "dir2")), libc::EPERM, "a directory has one name");
    share.client().unlink(ROOT, "one").unwrap();
    assert_eq!(share.client().getattr(one.nodeid, None).unwrap().attr.nlink, 1);
    assert_eq!(std::fs::metadata(share.path("dir/two")).unwrap().ino(), one.attr.ino);
}

#[test]
fn a_link_to_a_symlink_is_another_name_of_the_symlink() {
    let mut share = Share::new();
    share.put("target", b"");
    let first = share.client().symlink(ROOT, "first", "target").unwrap();

    let second = share.client().link(first.nodeid, ROOT, "second").unwrap();

    assert_eq!((second.nodeid, second.attr.nlink), (first.nodeid, 2));
    assert!(std::fs::symlink_metadata(share.path("second")).unwrap().is_symlink());
}

#[test]
fn symlinks_keep_their_target_as_it_is() {
    let mut share = Share::new();
    let longest = "t".repeat(4095);
    for (name, target) in [("plain", "a/b"), ("up", "../../etc/passwd"), ("long", longest.as_str())] {
        let entry = share.client().symlink(ROOT, name, target).unwrap();
        assert_eq!(share.client().readlink(entry.nodeid).unwrap(), target.as_bytes());
        assert_eq!(std::fs::read_link(share.path(name)).unwrap().to_str(), Some(target));
        assert_eq!(entry.attr.size, target.len() as u64);
    }
    assert_eq!(errno(share.client().symlink(ROOT, "plain", "x")), libc::EEXIST);
    assert_eq!(errno(share.client().symlink(ROOT, "empty", "")), libc::ENOENT);
    assert_eq!(errno(share.client().readlink(ROOT)), libc::EINVAL);
}

#[test]
fn special_files_are_made_and_never_opened() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    // /dev/null, packed as linux/kdev_t.h does.
    let null = 1 << 8 | 3;
    let kinds =
        [("fifo", libc::S_IFIFO, 0), ("socket", libc::S_IFSOCK, 0), ("null", libc::S_IFCHR, null), ("block", libc::S_IFBLK, 7 << 8 | 200)];
    for (name, kind, rdev) in kinds {
        let entry = share.client().mknod(ROOT, name, kind | 0o666, rdev).unwrap();

        assert_eq!((entry.attr.mode, entry.attr.rdev), (kind | 0o644, rdev), "{name}");
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC, libc::O_PATH, libc::O_DIRECTORY] {
            assert_eq!(errno(share.client().open(entry.nodeid, flags)), libc::EBADF, "{name} {flags:#o}");
        }
        assert_eq!(errno(share.client().opendir(entry.nodeid)), libc::ENOTDIR);
        assert_eq!(errno(share.client().create(ROOT, name, 0o644, libc::O_RDWR)), libc::EBADF, "{name}");
        assert_eq!(errno(share.client().create(ROOT, name, 0o644, libc::O_RDWR | libc::O_EXCL)), libc::EEXIST);
        assert_eq!(errno(share.client().truncate(entry.nodeid, None, 0)), libc::EINVAL);
        assert_eq!(errno(share.client().mknod(ROOT, name, kind | 0o666, rdev)), libc::EEXIST);
    }
    assert!(std::fs::symlink_metadata(share.path("fifo")).unwrap().file_type().is_fifo());
    assert!(std::fs::symlink_metadata(share.path("socket")).unwrap().file_type().is_socket());
    assert_eq!(std::fs::symlink_metadata(share.path("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(std::fs::symlink_metadata(share.path("block")).unwrap().rdev(), rustix::fs::makedev(7, 200));
}

#[test]
fn mknod_makes_empty_files_and_refuses_what_has_another_operation() {
    let mut share = Share::new();

    let entry = share.client().mknod(ROOT, "file", libc::S_IFREG | 0o640, 0).unwrap();

    assert_eq!((entry.attr.mode, entry.attr.size), (libc::S_IFREG | 0o640, 0));
    assert!(share.client().open(entry.nodeid, libc::O_RDWR).is_ok());
    for kind in [libc::S_IFDIR, libc::S_IFLNK, libc::S_IFMT] {
        assert_eq!(errno(share.client().mknod(ROOT, "bad", kind | 0o644, 0)), libc::EINVAL);
    }
}

#[test]
fn directories_are_made_and_removed_when_empty() {
    let mut share = Share::new();
    let dir = share.client().mkdir(ROOT, "dir", 0o1755).unwrap();
    assert_eq!(dir.attr.mode, libc::S_IFDIR | 0o1755);
    share.client().mkdir(dir.nodeid, "sub", 0o700).unwrap();
    share.put("file", b"");

    assert_eq!(errno(share.client().mkdir(ROOT, "dir", 0o755)), libc::EEXIST);
    assert_eq!(errno(share.client().rmdir(ROOT, "dir")), libc::ENOTEMPTY);
    assert_eq!(errno(share.client().unlink(ROOT, "dir")), libc::EISDIR);
    assert_eq!(errno(share.client().rmdir(ROOT, "file")), libc::ENOTDIR);
    assert_eq!(errno(share.client().rmdir(ROOT, "none")), libc::ENOENT);
    assert_eq!(errno(share.client().unlink(ROOT, "none")), libc::ENOENT);
    share.client().rmdir(dir.nodeid, "sub").unwrap();
    share.client().rmdir(ROOT, "dir").unwrap();

    assert!(!share.path("dir").exists());
    assert_eq!(errno(share.client().create(dir.nodeid, "late", 0o644, libc::O_RDWR)), libc::ENOENT, "in a removed directory");
}

#[test]
fn rename_moves_and_replaces() {
    let mut share = Share::new();
    share.put("a", b"a");
    share.put("b", b"bb");
    let dir = share.client().mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
    let a = share.client().lookup(ROOT, "a").unwrap().nodeid;

    share.client().rename(ROOT, "a", ROOT, "b").unwrap();
    assert_eq!(share.contents("b"), b"a");
    assert_eq!(share.client().lookup(ROOT, "b").unwrap().nodeid, a, "the node moved along");
    share.client().rename(ROOT, "b", dir, "c").unwrap();
    assert_eq!(share.contents("dir/c"), b"a");

    assert_eq!(errno(share.client().rename(ROOT, "a", ROOT, "x")), libc::ENOENT);
    assert_eq!(errno(share.client().rename(ROOT, "dir", dir, "self")), libc::EINVAL);
    share.put("file", b"");
    assert_eq!(errno(share.client().rename(ROOT, "file", ROOT, "dir")), libc::EISDIR);
    assert_eq!(errno(share.client().rename(ROOT, "dir", ROOT, "file")), libc::ENOTDIR);
}

#[test]
fn rename2_keeps_to_its_flags() {
    let mut share = Share::new();
    share.put("a", b"a");
    share.put("b", b"b");
    let c = share.client();

    assert_eq!(errno(c.rename2((ROOT, "a"), (ROOT, "b"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    c.rename2((ROOT, "a"), (ROOT, "b"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((share.contents("a"), share.contents("b")), (b"b".to_vec(), b"a".to_vec()));
    let c = share.client();
    assert_eq!(errno(c.rename2((ROOT, "a"), (ROOT, "none"), libc::RENAME_EXCHANGE)), libc::ENOENT);
    c.rename2((ROOT, "a"), (ROOT, "c"), libc::RENAME_NOREPLACE).unwrap();
    for flags in [libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE, 1 << 3, u32::MAX] {
        assert_eq!(errno(c.rename2((ROOT, "b"), (ROOT, "c"), flags)), libc::EINVAL, "{flags:#x}");
    }
    assert_eq!(share.contents("c"), b"b");
}

#[test]
fn rename_over_an_open_file_keeps_the_handle() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        share.put("old", b"old content");
        share.put("new", b"new content");
        let old = share.open("old", libc::O_RDWR);

        share.client().rename(ROOT, "new", ROOT, "old").unwrap();

        assert_eq!(share.client().read(old.node, old.fh, 0, 100).unwrap(), b"old content");
        share.client().write(old.node, old.fh, 0, b"OLD").unwrap();
        assert_eq!(share.contents("old"), b"new content");
        assert_ne!(share.client().lookup(ROOT, "old").unwrap().nodeid, old.node);
    }
}

#[test]
fn create_makes_and_opens_a_file_or_opens_the_one_that_is_there() {
    let mut share = Share::forgetting();

    let made = share.client().create(ROOT, "file", 0o4751, libc::O_RDWR | libc::O_EXCL).unwrap();
    assert_eq!((made.entry.attr.mode, made.entry.attr.size), (libc::S_IFREG | 0o4751, 0));
    share.client().write(made.entry.nodeid, made.open.fh, 0, b"content").unwrap();

    assert_eq!(errno(share.client().create(ROOT, "file", 0o600, libc::O_RDWR | libc::O_EXCL)), libc::EEXIST);
    let again = share.client().create(ROOT, "file", 0o600, libc::O_RDONLY).unwrap();
    assert_eq!((again.entry.nodeid, again.entry.attr.size), (made.entry.nodeid, 7));
    assert_ne!(again.open.fh, made.open.fh);
    assert_eq!(again.entry.attr.mode & 0o777, 0o751, "the mode is for new files");
    let emptied = share.client().create(ROOT, "file", 0o600, libc::O_RDWR | libc::O_TRUNC).unwrap();
    assert_eq!(share.client().getattr(emptied.entry.nodeid, Some(emptied.open.fh)).unwrap().attr.size, 0);
    std::fs::create_dir(share.path("dir")).unwrap();
    assert_eq!(errno(share.client().create(ROOT, "dir", 0o644, libc::O_RDONLY)), libc::EBADF);
    // The lookup of a CREATE that failed to open is not counted: one FORGET each brings the node down.
    share.client().forget(made.entry.nodeid, 3).unwrap();
    assert_eq!(errno(share.client().getattr(made.entry.nodeid, None)), libc::ESTALE);
}

#[test]
fn a_guest_whose_overlayfs_does_not_bear_it_has_no_tmpfile() {
    let cases = [(&[][..], 45, false), (&[], 46, true), (&["--tmpfile", "always"], 45, true), (&["--tmpfile", "never"], 46, false)];
    for (options, minor, offered) in cases {
        let mut share = Share::start_unmounted(Setup { options, ..Setup::default() });
        share.client().init_as(minor, guest::fuse::init::LINUX).unwrap();
        let made = share.client().tmpfile(ROOT, 0o640, libc::O_RDWR);
        if offered {
            assert!(made.is_ok(), "{options:?} and 7.{minor}");
        } else {
            assert_eq!(errno(made), libc::ENOSYS, "{options:?} and 7.{minor}");
        }
    }
}

#[test]
fn a_tmpfile_has_no_name_until_it_is_linked() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let made = share.client().tmpfile(ROOT, 0o640, libc::O_RDWR).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        assert_eq!((made.entry.attr.nlink, made.entry.attr.mode), (0, libc::S_IFREG | 0o640));
        share.client().write(node, fh, 0, b"nameless").unwrap();
        assert_eq!(std::fs::read_dir(share.root()).unwrap().count(), 0);

        let linked = share.client().link(node, ROOT, "named").unwrap();

        assert_eq!((linked.nodeid, linked.attr.nlink, linked.attr.size), (node, 1, 8));
        assert_eq!(share.contents("named"), b"nameless");
        let exclusive = share.client().tmpfile(ROOT, 0o640, libc::O_RDWR | libc::O_EXCL).unwrap();
        assert_eq!(errno(share.client().link(exclusive.entry.nodeid, ROOT, "never")), libc::ENOENT);
    }
}

#[test]
fn a_node_lives_until_each_of_its_lookups_is_forgotten() {
    let mut share = Share::forgetting();
    share.put("file", b"x");
    let node = share.client().lookup(ROOT, "file").unwrap().nodeid;
    for _ in 0..4 {
        assert_eq!(share.client().lookup(ROOT, "file").unwrap().nodeid, node);
    }

    share.client().forget(node, 4).unwrap();
    assert_eq!(share.client().getattr(node, None).unwrap().attr.size, 1);
    share.client().forget(node, 1).unwrap();

    assert_eq!(errno(share.client().getattr(node, None)), libc::ESTALE);
    assert_eq!(errno(share.client().open(node, libc::O_RDONLY)), libc::ESTALE);
    let again = share.client().lookup(ROOT, "file").unwrap().nodeid;
    assert_ne!(again, node, "an id is not given twice");
    assert_eq!(errno(share.client().getattr(node, None)), libc::ESTALE);
}

/// What Linux does where a file that it has looked up is gone: it looks the name up once more, and gives up if that file is gone too.
#[test]
fn a_file_that_is_replaced_after_each_lookup_is_there_at_the_second_try() {
    if !share::is_root() {
        return;
    }
    for mut share in Share::with_file_handles() {
        let replace = |share: &Share, contents: &str| {
            share.put("next", contents.as_bytes());
            std::fs::rename(share.path("next"), share.path("file")).unwrap();
        };
        replace(&share, "first");
        let first = share.client().lookup(ROOT, "file").unwrap().nodeid;
        replace(&share, "second");
        // ENOMEM is what ext4 answers, rarely, while another process makes a file with this very number.
        let is_stale = || errno(share.client().open(first, libc::O_RDWR)) == libc::ESTALE;
        assert!(eventually(is_stale));
        let second = share.client().lookup(ROOT, "file").unwrap().nodeid;
        replace(&share, "third");
        assert_eq!(share.client().getattr(second, None).unwrap().attr.size, 6);
        let file = share.client().open(second, libc::O_RDWR).unwrap().fh;
        assert_eq!(share.client().read(second, file, 0, 64).unwrap(), b"second");
        share.client().release(second, file).unwrap();
        share.client().forget(second, 1).unwrap();
        assert_eq!(errno(share.client().getattr(second, None)), libc::ESTALE, "held no longer than the guest knows it");
    }
}

#[test]
fn batch_forget_takes_off_every_node_it_names_and_leaves_the_root() {
    let mut share = Share::forgetting();
    let mut forgets = vec![ForgetOne { nodeid: ROOT, nlookup: u64::MAX }, ForgetOne { nodeid: 0xdead_beef, nlookup: 1 }];
    let mut nodes = Vec::new();
    for i in 0..100 {
        let name = format!("file{i}");
        share.put(&name, b"");
        let node = share.client().lookup(ROOT, &name).unwrap().nodeid;
        share.client().lookup(ROOT, &name).unwrap();
        // Every other node keeps one lookup.
        forgets.push(ForgetOne { nodeid: node, nlookup: 1 + i % 2 });
        nodes.push(node);
    }

    share.client().batch_forget(&forgets).unwrap();

    for (i, &node) in nodes.iter().enumerate() {
        let left = share.client().getattr(node, None).map(|_| ());
        assert_eq!(left, if i % 2 == 0 { Ok(()) } else { Err(libc::ESTALE.into()) }, "node {i}");
    }
    assert!(share.client().getattr(ROOT, None).is_ok());
    assert!(share.client().lookup(ROOT, "file7").is_ok());
}

#[test]
fn an_open_file_outlives_its_node() {
    let mut share = Share::new();
    let file = share.make("file");
    share.client().write(file.node, file.fh, 0, b"data").unwrap();

    share.client().forget(file.node, 1).unwrap();

    assert_eq!(share.client().read(file.node, file.fh, 0, 10).unwrap(), b"data");
    share.client().release(file.node, file.fh).unwrap();
}

#[test]
fn a_file_with_the_inode_number_of_a_deleted_one_is_another_node() {
    // ext4 gives the number of a deleted file to the next one at once; birth times tick in milliseconds.
    let mut share = Share::on_disk(&[]);
    let mut reused = 0;
    for round in 0..50 {
        let name = format!("file{round}");
        let old = share.client().create(ROOT, &name, 0o644, libc::O_RDWR).unwrap();
        share.client().release(old.entry.nodeid, old.open.fh).unwrap();
        share.client().unlink(ROOT, &name).unwrap();
        let new = share.client().create(ROOT, &name, 0o644, libc::O_RDWR).unwrap();
        share.client().write(new.entry.nodeid, new.open.fh, 0, b"new").unwrap();
        share.client().release(new.entry.nodeid, new.open.fh).unwrap();

        reused += u32::from(new.entry.attr.ino == old.entry.attr.ino);
        assert_ne!(new.entry.nodeid, old.entry.nodeid, "round {round}");
        let looked_up = share.client().lookup(ROOT, &name).unwrap().nodeid;
        assert_eq!(looked_up, new.entry.nodeid);
        let open = share.client().open(looked_up, libc::O_RDWR).unwrap();
        assert_eq!(share.client().read(looked_up, open.fh, 0, 10).unwrap(), b"new");
        // The old one is gone, or kept as it was: never the new one.
        match share.client().open(old.entry.nodeid, libc::O_RDONLY) {
            Ok(kept) => assert_eq!(share.client().read(old.entry.nodeid, kept.fh, 0, 10).unwrap(), b""),
            // ENOMEM is what ext4 answers, rarely, while another process makes a file with this very number.
            Err(error) => assert!(matches!(error.errno(), Some(libc::ESTALE | libc::ENOMEM)), "{error}"),
        }
    }
    println!("{reused} of 50 inode numbers were given again");
}

#[test]
fn a_host_file_with_the_inode_number_of_a_deleted_one_is_another_node() {
    let mut share = Share::on_disk(&[]);
    for round in 0..50 {
        let name = format!("file{round}");
        share.put(&name, b"old");
        let old = share.client().lookup(ROOT, &name).unwrap().nodeid;
        std::fs::remove_file(share.path(&name)).unwrap();
        share.put(&name, b"new!");

        let new = share.client().lookup(ROOT, &name).unwrap();

        assert_ne!(new.nodeid, old, "round {round}");
        let open = share.client().open(new.nodeid, libc::O_RDONLY).unwrap();
        assert_eq!(share.client().read(new.nodeid, open.fh, 0, 10).unwrap(), b"new!");
    }
}

#[test]
fn after_destroy_nothing_is_served_until_the_next_init() {
    let mut share = Share::new();
    let file = share.make("file");

    share.client().destroy().unwrap();

    assert_eq!(errno(share.client().lookup(ROOT, "file")), libc::EIO);
    share.client().init().unwrap();
    assert_eq!(errno(share.client().getattr(file.node, None)), libc::ESTALE);
    assert_eq!(errno(share.client().read(file.node, file.fh, 0, 1)), libc::EBADF);
    assert!(share.client().lookup(ROOT, "file").is_ok());
}

#[test]
fn operations_without_logic_behind_them_are_enosys() {
    let mut share = Share::new();
    let file = share.make("file");

    for op in [opcode::BMAP, opcode::POLL, opcode::SETUPMAPPING] {
        let reply = share.client().raw(op, file.node, &[0; 64], 64).unwrap();
        assert_eq!(reply.header.error, -libc::ENOSYS, "opcode {op}");
    }
    assert_eq!(share.client().raw(99, ROOT, &[], 0).unwrap().header.error, -libc::ENOSYS);
}
