//! What the guest may keep: timeouts, names that are not there, and the flags that INIT and OPEN answer with.

use gatherfs_support::guest::fuse::{ROOT, flag, init};
use gatherfs_support::private_mounts::{self, Mount};
use gatherfs_support::share::{Scratch, Setup, Share, errno};

#[test]
fn the_timeout_options_are_what_each_answer_says() {
    let mut share = Share::with(&["--entry-timeout", "2.5", "--attr-timeout", "0.25", "--negative-timeout", "1.125"]);
    share.put("file", b"");
    let c = share.client();

    let found = c.lookup(ROOT, "file").unwrap();
    let dir = c.opendir(ROOT).unwrap();
    let listed = c.readdirplus(ROOT, dir.fh, 0, 4096).unwrap();
    let listed = listed.iter().find(|e| e.name == b"file").unwrap().entry.unwrap();
    for entry in [found, listed] {
        assert_eq!((entry.entry_valid, entry.entry_valid_nsec), (2, 500_000_000));
        assert_eq!((entry.attr_valid, entry.attr_valid_nsec), (0, 250_000_000));
    }
    let attr = c.getattr(found.nodeid, None).unwrap();
    assert_eq!((attr.attr_valid, attr.attr_valid_nsec), (0, 250_000_000));
    let statx = c.statx(found.nodeid, None, 0xfff).unwrap();
    assert_eq!((statx.attr_valid, statx.attr_valid_nsec), (0, 250_000_000));
    let missing = c.lookup(ROOT, "missing").unwrap();
    assert_eq!((missing.nodeid, missing.entry_valid, missing.entry_valid_nsec), (0, 1, 125_000_000));
}

#[test]
fn a_name_that_is_not_there_is_kept_as_long_as_the_policy_says() {
    for (policy, seconds) in [("auto", 0), ("never", 0), ("always", 86_400), ("metadata", 86_400)] {
        let mut share = Share::with(&["--cache", policy]);
        let missing = share.client().lookup(ROOT, "missing");
        if seconds == 0 {
            assert_eq!(errno(missing), libc::ENOENT, "{policy}");
        } else {
            let missing = missing.unwrap();
            assert_eq!((missing.nodeid, missing.entry_valid), (0, seconds), "{policy}");
        }
        // Nothing but LOOKUP answers so.
        assert_eq!(errno(share.client().unlink(ROOT, "missing")), libc::ENOENT, "{policy}");
        let made = share.client().create(ROOT, "missing", 0o644, libc::O_RDWR).unwrap();
        assert_eq!(share.client().lookup(ROOT, "missing").unwrap().nodeid, made.entry.nodeid, "{policy}");
    }
}

#[test]
fn files_past_the_cache_can_be_mapped_only_with_the_option() {
    let agreed = |options: &[&str]| Share::with(options).client().init_flags() & init::DIRECT_IO_ALLOW_MMAP != 0;
    for policy in ["never", "metadata"] {
        assert!(agreed(&["--cache", policy, "--allow-mmap"]), "{policy}");
        assert!(!agreed(&["--cache", policy]), "{policy}");
    }
    assert!(!agreed(&["--cache", "always", "--allow-mmap"]));
}

#[test]
fn the_guest_keeps_targets_of_symlinks_and_its_data_as_the_policy_says() {
    for (policy, explicit) in [("auto", false), ("always", true), ("never", false), ("metadata", false)] {
        let mut share = Share::with(&["--cache", policy]);
        let flags = share.client().init_flags();
        assert_ne!(flags & init::CACHE_SYMLINKS, 0, "{policy}");
        assert_eq!(flags & init::EXPLICIT_INVAL_DATA != 0, explicit, "{policy}");
        assert_eq!(flags & init::AUTO_INVAL_DATA != 0, !explicit, "{policy}");
    }
}

#[test]
fn a_close_is_flushed_only_where_it_means_something() {
    // tmpfs and ext4 report nothing at close; dirty pages that the guest keeps must be written back first, and a close ends
    // locks that the host holds.
    for (options, flushed) in [(&[][..], false), (&["--writeback"][..], true), (&["--locks", "host"][..], true)] {
        let mut share = Share::with(options);
        let made = share.client().create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
        let opened = share.client().open(made.entry.nodeid, libc::O_RDONLY).unwrap();
        for open_flags in [made.open.open_flags, opened.open_flags] {
            assert_eq!(open_flags & flag::FOPEN_NOFLUSH == 0, flushed, "{options:?}");
        }
    }
}

/// What Linux keeps of a FUSE connection (fs/fuse/file.c): requests that were answered with ENOSYS are not sent again.
#[derive(Default)]
struct Connection {
    has_no_open: bool,
    has_no_flush: bool,
}

impl Connection {
    /// open(2), read(2) and close(2), with the requests that Linux sends.
    fn open_read_close(&mut self, share: &mut Share, node: u64) {
        let c = share.client();
        let opened = if self.has_no_open { None } else { c.open(node, libc::O_RDONLY).ok() };
        self.has_no_open |= opened.is_none();
        let fh = opened.map_or(0, |open| open.fh);
        assert_eq!(c.read(node, fh, 0, 4096).unwrap(), b"contents");
        let Some(open) = opened else { return };
        if open.open_flags & flag::FOPEN_NOFLUSH == 0 && !self.has_no_flush {
            self.has_no_flush = c.flush(node, fh).is_err();
        }
        c.release(node, fh).unwrap();
    }
}

#[test]
fn an_open_read_and_close_takes_no_more_requests_than_locks_need() {
    const FILES: u64 = 100;
    let cases: [(&[&str], [u64; 4]); 4] = [
        (&["--locks", "host"], [FILES; 4]),
        (&[], [FILES, FILES, 0, FILES]),
        (&["--cache", "always", "--readonly", "--locks", "host"], [FILES; 4]),
        // One OPEN, which is answered with ENOSYS.
        (&["--cache", "always", "--readonly"], [1, FILES, 0, 0]),
    ];
    for (options, expected) in cases {
        let mut share = Share::with(options);
        let mut connection = Connection::default();
        for i in 0..FILES {
            share.put(&format!("file{i}"), b"contents");
            let node = share.client().lookup(ROOT, &format!("file{i}")).unwrap().nodeid;
            connection.open_read_close(&mut share, node);
        }
        let metrics = share.metrics();
        let counted = ["OPEN", "READ", "FLUSH", "RELEASE"].map(|opcode| metrics.requests(opcode));
        println!("{options:?}: OPEN, READ, FLUSH, RELEASE of {FILES} files: {counted:?}");
        assert_eq!(counted, expected, "{options:?}");
    }
}

#[test]
fn a_file_system_that_is_not_known_may_report_at_close() {
    if !private_mounts::enter() {
        return;
    }
    let directory = Scratch::on_tmpfs();
    let _ramfs = Mount::new("ramfs", directory.path());
    let mut share = Share::start(Setup { directory, ..Setup::default() });

    let made = share.client().create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
    let read = share.client().open(made.entry.nodeid, libc::O_RDONLY).unwrap();

    assert_eq!(made.open.open_flags & flag::FOPEN_NOFLUSH, 0);
    assert_ne!(read.open_flags & flag::FOPEN_NOFLUSH, 0, "what was only read has nothing to report");
}
