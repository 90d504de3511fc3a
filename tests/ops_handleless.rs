//! A guest that does not open what it reads: its requests carry handle 0 and are served by node.

use std::collections::BTreeSet;

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::{ROOT, flag, init};
use gatherfs_support::share::{Setup, Share, errno};

/// The handle of a guest that has not opened.
const NONE: u64 = 0;
/// `STATX_BASIC_STATS` and the birth time.
const STATX_MASK: u32 = 0xfff;

/// A share on which nothing need be opened.
fn unopened() -> Share {
    Share::with(&["--cache", "always", "--readonly"])
}

/// Every name that READDIR shows, with `size` bytes a request.
fn list(c: &mut Client, node: u64, size: u32) -> BTreeSet<Vec<u8>> {
    let (mut names, mut offset) = (BTreeSet::new(), 0);
    loop {
        let part = c.readdir(node, NONE, offset, size).unwrap();
        let Some(last) = part.last() else { return names };
        offset = last.off;
        for entry in part {
            assert!(names.insert(entry.name), "an entry is shown once");
        }
    }
}

#[test]
fn directories_are_listed_without_being_opened() {
    let mut share = Share::with(&["--cache", "always"]);
    for dir in ["one", "two"] {
        std::fs::create_dir(share.path(dir)).unwrap();
        for i in 0..300 {
            share.put(&format!("{dir}/entry{i}"), b"");
        }
    }
    let c = share.client();
    assert_eq!(errno(c.opendir(ROOT)), libc::ENOSYS);
    let [one, two] = ["one", "two"].map(|name| c.lookup(ROOT, name).unwrap().nodeid);

    assert_eq!(list(c, one, 1000).len(), 302);
    assert_eq!(list(c, one, 32_768).len(), 302, "again");
    // Two readers of one directory and one of another, in turn.
    let (mut offsets, mut seen) = ([0; 3], [0; 3]);
    for _ in 0..1000 {
        for (reader, node) in [(0, one), (1, two), (2, one)] {
            let part = c.readdir(node, NONE, offsets[reader], 500).unwrap();
            seen[reader] += part.len();
            offsets[reader] = part.last().map_or(offsets[reader], |e| e.off);
        }
    }
    assert_eq!(seen, [302; 3]);
    let plus = c.readdirplus(one, NONE, 0, 4096).unwrap();
    let entry = plus.iter().find(|e| e.name == b"entry0").or(plus.last()).unwrap();
    let name = String::from_utf8(entry.name.clone()).unwrap();
    assert_eq!(entry.entry.unwrap().nodeid, c.lookup(one, &name).unwrap().nodeid);
    assert_eq!(c.fsyncdir(one, NONE, false), Ok(()));
    // Files are opened as ever: they may be changed and removed.
    let made = c.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
    assert_eq!(c.write(made.entry.nodeid, made.open.fh, 0, b"x"), Ok(1));
    assert_eq!(errno(c.read(made.entry.nodeid, NONE, 0, 1)), libc::EBADF);
    assert_ne!(made.open.fh, NONE);
}

#[test]
fn a_directory_that_was_removed_lists_as_empty() {
    for mut share in [Share::with(&["--cache", "always"]), Share::on_disk(&["--cache", "always"])] {
        for listed_before in [true, false] {
            let dir = share.client().mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
            if listed_before {
                assert_eq!(list(share.client(), dir, 4096).len(), 2);
            }
            std::fs::remove_dir(share.path("dir")).unwrap();
            assert_eq!(share.client().readdir(dir, NONE, 0, 4096).unwrap(), []);
            assert_eq!(share.client().readdirplus(dir, NONE, 0, 4096).unwrap(), []);
        }
        assert_eq!(errno(share.client().readdir(99, NONE, 0, 4096)), libc::ESTALE, "no such node");
    }
}

#[test]
fn files_of_a_share_that_nobody_changes_are_read_without_being_opened() {
    let mut share = unopened();
    share.put("file", b"contents");
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;

    assert_eq!(errno(c.open(node, libc::O_RDONLY)), libc::ENOSYS);
    assert_eq!(c.read(node, NONE, 3, 100).unwrap(), b"tents");
    assert_eq!(c.read(node, NONE, 8, 100).unwrap(), b"");
    assert_eq!(c.getattr(node, Some(NONE)).unwrap().attr.size, 8);
    assert_eq!(c.statx(node, Some(NONE), STATX_MASK).unwrap().stat.size, 8);
    assert_eq!(c.lseek(node, NONE, 2, libc::SEEK_HOLE), Ok(8));
    assert_eq!(c.fsync(node, NONE, false), Ok(()));
    assert_eq!(errno(c.flush(node, NONE)), libc::ENOSYS, "the guest stops asking");
    assert_eq!(errno(c.write(node, NONE, 0, b"x")), libc::EROFS);
    assert_eq!(errno(c.truncate(node, None, 0)), libc::EROFS);
    assert_eq!(errno(c.release(node, NONE)), libc::EBADF);
    assert_eq!(errno(c.read(ROOT, NONE, 0, 1)), libc::EISDIR);
    assert_eq!(errno(c.read(99, NONE, 0, 1)), libc::ESTALE);
    assert_eq!(c.init_flags() & init::ATOMIC_O_TRUNC, 0, "a truncation by open(2) must be heard of");
}

#[test]
fn a_guest_that_opens_is_served_as_ever() {
    let options = &["--cache", "always", "--readonly"];
    let mut share = Share::start_unmounted(Setup { options, ..Setup::default() });
    share.put("file", b"contents");
    let c = share.client();
    c.init_with(init::LINUX & !(init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT)).unwrap();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;

    let open = c.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(c.read(node, open.fh, 0, 100).unwrap(), b"contents");
    let dir = c.opendir(ROOT).unwrap();
    assert_eq!(c.readdir(ROOT, dir.fh, 0, 4096).unwrap().len(), 3);
    assert_eq!(errno(c.read(node, NONE, 0, 1)), libc::EBADF);
    assert_eq!(errno(c.readdir(ROOT, NONE, 0, 4096)), libc::EBADF);
    // O_DIRECT comes with OPEN.
    let mut share = Share::with(&["--cache", "always", "--readonly", "--allow-direct-io"]);
    share.put("file", b"contents");
    let node = share.client().lookup(ROOT, "file").unwrap().nodeid;
    assert_ne!(share.client().open(node, libc::O_RDONLY).unwrap().open_flags & flag::FOPEN_KEEP_CACHE, 0);
}

#[test]
fn more_files_than_descriptors_are_read_without_being_opened() {
    let mut share = Share::with(&["--cache", "always", "--readonly", "--rlimit-nofile", "300"]);
    for i in 0..1000 {
        share.put(&format!("file{i}"), format!("contents {i}").as_bytes());
    }
    for round in 0..2 {
        for i in 0..1000 {
            let node = share.client().lookup(ROOT, &format!("file{i}")).unwrap().nodeid;
            let read = share.client().read(node, NONE, 0, 100).unwrap();
            assert_eq!(read, format!("contents {i}").as_bytes(), "round {round}");
        }
    }
}
