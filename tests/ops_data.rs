//! Operations on open files: their contents, their life, direct I/O, and what a read-only share refuses.

use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};

use gatherfs_support::guest;
use gatherfs_support::guest::client::{Client, Piece, bytes_of};
use gatherfs_support::guest::fuse::{CopyFileRangeIn, CreateIn, FallocateIn, OpenIn, ROOT, SetattrIn, flag, init, opcode};
use gatherfs_support::share::{self, File, Scratch, Share, change, errno, noise};

/// A page, and the block that direct I/O is aligned to.
const PAGE: usize = 4096;

fn fallocate(c: &mut Client, file: File, mode: i32, offset: u64, length: u64) -> guest::client::Result<()> {
    c.fallocate(file.node, &FallocateIn { fh: file.fh, offset, length, mode: mode.cast_unsigned(), padding: 0 })
}

#[test]
fn what_is_written_is_in_the_host_file_and_read_back_short_at_its_end() {
    let mut share = Share::new();
    let file = share.make("file");
    let data = noise(1, 10_000);

    assert_eq!(share.client().write(file.node, file.fh, 0, &data).unwrap(), 10_000);
    assert_eq!(share.client().write(file.node, file.fh, 20_000, b"end").unwrap(), 3);

    let expected = [&data[..], &[0; 10_000], b"end"].concat();
    assert_eq!(share.contents("file"), expected);
    let c = share.client();
    assert_eq!(c.read(file.node, file.fh, 0, 65_536).unwrap(), expected);
    assert_eq!(c.read(file.node, file.fh, 19_999, 2).unwrap(), expected[19_999..20_001]);
    assert_eq!(c.read(file.node, file.fh, 20_002, 4096).unwrap(), b"d");
    assert_eq!(c.read(file.node, file.fh, 20_003, 4096).unwrap(), b"", "at the end");
    assert_eq!(c.read(file.node, file.fh, 1 << 40, 4096).unwrap(), b"", "far behind it");
    assert_eq!(c.write(file.node, file.fh, 0, b"").unwrap(), 0);
    assert_eq!(errno(c.write(file.node, file.fh, i64::MAX as u64, b"xx")), libc::EINVAL);
    for negative in [1 << 63, u64::MAX] {
        assert_eq!(errno(c.read(file.node, file.fh, negative, 1)), libc::EINVAL);
        assert_eq!(errno(c.write(file.node, file.fh, negative, b"x")), libc::EINVAL);
    }
    assert_eq!(share.contents("file"), expected);
}

#[test]
fn a_handle_is_good_for_what_it_was_opened_for_until_release() {
    let mut share = Share::new();
    share.put("file", b"content");
    let reader = share.open("file", libc::O_RDONLY);
    let writer = share.open("file", libc::O_WRONLY);
    let dir = share.client().opendir(ROOT).unwrap();
    let c = share.client();

    assert_eq!(errno(c.write(reader.node, reader.fh, 0, b"x")), libc::EBADF);
    assert_eq!(errno(c.read(writer.node, writer.fh, 0, 1)), libc::EBADF);
    assert_eq!(errno(c.read(ROOT, dir.fh, 0, 1)), libc::EISDIR);
    assert_eq!(errno(c.write(ROOT, dir.fh, 0, b"x")), libc::EBADF);
    c.release(reader.node, reader.fh).unwrap();

    assert_eq!(errno(c.read(reader.node, reader.fh, 0, 1)), libc::EBADF);
    assert_eq!(errno(c.release(reader.node, reader.fh)), libc::EBADF);
    assert_eq!(errno(c.flush(reader.node, reader.fh)), libc::EBADF);
    assert_eq!(errno(c.getattr(reader.node, Some(reader.fh))), libc::EBADF);
    let next = c.open(reader.node, libc::O_RDONLY).unwrap();
    assert_ne!(next.fh, reader.fh, "a handle is not given twice");
    assert_eq!(share.host_flags("file").len(), 2);
}

#[test]
fn open_with_o_trunc_empties_the_file() {
    let mut share = Share::new();
    share.put("file", b"content");

    let file = share.open("file", libc::O_WRONLY | libc::O_TRUNC);

    assert_eq!(share.client().getattr(file.node, None).unwrap().attr.size, 0);
    assert_eq!(share.contents("file"), b"");
}

#[test]
fn flush_and_sync_leave_the_file_open() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        let dir = share.client().opendir(ROOT).unwrap().fh;
        let c = share.client();
        c.write(file.node, file.fh, 0, b"data").unwrap();

        c.flush(file.node, file.fh).unwrap();
        c.fsync(file.node, file.fh, false).unwrap();
        c.fsync(file.node, file.fh, true).unwrap();
        c.fsyncdir(ROOT, dir, false).unwrap();
        c.fsyncdir(ROOT, dir, true).unwrap();
        c.syncfs(ROOT).unwrap();
        c.syncfs(file.node).unwrap();

        assert_eq!(c.read(file.node, file.fh, 0, 10).unwrap(), b"data");
        for bad in [0xdead, u64::MAX] {
            assert_eq!(errno(c.flush(file.node, bad)), libc::EBADF);
            assert_eq!(errno(c.fsync(file.node, bad, false)), libc::EBADF);
            assert_eq!(errno(c.fsyncdir(ROOT, bad, false)), libc::EBADF);
        }
        assert_eq!(errno(c.fsyncdir(ROOT, file.fh, false)), libc::EBADF, "not a directory's handle");
    }
}

#[test]
fn statfs_tells_what_the_host_tells() {
    let mut share = Share::on_disk(&[]);
    let on_host = rustix::fs::statvfs(share.root()).unwrap();

    let st = share.client().statfs(ROOT).unwrap();

    assert_eq!((st.blocks, st.files), (on_host.f_blocks, on_host.f_files));
    assert_eq!((u64::from(st.bsize), u64::from(st.frsize)), (on_host.f_bsize, on_host.f_frsize));
    assert_eq!(u64::from(st.namelen), on_host.f_namemax);
    assert!(st.bavail <= st.bfree && st.bfree <= st.blocks);
}

#[test]
fn fallocate_extends_keeps_the_size_or_punches_as_its_mode_says() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        let data = noise(2, 4 * PAGE);
        let page = PAGE as u64;
        share.client().write(file.node, file.fh, 0, &data).unwrap();
        let c = share.client();

        fallocate(c, file, libc::FALLOC_FL_KEEP_SIZE, 4 * page, 4 * page).unwrap();
        let attr = c.getattr(file.node, None).unwrap().attr;
        assert_eq!(attr.size, 4 * page);
        assert!(attr.blocks >= 8 * page / 512, "{} blocks", attr.blocks);
        fallocate(c, file, 0, 4 * page, 100).unwrap();
        assert_eq!(c.getattr(file.node, None).unwrap().attr.size, 4 * page + 100);
        fallocate(c, file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, page + 10, page).unwrap();

        assert_eq!(errno(fallocate(c, file, 0, 0, 0)), libc::EINVAL, "nothing");
        assert_eq!(errno(fallocate(c, file, 0, u64::MAX, 1)), libc::EINVAL, "a negative offset");
        assert_eq!(errno(fallocate(c, file, 0, 1 << 62, 1 << 62)), libc::EFBIG);
        assert_eq!(errno(fallocate(c, file, 1 << 20, 0, 1)), libc::EOPNOTSUPP);
        assert_eq!(errno(fallocate(c, File { fh: 0xdead, ..file }, 0, 0, 1)), libc::EBADF);
        let mut expected = [&data[..], &[0; 100]].concat();
        expected[PAGE + 10..2 * PAGE + 10].fill(0);
        assert_eq!(share.contents("file"), expected);
    }
}

#[test]
fn lseek_finds_data_and_holes() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        let (mib, page) = (1 << 20, PAGE as u64);
        let c = share.client();
        c.write(file.node, file.fh, mib, &[1; PAGE]).unwrap();
        c.truncate(file.node, Some(file.fh), 3 * mib).unwrap();

        assert_eq!(c.lseek(file.node, file.fh, 0, libc::SEEK_HOLE).unwrap(), 0);
        assert_eq!(c.lseek(file.node, file.fh, 0, libc::SEEK_DATA).unwrap(), mib);
        assert_eq!(c.lseek(file.node, file.fh, mib + 1, libc::SEEK_DATA).unwrap(), mib + 1);
        assert_eq!(c.lseek(file.node, file.fh, mib, libc::SEEK_HOLE).unwrap(), mib + page);
        assert_eq!(errno(c.lseek(file.node, file.fh, mib + page, libc::SEEK_DATA)), libc::ENXIO);
        for behind in [3 * mib, 1 << 62, u64::MAX] {
            assert_eq!(errno(c.lseek(file.node, file.fh, behind, libc::SEEK_DATA)), libc::ENXIO);
            assert_eq!(errno(c.lseek(file.node, file.fh, behind, libc::SEEK_HOLE)), libc::ENXIO);
        }
        for whence in [libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END, 99] {
            assert_eq!(errno(c.lseek(file.node, file.fh, 0, whence)), libc::EINVAL);
        }
        assert_eq!(c.write(file.node, file.fh, 0, b"still at the given offset").unwrap(), 25);
        assert_eq!(c.read(file.node, file.fh, 0, 5).unwrap(), b"still");
    }
}

#[test]
fn with_writeback_the_host_does_not_say_where_data_is() {
    let mut share = Share::with(&["--writeback"]);
    let file = share.make("file");
    let c = share.client();
    c.truncate(file.node, Some(file.fh), 1 << 20).unwrap();
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        assert_eq!(errno(c.lseek(file.node, file.fh, 0, whence)), libc::ENOSYS, "the guest's dirty pages would be holes");
    }
}

#[test]
fn copy_file_range_copies_on_the_host_with_either_width_of_reply() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let data = noise(3, 50_000);
        share.put("from", &data);
        let (from, to) = (share.open("from", libc::O_RDONLY), share.make("to"));
        let c = share.client();
        let whole = CopyFileRangeIn { fh_in: from.fh, off_in: 1000, nodeid_out: to.node, fh_out: to.fh, off_out: 0, len: 30_000, flags: 0 };

        assert_eq!(c.copy_file_range(from.node, &whole).unwrap(), 30_000);
        let more = CopyFileRangeIn { off_in: 31_000, off_out: 30_000, len: u64::MAX >> 1, ..whole };
        assert_eq!(c.copy_file_range_64(from.node, &more).unwrap(), 19_000, "up to the end of the file");
        assert_eq!(c.copy_file_range_64(from.node, &CopyFileRangeIn { off_in: 50_000, ..whole }).unwrap(), 0);

        assert_eq!(errno(c.copy_file_range(from.node, &CopyFileRangeIn { flags: 1, ..whole })), libc::EINVAL);
        assert_eq!(errno(c.copy_file_range(from.node, &CopyFileRangeIn { fh_out: from.fh, ..whole })), libc::EBADF);
        assert_eq!(errno(c.copy_file_range(from.node, &CopyFileRangeIn { fh_in: 0xdead, ..whole })), libc::EBADF);
        let onto_itself = CopyFileRangeIn { fh_in: to.fh, off_in: 0, off_out: 10, len: 100, ..whole };
        assert_eq!(errno(c.copy_file_range(to.node, &onto_itself)), libc::EINVAL);
        assert_eq!(share.contents("to"), data[1000..]);
    }
}

#[test]
fn writes_with_o_append_go_to_the_end_wherever_the_host_has_moved_it() {
    let mut share = Share::new();
    share.put("file", b"start ");
    let file = share.open("file", libc::O_RDWR | libc::O_APPEND);
    share.client().file_flags = (libc::O_RDWR | libc::O_APPEND).cast_unsigned();

    share.client().write(file.node, file.fh, 0, b"one ").unwrap();
    std::fs::OpenOptions::new().append(true).open(share.path("file")).unwrap().write_all(b"host ").unwrap();
    // The guest's idea of the size is old.
    share.client().write(file.node, file.fh, 10, b"two ").unwrap();
    assert_eq!(share.contents("file"), b"start one host two ");
    // Pages of the guest's cache have their place.
    share.client().write_flags = flag::WRITE_CACHE;
    share.client().write(file.node, file.fh, 0, b"START").unwrap();
    assert_eq!(share.contents("file"), b"START one host two ");
    // Nor does a write append when the flag was taken off the open file (man fcntl(2), F_SETFL).
    share.client().write_flags = 0;
    share.client().file_flags = libc::O_RDWR.cast_unsigned();
    share.client().write(file.node, file.fh, 6, b"ONE").unwrap();
    assert_eq!(share.contents("file"), b"START ONE host two ");
}

#[test]
fn an_appending_write_of_many_segments_stays_together() {
    let mut share = Share::new();
    share.put("file", b"x");
    let file = share.open("file", libc::O_RDWR);
    share.client().file_flags = (libc::O_RDWR | libc::O_APPEND).cast_unsigned();
    let data = noise(4, 500 * 10);

    let written = share.client().write_pieces(file.node, (file.fh, 0), &data, &[Piece { offset: 7, len: 10 }; 500]).unwrap();

    assert_eq!(written, 5000);
    assert_eq!(share.contents("file"), [b"x", &data[..]].concat());
}

#[test]
fn an_unlinked_file_that_is_open_stays_in_full_use() {
    // Few kept descriptors: those of the node are closed before it is used again.
    for mut share in [Share::with(&["--rlimit-nofile", "256"]), Share::on_disk(&["--rlimit-nofile", "256"])] {
        let file = share.make("file");
        share.client().write(file.node, file.fh, 0, b"before").unwrap();
        share.client().unlink(ROOT, "file").unwrap();
        for i in 0..100 {
            let name = format!("other{i}");
            share.put(&name, b"");
            let other = share.client().lookup(ROOT, &name).unwrap().nodeid;
            share.client().getattr(other, None).unwrap();
            // Each node that the guest knows takes a descriptor where there are no handles.
            if !share.is_served_by_handles() {
                share.client().forget(other, 1).unwrap();
            }
        }
        let c = share.client();

        c.write(file.node, file.fh, 6, b" after").unwrap();
        assert_eq!(c.read(file.node, file.fh, 0, 100).unwrap(), b"before after");
        for fh in [Some(file.fh), None] {
            let attr = c.getattr(file.node, fh).unwrap().attr;
            assert_eq!((attr.nlink, attr.size), (0, 12));
            assert_eq!(c.truncate(file.node, fh, 6).unwrap().attr.size, 6);
            assert_eq!(c.truncate(file.node, fh, 12).unwrap().attr.size, 12);
            let mode = if fh.is_some() { flag::FATTR_MODE | flag::FATTR_FH } else { flag::FATTR_MODE };
            let set = SetattrIn { mode: 0o600, fh: fh.unwrap_or(0), ..change(mode) };
            assert_eq!(c.setattr(file.node, &set).unwrap().attr.mode, libc::S_IFREG | 0o600);
        }
        let again = c.open(file.node, libc::O_RDONLY).unwrap();
        assert_eq!(c.read(file.node, again.fh, 0, 6).unwrap(), b"before");
        assert_eq!(errno(c.link(file.node, ROOT, "back")), libc::ENOENT, "a deleted file gets no name again");
        c.release(file.node, again.fh).unwrap();
        c.release(file.node, file.fh).unwrap();
    }
}

#[test]
fn a_write_or_truncation_clears_setuid_and_setgid_where_the_guest_asks_for_it() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    let mode = |share: &Share| std::fs::metadata(share.path("file")).unwrap().permissions().mode() & 0o7777;
    let set = |share: &Share| std::fs::set_permissions(share.path("file"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    let open = |kill: u32| OpenIn { flags: (libc::O_RDWR | libc::O_TRUNC).cast_unsigned(), open_flags: kill };
    share.put("file", b"content");
    let file = share.open("file", libc::O_RDWR);

    set(&share);
    share.client().write(file.node, file.fh, 0, b"x").unwrap();
    assert_eq!(mode(&share), 0o6755, "a WRITE of somebody with CAP_FSETID");
    share.client().write_flags = flag::WRITE_KILL_SUIDGID;
    share.client().write(file.node, file.fh, 0, b"x").unwrap();
    assert_eq!(mode(&share), 0o755, "WRITE");

    set(&share);
    share.client().truncate(file.node, None, 3).unwrap();
    assert_eq!(mode(&share), 0o6755);
    for by_handle in [0, flag::FATTR_FH] {
        set(&share);
        let shorter = SetattrIn { size: 1, fh: file.fh, ..change(flag::FATTR_SIZE | flag::FATTR_KILL_SUIDGID | by_handle) };
        share.client().setattr(file.node, &shorter).unwrap();
        assert_eq!(mode(&share), 0o755, "SETATTR");
    }

    set(&share);
    share.client().raw(opcode::OPEN, file.node, bytes_of(&open(0)), 16).unwrap();
    assert_eq!(mode(&share), 0o6755);
    share.client().raw(opcode::OPEN, file.node, bytes_of(&open(flag::OPEN_KILL_SUIDGID)), 16).unwrap();
    assert_eq!(mode(&share), 0o755, "OPEN with O_TRUNC");

    set(&share);
    let create = CreateIn { flags: open(0).flags, mode: 0o100_600, umask: 0, open_flags: flag::OPEN_KILL_SUIDGID };
    let args = [bytes_of(&create), &guest::fuse::name("file")].concat();
    assert_eq!(share.client().raw(opcode::CREATE, ROOT, &args, 144).unwrap().header.error, 0);
    assert_eq!(mode(&share), 0o755, "CREATE of a file that is there");

    // The thread has its rights back.
    set(&share);
    share.client().write_flags = 0;
    share.client().write(file.node, file.fh, 0, b"x").unwrap();
    assert_eq!(mode(&share), 0o6755);
}

#[test]
fn without_the_option_o_direct_is_not_passed_on() {
    let mut share = Share::on_disk(&[]);
    let made = share.client().create(ROOT, "file", 0o644, libc::O_RDWR | libc::O_DIRECT).unwrap();
    let opened = share.open("file", libc::O_RDWR | libc::O_DIRECT);
    let flags = share.host_flags("file");
    assert_eq!(flags.len(), 2);
    assert!(flags.iter().all(|f| f & libc::O_DIRECT == 0), "{flags:?}");

    share.client().write(made.entry.nodeid, made.open.fh, 1, b"odd").unwrap();
    share.client().write_flags = flag::WRITE_CACHE;
    share.client().write(opened.node, opened.fh, 4, b"size").unwrap();

    assert_eq!(share.contents("file"), b"\0oddsize");
}

#[test]
fn o_noatime_is_passed_on_with_the_option_only() {
    for (options, expected) in [(&[][..], 0), (&["--preserve-noatime"][..], libc::O_NOATIME)] {
        let mut share = Share::on_disk(options);
        share.client().create(ROOT, "file", 0o644, libc::O_RDWR | libc::O_NOATIME).unwrap();
        share.open("file", libc::O_RDONLY | libc::O_NOATIME);
        let flags = share.host_flags("file");
        assert_eq!(flags.len(), 2);
        assert!(flags.iter().all(|f| f & libc::O_NOATIME == expected), "{options:?}: {flags:?}");
    }
}

#[test]
fn with_the_option_aligned_io_is_direct_and_misaligned_io_is_answered() {
    let mut share = Share::on_disk(&["--allow-direct-io"]);
    let made = share.client().create(ROOT, "file", 0o644, libc::O_RDWR | libc::O_DIRECT).unwrap();
    let file = share.open("file", libc::O_RDWR | libc::O_DIRECT);
    let flags = share.host_flags("file");
    assert_eq!(flags.len(), 2);
    assert!(flags.iter().all(|f| f & libc::O_DIRECT != 0), "{flags:?}");
    let data = noise(5, 8 * PAGE);

    let written = share.client().write(made.entry.nodeid, made.open.fh, 0, &data).unwrap();
    assert_eq!(written as usize, data.len());
    assert_eq!(share.client().read(file.node, file.fh, PAGE as u64, 100_000).unwrap(), data[PAGE..]);
    assert_eq!(share.client().read(file.node, file.fh, 5, 1000).unwrap(), data[5..1005], "for the guest's page cache");

    // An application's own write is the host's to refuse or to take, but not to half do.
    match share.client().write(file.node, file.fh, 3, b"misaligned") {
        Ok(len) => assert_eq!((len, &share.contents("file")[3..13]), (10, &b"misaligned"[..])),
        Err(error) => {
            assert_eq!(error.errno(), Some(libc::EINVAL));
            assert_eq!(share.contents("file"), data);
        }
    }
}

#[test]
fn with_the_option_write_back_of_an_odd_tail_lands_in_the_file() {
    let mut share = Share::on_disk(&["--allow-direct-io", "--writeback"]);
    let file: File = share.client().create(ROOT, "file", 0o644, libc::O_RDWR | libc::O_DIRECT).unwrap().into();
    let data = noise(6, 2 * PAGE + 777);
    share.client().write_flags = flag::WRITE_CACHE;

    share.client().write(file.node, file.fh, 0, &data[..2 * PAGE]).unwrap();
    share.client().write(file.node, file.fh, 2 * PAGE as u64, &data[2 * PAGE..]).unwrap();

    assert_eq!(share.contents("file"), data);
    assert_eq!(share.client().read(file.node, file.fh, 0, 3 * PAGE as u32).unwrap(), data);
}

#[test]
fn a_file_created_with_o_trunc_and_o_direct_is_not_emptied_by_misaligned_io() {
    let mut share = Share::on_disk(&["--allow-direct-io"]);
    let flags = libc::O_RDWR | libc::O_DIRECT | libc::O_TRUNC;
    let created: File = share.client().create(ROOT, "file", 0o644, flags).unwrap().into();
    let nameless: File = share.client().tmpfile(ROOT, 0o644, flags).unwrap().into();
    let data = noise(7, 2 * PAGE);

    for file in [created, nameless] {
        share.client().write(file.node, file.fh, 0, &data).unwrap();
        assert!(share.client().read(file.node, file.fh, 100, 1000).unwrap() == data[100..1100]);
        assert_eq!(share.client().getattr(file.node, Some(file.fh)).unwrap().attr.size, data.len() as u64);
    }
}

#[test]
fn with_writeback_a_file_opened_for_writing_can_be_read_for_the_page_cache() {
    let mut share = Share::with(&["--writeback"]);
    assert!(share.client().init_flags() & init::WRITEBACK_CACHE != 0);
    share.put("file", b"content");
    let opened = share.open("file", libc::O_WRONLY);
    let created: File = share.client().create(ROOT, "new", 0o200, libc::O_WRONLY).unwrap().into();

    assert_eq!(share.client().read(opened.node, opened.fh, 0, 100).unwrap(), b"content");
    assert_eq!(share.client().read(created.node, created.fh, 0, 100).unwrap(), b"");
    // The guest knows the end of a file better than the host does.
    share.client().file_flags = (libc::O_WRONLY | libc::O_APPEND).cast_unsigned();
    share.client().write(opened.node, opened.fh, 0, b"C").unwrap();
    assert_eq!(share.contents("file"), b"Content");

    assert!(Share::new().client().init_flags() & init::WRITEBACK_CACHE == 0);
}

#[test]
fn a_readonly_share_refuses_every_change_with_erofs_and_serves_the_rest() {
    let mut share =
        Share::start(share::Setup { options: &["--readonly", "--xattr"], directory: Scratch::on_disk(), ..share::Setup::default() });
    share.put("file", b"content");
    std::fs::create_dir(share.path("dir")).unwrap();
    let file = share.open("file", libc::O_RDONLY);
    let before = std::fs::metadata(share.path("file")).unwrap();
    let c = share.client();
    let (node, fh) = (file.node, file.fh);

    assert_eq!(errno(c.create(ROOT, "new", 0o644, libc::O_RDWR)), libc::EROFS);
    assert_eq!(errno(c.create(ROOT, "file", 0o644, libc::O_RDWR)), libc::EROFS);
    assert_eq!(errno(c.tmpfile(ROOT, 0o644, libc::O_RDWR)), libc::EROFS);
    assert_eq!(errno(c.mknod(ROOT, "new", libc::S_IFIFO | 0o644, 0)), libc::EROFS);
    assert_eq!(errno(c.mkdir(ROOT, "new", 0o755)), libc::EROFS);
    assert_eq!(errno(c.symlink(ROOT, "new", "x")), libc::EROFS);
    assert_eq!(errno(c.link(node, ROOT, "new")), libc::EROFS);
    assert_eq!(errno(c.unlink(ROOT, "file")), libc::EROFS);
    assert_eq!(errno(c.rmdir(ROOT, "dir")), libc::EROFS);
    assert_eq!(errno(c.rename(ROOT, "file", ROOT, "new")), libc::EROFS);
    assert_eq!(errno(c.rename2((ROOT, "file"), (ROOT, "dir"), libc::RENAME_EXCHANGE)), libc::EROFS);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(errno(c.open(node, flags)), libc::EROFS, "{flags:#o}");
    }
    assert_eq!(errno(c.write(node, fh, 0, b"x")), libc::EROFS);
    assert_eq!(errno(fallocate(c, file, 0, 0, 100)), libc::EROFS);
    let copy = CopyFileRangeIn { fh_in: fh, nodeid_out: node, fh_out: fh, off_out: 100, len: 5, ..CopyFileRangeIn::default() };
    assert_eq!(errno(c.copy_file_range(node, &copy)), libc::EROFS);
    assert_eq!(errno(c.copy_file_range_64(node, &copy)), libc::EROFS);
    for valid in [flag::FATTR_MODE, flag::FATTR_UID, flag::FATTR_GID, flag::FATTR_SIZE, flag::FATTR_MTIME_NOW] {
        assert_eq!(errno(c.setattr(node, &change(valid))), libc::EROFS, "{valid:#x}");
        assert_eq!(errno(c.setattr(node, &SetattrIn { fh, ..change(valid | flag::FATTR_FH) })), libc::EROFS);
    }
    assert_eq!(errno(c.setxattr(node, "user.new", b"x", 0)), libc::EROFS);
    assert_eq!(errno(c.removexattr(node, "user.new")), libc::EROFS);
    assert_eq!(errno(c.access(node, libc::W_OK.cast_unsigned())), libc::EROFS);

    assert_eq!(c.read(node, fh, 0, 100).unwrap(), b"content");
    c.access(node, libc::R_OK.cast_unsigned()).unwrap();
    c.fsync(node, fh, false).unwrap();
    c.syncfs(ROOT).unwrap();
    let dir = c.opendir(ROOT).unwrap();
    assert_eq!(c.readdir(ROOT, dir.fh, 0, 4096).unwrap().len(), 4);
    let after = std::fs::metadata(share.path("file")).unwrap();
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    assert_eq!(after.permissions(), before.permissions());
}

#[test]
fn a_file_that_the_host_changes_is_read_as_it_is_now() {
    let mut share = Share::new();
    share.put("file", b"first");
    let file = share.open("file", libc::O_RDONLY);
    let on_host = std::fs::OpenOptions::new().write(true).open(share.path("file")).unwrap();

    on_host.write_all_at(b"SECOND", 3).unwrap();

    assert_eq!(share.client().read(file.node, file.fh, 0, 100).unwrap(), b"firSECOND");
    assert_eq!(share.client().getattr(file.node, None).unwrap().attr.size, 9);
}
