//! Labels of new files: set before the guest is told of them, or there is no new file.

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::{self, ROOT, init, opcode};
use gatherfs_support::places::has_attributes_of;
use gatherfs_support::share::{Scratch, Setup, Share, errno};

use super::{capability, on_host};

/// What each create is answered with; an errno where it failed. Existing names are used again.
fn make_each(c: &mut Client) -> Vec<(&'static str, Result<u64, i32>)> {
    let node = |result: Result<u64, gatherfs_support::guest::client::CallError>| result.map_err(|e| e.errno().unwrap());
    vec![
        ("file", node(c.create(ROOT, "file", 0o666, libc::O_RDWR | libc::O_EXCL).map(|o| o.entry.nodeid))),
        ("dir", node(c.mkdir(ROOT, "dir", 0o777).map(|e| e.nodeid))),
        ("fifo", node(c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o666, 0).map(|e| e.nodeid))),
        ("link", node(c.symlink(ROOT, "link", "x").map(|e| e.nodeid))),
        ("", node(c.tmpfile(ROOT, 0o666, libc::O_RDWR).map(|o| o.entry.nodeid))),
    ]
}

fn label(name: &str, value: &[u8]) -> Option<(String, Vec<u8>)> {
    Some((name.to_owned(), value.to_vec()))
}

#[test]
fn every_kind_of_new_file_has_its_label() {
    let mut share = Share::on_disk(&["--security-label"]);
    let c = share.client();
    assert!(c.init_flags() & init::SECURITY_CTX != 0);
    c.label = label("security.capability", &capability());

    for (name, made) in make_each(c) {
        let node = made.unwrap();
        assert_eq!(share.client().getxattr(node, "security.capability", 100).unwrap(), capability(), "{name}");
        if !name.is_empty() {
            assert_eq!(on_host(&share.path(name), "security.capability").unwrap(), capability(), "{name}");
        }
    }
    // Opening what is there is no create.
    let c = share.client();
    c.label = label("security.nobody.may.set.this", b"x");
    assert!(c.create(ROOT, "file", 0o666, libc::O_RDWR).is_ok());
    // A guest without a security module says so.
    c.label = None;
    assert!(c.mkdir(ROOT, "plain", 0o755).is_ok());
    assert!(on_host(&share.path("plain"), "security.capability").is_err());
}

#[test]
fn a_label_that_cannot_be_set_leaves_nothing_behind() {
    let mut share = Share::on_disk(&["--security-label=auto"]);
    let len = 60_000;
    let is_too_long = !has_attributes_of(share.root(), len);
    if !is_too_long {
        eprintln!("skipped: no label of {len} bytes is too long for {}", share.root().display());
    }
    let c = share.client();

    // Too long for the host's file system; and symbolic links and FIFOs have no user attributes at all.
    c.label = label("user.of-unknown\u{1}.sort", &vec![b'x'; len]);
    let made = if is_too_long { make_each(c) } else { Vec::new() };
    for (name, made) in made {
        assert!(matches!(made, Err(libc::ENOSPC | libc::E2BIG | libc::EPERM)), "{name}: {made:?}");
    }
    // Of a sort that no file system of the host's has.
    c.label = label("unknown.sort", b"x");
    for (name, made) in make_each(c) {
        assert_eq!(made, Err(libc::EOPNOTSUPP), "{name}");
    }

    assert_eq!(std::fs::read_dir(share.root()).unwrap().count(), 0);
}

#[test]
fn labels_go_by_the_names_that_the_map_gives_them() {
    let mut share = Share::on_disk(&["--security-label", "--xattrmap", ":bad:client:security.no.:: :map:security.:user.v.:"]);
    let c = share.client();
    c.label = label("security.selinux", b"system_u:object_r:tmp_t:s0\0");
    assert!(c.create(ROOT, "file", 0o644, libc::O_RDWR).is_ok());
    c.label = label("security.no.selinux", b"x");
    for (name, made) in make_each(c) {
        assert_eq!(made, Err(if name == "file" { libc::EEXIST } else { libc::EPERM }), "{name}");
    }

    assert_eq!(on_host(&share.path("file"), "user.v.security.selinux").unwrap(), b"system_u:object_r:tmp_t:s0\0");
    assert_eq!(std::fs::read_dir(share.root()).unwrap().count(), 1);
}

#[test]
fn a_guest_that_sends_no_labels_is_served_or_refused_as_the_option_says() {
    for (option, refused) in [("--security-label=auto", false), ("--security-label=always", true), ("--security-label", true)] {
        let directory = Scratch::on_disk();
        let mut share = Share::start_unmounted(Setup { options: &[option], directory, ..Setup::default() });
        let init = share.client().init_with(init::LINUX & !init::SECURITY_CTX);
        if refused {
            assert_eq!(errno(init), libc::EPROTO, "{option}");
        } else {
            init.unwrap();
            assert!(share.client().mkdir(ROOT, "dir", 0o755).is_ok(), "{option}");
        }
    }
    assert!(Share::on_disk(&[]).client().init_flags() & init::SECURITY_CTX == 0);
}

#[test]
fn a_create_without_a_word_of_labels_is_refused_once_they_are_agreed_on() {
    let mut share = Share::on_disk(&["--security-label"]);
    let args = [&0o755u32.to_ne_bytes()[..], &0u32.to_ne_bytes(), &fuse::name("dir")].concat();

    assert_eq!(share.client().raw(opcode::MKDIR, ROOT, &args, 128).unwrap().header.error, -libc::EINVAL);

    assert_eq!(std::fs::read_dir(share.root()).unwrap().count(), 0);
}

#[test]
fn linux_before_6_3_sends_its_label_right_behind_the_names() {
    let directory = Scratch::on_disk();
    let mut share = Share::start_unmounted(Setup { options: &["--security-label"], directory, ..Setup::default() });
    let flags = init::SECURITY_CTX | init::INIT_EXT;
    let words = [7, 37, 0, flags as u32, (flags >> 32) as u32];
    let init: Vec<u8> = words.iter().chain(&[0; 11]).flat_map(|w: &u32| w.to_ne_bytes()).collect();
    share.client().raw(opcode::INIT, 0, &init, 64).unwrap();
    let context = [&20u32.to_ne_bytes()[..], &0u32.to_ne_bytes(), &fuse::name("security.capability"), &capability()].concat();
    let len = (8 + context.len()).next_multiple_of(8);
    let mut block = [&(len as u32).to_ne_bytes()[..], &1u32.to_ne_bytes(), &context].concat();
    block.resize(len, 0);

    let mkdir = [&0o755u32.to_ne_bytes()[..], &0u32.to_ne_bytes(), &fuse::name("dir"), &block].concat();
    share.client().raw(opcode::MKDIR, ROOT, &mkdir, 128).unwrap();
    let symlink = [&fuse::name("link")[..], &fuse::name("target"), &block].concat();
    share.client().raw(opcode::SYMLINK, ROOT, &symlink, 128).unwrap();

    for name in ["dir", "link"] {
        assert_eq!(on_host(&share.path(name), "security.capability").unwrap(), capability(), "{name}");
    }
}
