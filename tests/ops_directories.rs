//! Directories: OPENDIR, READDIR, READDIRPLUS and RELEASEDIR.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirEntryExt, symlink};

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::{Dirent, ROOT};
use gatherfs_support::share::{Share, errno};

/// Entries of a large directory: several of what one getdents64 reads ahead.
const MANY: usize = 5000;

/// A listing from `offset` to the end, `size` bytes a request.
fn list(c: &mut Client, fh: u64, mut offset: u64, size: u32, plus: bool) -> Vec<Dirent> {
    let mut all = Vec::new();
    loop {
        let part = if plus { c.readdirplus(ROOT, fh, offset, size) } else { c.readdir(ROOT, fh, offset, size) }.unwrap();
        let Some(last) = part.last() else { return all };
        offset = last.off;
        all.extend(part);
    }
}

fn names(entries: &[Dirent]) -> Vec<String> {
    let mut names: Vec<String> = entries.iter().map(|e| String::from_utf8(e.name.clone()).unwrap()).collect();
    names.sort();
    names
}

/// The names that the host lists, with `.` and `..`.
fn host_names(share: &Share) -> Vec<String> {
    let listed = std::fs::read_dir(share.root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = listed.chain([".".to_owned(), "..".to_owned()]).collect();
    names.sort();
    names
}

fn fill(share: &Share, count: usize) {
    for i in 0..count {
        // Lengths from 1 to 100, so that replies end at every alignment.
        share.put(&format!("{i:0width$}", width = 1 + i % 100), b"");
    }
}

#[test]
fn a_listing_tells_names_types_and_inode_numbers() {
    let mut share = Share::new();
    share.put("file", b"1234");
    std::fs::create_dir(share.path("dir")).unwrap();
    symlink("nowhere", share.path("link")).unwrap();
    let inodes: BTreeMap<_, _> = std::fs::read_dir(share.root()).unwrap().map(|e| e.unwrap()).map(|e| (e.file_name(), e.ino())).collect();
    let dir = share.client().opendir(ROOT).unwrap();

    for plus in [false, true] {
        let entries = list(share.client(), dir.fh, 0, 4096, plus);

        assert_eq!(names(&entries), host_names(&share));
        for entry in &entries {
            let name = std::str::from_utf8(&entry.name).unwrap();
            let kind = match name {
                "file" => libc::DT_REG,
                "link" => libc::DT_LNK,
                _ => libc::DT_DIR,
            };
            assert_eq!(entry.kind, u32::from(kind), "{name}");
            if let Some(ino) = inodes.get(std::ffi::OsStr::new(name)) {
                assert_eq!(entry.ino, *ino, "{name}");
            }
            match (plus, name) {
                (false, _) => assert_eq!(entry.entry, None),
                (true, "." | "..") => assert_eq!(entry.entry.unwrap().nodeid, 0, "{name} is not looked up"),
                (true, _) => assert_eq!(entry.entry.unwrap(), share.client().lookup(ROOT, name).unwrap(), "{name}"),
            }
        }
    }
}

#[test]
fn a_large_directory_is_listed_exactly_once_with_small_buffers() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        fill(&share, MANY);
        let expected = host_names(&share);
        let dir = share.client().opendir(ROOT).unwrap();

        for (size, plus) in [(65_536, false), (4096, false), (300, false), (65_536, true), (4096, true), (300, true)] {
            let entries = list(share.client(), dir.fh, 0, size, plus);
            assert_eq!(entries.len(), MANY + 2, "{size} bytes, plus {plus}");
            assert!(names(&entries) == expected, "{size} bytes, plus {plus}");
        }
    }
}

#[test]
fn a_listing_resumes_at_any_offset_it_gave_and_two_handles_do_not_disturb_each_other() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        fill(&share, 500);
        let (one, two) = (share.client().opendir(ROOT).unwrap(), share.client().opendir(ROOT).unwrap());
        let whole = list(share.client(), one.fh, 0, 4096, false);

        for at in [400, 10, 499, 250, 0, 500] {
            let rest = list(share.client(), one.fh, whole[at].off, 1000, false);
            assert_eq!(rest, whole[at + 1..], "after entry {at}");
            let other = share.client().readdir(ROOT, two.fh, whole[at / 2].off, 1000).unwrap();
            assert_eq!(other[0], whole[at / 2 + 1]);
        }
        assert_eq!(share.client().readdir(ROOT, one.fh, whole.last().unwrap().off, 4096).unwrap(), []);
    }
}

#[test]
fn offsets_stay_valid_while_entries_are_removed_and_added() {
    for plus in [false, true] {
        for mut share in [Share::new(), Share::on_disk(&[])] {
            let count = 1000;
            fill(&share, count);
            let before = host_names(&share);
            let dir = share.client().opendir(ROOT).unwrap();
            let (mut offset, mut seen, mut turn) = (0, Vec::new(), 0);
            loop {
                let c = share.client();
                let part = if plus { c.readdirplus(ROOT, dir.fh, offset, 2000) } else { c.readdir(ROOT, dir.fh, offset, 2000) }.unwrap();
                let Some(last) = part.last() else { break };
                offset = last.off;
                // As rm -r does: what was listed is removed before the next part is read.
                for entry in part.iter().filter(|e| !e.name.starts_with(b".") && !e.name.starts_with(b"new")) {
                    share.client().unlink(ROOT, std::str::from_utf8(&entry.name).unwrap()).unwrap();
                }
                seen.extend(part);
                share.put(&format!("new{turn}"), b"");
                turn += 1;
                assert!(turn < 10 * count, "the listing does not end");
            }
            let old: Vec<String> = names(&seen).into_iter().filter(|n| !n.starts_with("new")).collect();

            assert!(old == before, "every entry that was there at first is listed once");
            assert!(host_names(&share).iter().all(|n| n.starts_with('.') || n.starts_with("new")));
        }
    }
}

#[test]
fn entries_that_vanish_before_they_are_looked_up_are_left_out() {
    let mut share = Share::new();
    fill(&share, 300);
    let dir = share.client().opendir(ROOT).unwrap();
    // Reads ahead on the host more than it tells the guest.
    let first = share.client().readdirplus(ROOT, dir.fh, 0, 1000).unwrap();
    for name in host_names(&share).iter().filter(|n| !n.starts_with('.')) {
        std::fs::remove_file(share.path(name)).unwrap();
    }
    share.put("kept", b"");

    let rest = list(share.client(), dir.fh, first.last().unwrap().off, 1000, true);

    assert!(rest.iter().all(|e| e.name == b"kept"), "{:?}", names(&rest));
    let anew = list(share.client(), dir.fh, 0, 1000, true);
    assert_eq!(names(&anew), [".", "..", "kept"]);
}

#[test]
fn a_rewind_sees_what_is_there_now() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        share.put("a", b"");
        let dir = share.client().opendir(ROOT).unwrap();
        assert_eq!(names(&list(share.client(), dir.fh, 0, 4096, false)), [".", "..", "a"]);

        share.client().create(ROOT, "b", 0o644, libc::O_RDWR).unwrap();
        share.client().unlink(ROOT, "a").unwrap();

        assert_eq!(names(&list(share.client(), dir.fh, 0, 4096, false)), [".", "..", "b"]);
        share.put("c", b"");
        assert_eq!(names(&list(share.client(), dir.fh, 0, 4096, true)), [".", "..", "b", "c"]);
    }
}

#[test]
fn each_entry_of_readdirplus_counts_as_a_lookup() {
    let mut share = Share::forgetting();
    fill(&share, 200);
    let dir = share.client().opendir(ROOT).unwrap();
    let first = list(share.client(), dir.fh, 0, 4096, true);
    let second = list(share.client(), dir.fh, 0, 1000, true);
    let nodes = |entries: &[Dirent]| -> BTreeMap<Vec<u8>, u64> {
        entries.iter().map(|e| (e.name.clone(), e.entry.unwrap().nodeid)).filter(|(_, n)| *n != 0).collect()
    };
    assert_eq!(nodes(&first), nodes(&second));
    assert_eq!(nodes(&first).len(), 200);

    for (name, node) in nodes(&first) {
        share.client().forget(node, 1).unwrap();
        assert!(share.client().getattr(node, None).is_ok(), "{name:?} was listed twice");
        share.client().forget(node, 1).unwrap();
        assert_eq!(errno(share.client().getattr(node, None)), libc::ESTALE, "{name:?}");
    }
    // READDIR counts nothing.
    let node = share.client().lookup(ROOT, "0").unwrap().nodeid;
    list(share.client(), dir.fh, 0, 4096, false);
    share.client().forget(node, 1).unwrap();
    assert_eq!(errno(share.client().getattr(node, None)), libc::ESTALE);
}

#[test]
fn a_buffer_that_one_entry_does_not_fit_is_an_error_and_not_the_end() {
    let mut share = Share::new();
    share.put(&"x".repeat(255), b"");
    let dir = share.client().opendir(ROOT).unwrap();
    let c = share.client();

    // A header of 24 bytes and a name, padded; READDIRPLUS has 128 more.
    assert_eq!(list(c, dir.fh, 0, 280, false).len(), 3);
    assert_eq!(list(c, dir.fh, 0, 408, true).len(), 3);
    assert_eq!(errno(c.readdir(ROOT, dir.fh, 0, 16)), libc::EINVAL);
    assert_eq!(errno(c.readdirplus(ROOT, dir.fh, 0, 128)), libc::EINVAL);
    let long = list(c, dir.fh, 0, 280, false).iter().position(|e| e.name.len() == 255).unwrap();
    let before = if long == 0 { 0 } else { list(c, dir.fh, 0, 280, false)[long - 1].off };
    assert_eq!(errno(c.readdir(ROOT, dir.fh, before, 279)), libc::EINVAL);
    assert_eq!(errno(c.readdirplus(ROOT, dir.fh, before, 407)), libc::EINVAL);
}

#[test]
fn a_directory_handle_is_one_and_ends_with_releasedir() {
    let mut share = Share::new();
    let file = share.make("file");
    let dir = share.client().opendir(ROOT).unwrap();
    let c = share.client();

    assert_eq!(errno(c.opendir(file.node)), libc::ENOTDIR);
    assert_eq!(errno(c.readdir(file.node, file.fh, 0, 4096)), libc::EBADF);
    assert_eq!(errno(c.readdirplus(file.node, file.fh, 0, 4096)), libc::EBADF);
    assert_eq!(errno(c.releasedir(file.node, file.fh)), libc::EBADF);
    assert!(c.getattr(file.node, Some(file.fh)).is_ok(), "the file was not closed");
    assert_eq!(errno(c.release(ROOT, dir.fh)), libc::EBADF);
    assert_eq!(c.readdir(ROOT, dir.fh, 0, 4096).unwrap().len(), 3, "the directory was not closed");
    assert_eq!(c.getattr(ROOT, Some(dir.fh)).unwrap().attr.mode & libc::S_IFMT, libc::S_IFDIR);
    assert_eq!(errno(c.readdir(ROOT, dir.fh, u64::MAX, 4096)), libc::EINVAL);
    c.releasedir(ROOT, dir.fh).unwrap();

    assert_eq!(errno(c.releasedir(ROOT, dir.fh)), libc::EBADF);
    assert_eq!(errno(c.readdir(ROOT, dir.fh, 0, 4096)), libc::EBADF);
    assert_eq!(errno(c.readdirplus(ROOT, dir.fh, 0, 4096)), libc::EBADF);
}

#[test]
fn a_removed_directory_that_is_open_is_empty() {
    let mut share = Share::new();
    let node = share.client().mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
    let dir = share.client().opendir(node).unwrap();

    share.client().rmdir(ROOT, "dir").unwrap();

    let left = share.client().readdir(node, dir.fh, 0, 4096);
    assert!(left.as_ref().is_ok_and(|l| l.iter().all(|e| e.name.starts_with(b"."))) || left == Err(libc::ENOENT.into()), "{left:?}");
    share.client().fsyncdir(node, dir.fh, false).unwrap();
    share.client().releasedir(node, dir.fh).unwrap();
}

#[test]
fn however_many_directories_are_open_little_is_kept_of_them() {
    const OPEN: usize = 4000;
    let mut share = Share::new();
    fill(&share, MANY);
    let expected = host_names(&share);
    let rss_kib = |share: &Share| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", share.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let before = rss_kib(&share);
    let c = share.client();
    let handles: Vec<u64> = (0..OPEN).map(|_| c.opendir(ROOT).unwrap().fh).collect();
    let firsts: Vec<Vec<Dirent>> = handles.iter().map(|&fh| c.readdir(ROOT, fh, 0, 32_768).unwrap()).collect();
    let grown = rss_kib(&share).saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} KiB for {OPEN} open directories");

    let last = handles.len() - 1;
    let at = firsts[last].last().unwrap().off;
    let rest = list(share.client(), handles[last], at, 32_768, false);
    assert!(names(&[&firsts[last][..], &rest].concat()) == expected, "what was not kept is read again");
}

#[test]
fn a_reply_is_no_longer_than_a_mebibyte() {
    const LEN_MAX: usize = 1 << 20;
    let mut share = Share::new();
    for i in 0..6000 {
        share.put(&format!("{i:0240}"), b"");
    }
    let expected = host_names(&share);
    for plus in [false, true] {
        let fh = share.client().opendir(ROOT).unwrap().fh;
        let c = share.client();
        let first = if plus { c.readdirplus(ROOT, fh, 0, 3 << 20) } else { c.readdir(ROOT, fh, 0, 3 << 20) }.unwrap();
        assert!(first.len() * 240 <= LEN_MAX, "{} entries", first.len());
        let rest = list(c, fh, first.last().unwrap().off, 3 << 20, plus);
        assert!(names(&[first, rest].concat()) == expected);
    }
}
