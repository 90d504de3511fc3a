//! `--killpriv-v2`: setuid, setgid and capabilities go on the host, in the same call that changes the file.
//! What a changer keeps is man chmod(2)'s and capabilities(7)'s; only root can make files with these bits for others.

use std::os::unix::fs::chown;

use gatherfs_support::guest::fuse::{CopyFileRangeIn, FallocateIn, OpenIn, ROOT, SetattrIn, flag, init, opcode};
use gatherfs_support::private_mounts::{self, Mount};
use gatherfs_support::share::{File, Scratch, Setup, Share, change, is_root};

use super::{capability, mode, on_host, put, set_mode};

const V1: u64 = init::HANDLE_KILLPRIV;
const V2: u64 = init::HANDLE_KILLPRIV_V2;

/// A share with an agreement on `flags` of killpriv, and a file of another user.
fn agreed_on(options: &[&str], flags: u64) -> (Share, File) {
    let directory = Scratch::on_disk();
    let mut share = Share::start_unmounted(Setup { options, directory, ..Setup::default() });
    share.client().init_with(init::LINUX & !(V1 | V2) | flags).unwrap();
    let file = share.make("file");
    chown(share.path("file"), Some(1000), Some(2000)).unwrap();
    (share, file)
}

/// Each way to change a file's contents with its flag to clear setuid, and without where it has none.
fn changes(share: &mut Share, file: File, kill: bool) -> Vec<(&'static str, u32)> {
    let mut results = Vec::new();
    for what in ["write", "truncate by handle", "truncate by node", "open", "fallocate", "copy"] {
        put(share, "file", "security.capability", &capability());
        set_mode(share, "file", 0o6775);
        let c = share.client();
        match what {
            "write" => {
                c.write_flags = if kill { flag::WRITE_KILL_SUIDGID } else { 0 };
                c.write(file.node, file.fh, 0, b"0123456789").unwrap();
            }
            "truncate by handle" | "truncate by node" => {
                let by_handle = if what.ends_with("handle") { flag::FATTR_FH } else { 0 };
                let kill = if kill { flag::FATTR_KILL_SUIDGID } else { 0 };
                let set = SetattrIn { fh: file.fh, size: 4, ..change(flag::FATTR_SIZE | by_handle | kill) };
                c.setattr(file.node, &set).unwrap();
            }
            "open" => {
                let flags = (libc::O_RDWR | libc::O_TRUNC).cast_unsigned();
                let open = OpenIn { flags, open_flags: if kill { flag::OPEN_KILL_SUIDGID } else { 0 } };
                c.raw(opcode::OPEN, file.node, gatherfs_support::guest::client::bytes_of(&open), 16).unwrap();
            }
            "fallocate" => c.fallocate(file.node, &FallocateIn { fh: file.fh, length: 8192, ..FallocateIn::default() }).unwrap(),
            _ => {
                let copy = CopyFileRangeIn {
                    fh_in: file.fh,
                    nodeid_out: file.node,
                    fh_out: file.fh,
                    off_out: 4096,
                    len: 100,
                    ..Default::default()
                };
                c.copy_file_range_64(file.node, &copy).unwrap();
            }
        }
        assert!(on_host(&share.path("file"), "security.capability").is_err(), "{what}: capabilities go whoever changes the file");
        results.push((what, mode(share, "file")));
    }
    results
}

#[test]
fn the_second_version_is_agreed_on_and_the_first_with_guests_that_have_no_other() {
    let (on, off) = (&["--killpriv-v2"][..], &["--no-killpriv-v2"][..]);
    for (options, guest, agreed) in [(on, V1 | V2, V2), (on, V1, V1), (on, 0, 0), (off, V1 | V2, 0)] {
        assert_eq!(agreement(Scratch::on_tmpfs(), options, guest), agreed, "{options:?} {guest:#x}");
    }
}

/// What of killpriv a share agrees on with a guest that knows `guest`.
fn agreement(directory: Scratch, options: &[&str], guest: u64) -> u64 {
    let mut share = Share::start_unmounted(Setup { directory, options, ..Setup::default() });
    share.client().init_with(init::LINUX & !(V1 | V2) | guest).unwrap();
    share.client().init_flags() & (V1 | V2)
}

#[test]
fn without_an_option_the_second_version_is_agreed_on_where_the_file_system_is_known_to_clear_bits() {
    // /dev/shm is a tmpfs.
    assert_eq!(agreement(Scratch::on_tmpfs(), &[], V1 | V2), V2);
    assert_eq!(agreement(Scratch::on_tmpfs(), &[], V1), 0, "the first version is for those who ask for it: root would lose bits");
    if !private_mounts::enter() {
        return;
    }
    for (options, agreed) in [(&[][..], 0), (&["--killpriv-v2"], V2)] {
        let directory = Scratch::on_tmpfs();
        let _mount = Mount::new("ramfs", directory.path());
        assert_eq!(agreement(directory, options, V1 | V2), agreed, "{options:?} on a file system that is not on the list");
    }
}

/// A WRITE lays CAP_FSETID down for the thread, and leaves it so for the next.
#[test]
fn after_a_users_write_root_keeps_and_sets_bits_as_before() {
    if !is_root() {
        return;
    }
    let (mut share, file) = agreed_on(&["--killpriv-v2"], V1 | V2);
    set_mode(&share, "file", 0o6775);
    for _ in 0..3 {
        let c = share.client();
        c.caller.uid = 1234;
        c.write_flags = flag::WRITE_KILL_SUIDGID;
        c.write(file.node, file.fh, 0, b"a user's").unwrap();
        assert_eq!(mode(&share, "file"), 0o775);

        let c = share.client();
        (c.caller.uid, c.write_flags) = (0, 0);
        c.setattr(file.node, &SetattrIn { mode: 0o6775, ..change(flag::FATTR_MODE) }).unwrap();
        assert_eq!(mode(&share, "file"), 0o6775, "the file's group is not the daemon's, so setgid takes CAP_FSETID");
    }
    let c = share.client();
    c.write_flags = flag::WRITE_KILL_SUIDGID;
    c.write(file.node, file.fh, 0, b"a user's").unwrap();
    set_mode(&share, "file", 0o6775);
    share.client().write_flags = 0;
    share.client().write(file.node, file.fh, 0, b"root's").unwrap();
    assert_eq!(mode(&share, "file"), 0o6775);
}

#[test]
fn with_the_second_version_bits_go_where_the_request_says_so_and_from_callers_who_cannot() {
    if !is_root() {
        return;
    }
    let (mut share, file) = agreed_on(&["--killpriv-v2"], V1 | V2);

    for (what, mode) in changes(&mut share, file, false) {
        assert_eq!(mode, 0o6775, "{what} by root");
    }
    share.client().caller.uid = 1234;
    for (what, mode) in changes(&mut share, file, true) {
        assert_eq!(mode, 0o775, "{what}");
    }
}

/// Linux 6.12 and newer name no caller of a FALLOCATE or COPY_FILE_RANGE. Before one by a user they send a SETATTR that sets
/// nothing, before one by root they do not.
#[test]
fn a_setattr_that_sets_nothing_clears_the_bits_and_a_change_without_a_caller_does_not() {
    if !is_root() {
        return;
    }
    let (mut share, file) = agreed_on(&["--killpriv-v2"], V1 | V2);
    let nothing = |valid| SetattrIn { fh: file.fh, ..change(valid) };
    // setgid also where the group may not execute: the caller is not of the group, or Linux does not ask.
    for (mode_before, mode_after) in [(0o6775, 0o775), (0o6666, 0o666), (0o2664, 0o664), (0o4711, 0o711), (0o1644, 0o1644)] {
        for valid in [0, flag::FATTR_FH] {
            set_mode(&share, "file", mode_before);
            let answer = share.client().setattr(file.node, &nothing(valid)).unwrap();
            assert_eq!((mode(&share, "file"), answer.attr.mode & 0o7777), (mode_after, mode_after), "{mode_before:o}");
        }
    }
    std::fs::create_dir(share.path("dir")).unwrap();
    set_mode(&share, "dir", 0o2775);
    let dir = share.client().lookup(ROOT, "dir").unwrap().nodeid;
    share.client().setattr(dir, &change(0)).unwrap();
    assert_eq!(mode(&share, "dir"), 0o2775, "what setgid means for a directory is not at stake");

    share.client().caller.uid = u32::MAX;
    share.client().write_flags = flag::WRITE_KILL_SUIDGID;
    for (what, mode) in changes(&mut share, file, true) {
        let asks_before = ["fallocate", "copy"].contains(&what);
        assert_eq!(mode, if asks_before { 0o6775 } else { 0o775 }, "{what}");
    }
    let (mut share, file) = agreed_on(&["--no-killpriv-v2"], V1 | V2);
    set_mode(&share, "file", 0o6775);
    share.client().setattr(file.node, &nothing(0)).unwrap();
    assert_eq!(mode(&share, "file"), 0o6775, "the guest does it by itself");
}

#[test]
fn with_the_first_version_bits_always_go() {
    if !is_root() {
        return;
    }
    let (mut share, file) = agreed_on(&["--killpriv-v2"], V1);

    for (what, mode) in changes(&mut share, file, false) {
        assert_eq!(mode, 0o775, "{what}");
    }
}

#[test]
fn without_an_agreement_the_guest_clears_bits_by_itself() {
    if !is_root() {
        return;
    }
    let (mut share, file) = agreed_on(&["--no-killpriv-v2"], V1 | V2);
    share.client().caller.uid = 1234;

    for (what, mode) in changes(&mut share, file, false) {
        assert_eq!(mode, 0o6775, "{what}");
    }
}

#[test]
fn a_new_owner_gets_neither_bits_nor_capabilities() {
    if !is_root() {
        return;
    }
    for options in [&["--no-killpriv-v2"], &["--killpriv-v2"]] {
        let (mut share, file) = agreed_on(options, V1 | V2);
        put(&share, "file", "security.capability", &capability());
        set_mode(&share, "file", 0o6775);

        share.client().setattr(file.node, &SetattrIn { uid: 1001, ..change(flag::FATTR_UID) }).unwrap();

        assert_eq!(mode(&share, "file"), 0o775);
        assert!(on_host(&share.path("file"), "security.capability").is_err());
    }
}

#[test]
fn capabilities_that_the_host_does_not_know_by_their_name_go_too() {
    const NAME: &str = "user.v.security.capability";
    let mut share = Share::on_disk(&["--xattrmap", ":map::user.v.:"]);
    let file = share.make("file");
    let dir = share.client().mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
    let owner = share.client().getattr(file.node, None).unwrap().attr.uid;
    let own = SetattrIn { uid: owner, ..change(flag::FATTR_UID) };
    type Change<'c> = (&'static str, &'c dyn Fn(&mut Share));
    let changes: [Change<'_>; 5] = [
        ("write", &|s| _ = s.client().write(file.node, file.fh, 0, b"x").unwrap()),
        ("truncate", &|s| _ = s.client().truncate(file.node, None, 10).unwrap()),
        ("chown", &|s| _ = s.client().setattr(file.node, &own).unwrap()),
        ("open", &|s| _ = s.client().open(file.node, libc::O_RDWR | libc::O_TRUNC).unwrap()),
        ("fallocate", &|s| s.client().fallocate(file.node, &FallocateIn { fh: file.fh, length: 9, ..Default::default() }).unwrap()),
    ];
    for (what, change) in changes {
        share.client().setxattr(file.node, "security.capability", b"some", 0).unwrap();
        assert_eq!(on_host(&share.path("file"), NAME).unwrap(), b"some", "{what}");

        change(&mut share);

        assert!(on_host(&share.path("file"), NAME).is_err(), "{what}");
    }
    let c = share.client();
    c.setxattr(file.node, "security.capability", b"some", 0).unwrap();
    c.read(file.node, file.fh, 0, 10).unwrap();
    c.setxattr(file.node, "user.other", b"x", 0).unwrap();
    c.setxattr(dir, "security.capability", b"some", 0).unwrap();
    c.setattr(dir, &own).unwrap();

    assert_eq!(on_host(&share.path("file"), NAME).unwrap(), b"some", "nothing was changed");
    assert_eq!(on_host(&share.path("dir"), NAME).unwrap(), b"some", "directories keep theirs");
}

/// The file was made without a right to write, as git makes its objects, and stays open for writing.
#[test]
fn a_daemon_of_another_user_writes_what_it_could_not_open_again() {
    if !is_root() {
        return;
    }
    let before = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"].map(str::to_owned).to_vec();
    let options = &["--xattrmap", ":map::user.v.:"];
    let directory = Scratch::on_tmpfs();
    std::os::unix::fs::chown(directory.path(), Some(65_534), Some(65_534)).unwrap();
    let mut share = Share::start(Setup { directory, options, before, ..Setup::default() });
    let made = share.client().create(ROOT, "object", 0o444, libc::O_RDWR).unwrap();
    assert_eq!(share.client().write(made.entry.nodeid, made.open.fh, 0, b"contents").unwrap(), 8);
}

#[test]
fn a_write_through_io_uring_clears_what_its_flag_says() {
    if !is_root() {
        return;
    }
    for engine in ["sync", "uring"] {
        if engine == "uring" && gatherfs::io::Rings::new(1, false).is_err() {
            println!("skipped: no rings");
            continue;
        }
        let (mut share, file) = agreed_on(&["--killpriv-v2", "--io-engine", engine], V1 | V2);
        // One after the other by the same threads, whose capabilities are those of the WRITE before.
        for kill in [true, false, false, true, false] {
            set_mode(&share, "file", 0o6775);
            let c = share.client();
            c.write_flags = if kill { flag::WRITE_KILL_SUIDGID } else { 0 };
            c.write(file.node, file.fh, 0, b"0123456789").unwrap();
            assert_eq!(mode(&share, "file"), if kill { 0o775 } else { 0o6775 }, "{engine}, {kill}");
        }
    }
}
