//! Mounts below the share: their files are served, and each has a number of its own on what the guest takes for
//! one device.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::{EntryOut, ROOT, flag, init};
use gatherfs_support::private_mounts::{self, Mount};
use gatherfs_support::share::{Scratch, Setup, Share, errno};

/// The file systems' own numbers as the host tells them.
fn host_ino(share: &Share, name: &str) -> u64 {
    std::fs::metadata(share.path(name)).unwrap().ino()
}

/// A share that is a fresh tmpfs, so that its numbers begin where another one's do.
fn fresh(flags: u64) -> (Share, Mount) {
    let directory = Scratch::on_tmpfs();
    let mount = Mount::new("tmpfs", directory.path());
    let mut share = Share::start_unmounted(Setup { directory, ..Setup::default() });
    share.client().init_with(flags).unwrap();
    (share, mount)
}

/// Holds every way of asking for the number of `name` in `parent` to the same answer.
fn number(c: &mut Client, parent: u64, name: &str) -> u64 {
    let entry = c.lookup(parent, name).unwrap();
    let (node, ino) = (entry.nodeid, entry.attr.ino);
    assert_eq!(c.getattr(node, None).unwrap().attr.ino, ino, "{name}: GETATTR");
    assert_eq!(c.statx(node, None, 0xfff).unwrap().stat.ino, ino, "{name}: STATX");
    if entry.attr.mode & libc::S_IFMT == libc::S_IFREG {
        let fh = c.open(node, libc::O_RDONLY).unwrap().fh;
        assert_eq!(c.getattr(node, Some(fh)).unwrap().attr.ino, ino, "{name}: GETATTR of a handle");
        c.release(node, fh).unwrap();
    }
    let fh = c.opendir(parent).unwrap().fh;
    let listed = c.readdirplus(parent, fh, 0, 32_768).unwrap();
    let found = listed.iter().find(|e| e.name == name.as_bytes()).unwrap();
    assert_eq!(found.ino, ino, "{name}: as it is listed");
    let listed = found.entry.unwrap();
    assert_eq!((listed.nodeid, listed.attr.ino, listed.attr.flags), (node, ino, entry.attr.flags), "{name}: READDIRPLUS");
    c.releasedir(parent, fh).unwrap();
    ino
}

fn is_submount(entry: &EntryOut) -> bool {
    entry.attr.flags & flag::ATTR_SUBMOUNT != 0
}

#[test]
fn a_file_system_below_the_share_is_served_and_announced() {
    if !private_mounts::enter() {
        return;
    }
    let mut share = Share::new();
    share.put("file", b"outside");
    let below = Mount::new("tmpfs", &share.path("below"));
    std::fs::create_dir(share.path("below/dir")).unwrap();
    share.put("below/dir/file", b"inside");
    let c = share.client();

    let mount = c.lookup(ROOT, "below").unwrap();
    assert!(is_submount(&mount), "a device of its own in the guest");
    let dir = c.lookup(mount.nodeid, "dir").unwrap();
    let file = c.lookup(dir.nodeid, "file").unwrap();
    assert!(!is_submount(&dir) && !is_submount(&file));
    let open = c.open(file.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(c.read(file.nodeid, open.fh, 0, 100).unwrap(), b"inside");
    c.release(file.nodeid, open.fh).unwrap();
    let made = c.create(mount.nodeid, "made", 0o644, libc::O_RDWR).unwrap();
    assert_eq!(c.write(made.entry.nodeid, made.open.fh, 0, b"made"), Ok(4));
    c.release(made.entry.nodeid, made.open.fh).unwrap();
    assert_eq!(errno(c.rename(ROOT, "file", mount.nodeid, "moved")), libc::EXDEV);
    let root = c.lookup(dir.nodeid, "..").unwrap();
    assert_eq!((root.nodeid, root.generation), (mount.nodeid, 0), "the guest's root of the mount has no generation");
    assert_ne!(c.lookup(ROOT, "below").unwrap().generation, 0);
    assert_eq!(c.lookup(mount.nodeid, "..").unwrap().nodeid, ROOT, "out of the mount, and no further");
    assert_eq!(share.contents("below/made"), b"made");
    for (name, parent) in [("dir", mount.nodeid), ("made", mount.nodeid), ("file", dir.nodeid)] {
        let path = if parent == dir.nodeid { "below/dir/file".to_owned() } else { format!("below/{name}") };
        let expected = host_ino(&share, &path);
        assert_eq!(number(share.client(), parent, name), expected, "{name}: its own device, its own number");
    }

    // What was forgotten holds no mount: the host can take it off.
    for node in [mount.nodeid, dir.nodeid, file.nodeid, made.entry.nodeid] {
        share.client().forget(node, u64::MAX).unwrap();
        assert_eq!(errno(share.client().getattr(node, None)), libc::ESTALE, "not kept in mind");
    }
    rustix::mount::unmount(share.path("below"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(!is_submount(&share.client().lookup(ROOT, "below").unwrap()));
    drop(below);
}

#[test]
fn a_directory_bound_below_the_share_is_another_node_of_the_same_contents() {
    if !private_mounts::enter() {
        return;
    }
    let mut share = Share::new();
    for dir in ["dir", "bound"] {
        std::fs::create_dir(share.path(dir)).unwrap();
    }
    share.put("dir/file", b"contents");
    let _bound = Mount::bind(&share.path("dir"), &share.path("bound"));
    let c = share.client();

    let (dir, bound) = (c.lookup(ROOT, "dir").unwrap(), c.lookup(ROOT, "bound").unwrap());
    assert!(is_submount(&bound) && !is_submount(&dir));
    assert_ne!(bound.nodeid, dir.nodeid);
    let (one, two) = (c.lookup(dir.nodeid, "file").unwrap(), c.lookup(bound.nodeid, "file").unwrap());
    assert_ne!(one.nodeid, two.nodeid);
    let open = c.open(two.nodeid, libc::O_RDWR).unwrap();
    assert_eq!(c.write(two.nodeid, open.fh, 0, b"CON"), Ok(3));
    assert_eq!(c.lookup(bound.nodeid, "..").unwrap().nodeid, ROOT);
    assert_eq!(share.contents("dir/file"), b"CONtents");
}

#[test]
fn a_file_bound_over_a_file_is_served_with_a_number_of_its_own() {
    if !private_mounts::enter() {
        return;
    }
    let (mut share, _mount) = fresh(init::LINUX);
    share.put("file", b"below");
    share.put("other", b"");
    let elsewhere = Scratch::on_tmpfs();
    let _elsewhere = Mount::new("tmpfs", elsewhere.path());
    // Another tmpfs gives the same numbers: here is the file with that of the share's.
    let wanted = host_ino(&share, "file");
    let same = (0..1000).map(|i| elsewhere.path().join(format!("file{i}"))).find(|path| {
        std::fs::write(path, b"from elsewhere").unwrap();
        std::fs::metadata(path).unwrap().ino() == wanted
    });
    let _bound = Mount::bind(&same.expect("the numbers meet"), &share.path("file"));
    let c = share.client();

    let file = c.lookup(ROOT, "file").unwrap();
    assert!(!is_submount(&file), "Linux announces directories only");
    let open = c.open(file.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(c.read(file.nodeid, open.fh, 0, 100).unwrap(), b"from elsewhere");
    c.release(file.nodeid, open.fh).unwrap();
    let (bound, other) = (number(c, ROOT, "file"), number(c, ROOT, "other"));
    assert_ne!(bound, host_ino(&share, "file"));
    assert_eq!(other, host_ino(&share, "other"), "those of the share are the host's");
}

#[test]
fn a_guest_that_takes_no_announcements_sees_no_number_twice() {
    if !private_mounts::enter() {
        return;
    }
    for (flags, unique) in [(init::LINUX & !init::SUBMOUNTS, true), (init::LINUX, false)] {
        let (mut share, _mount) = fresh(flags);
        let names = ["one", "two"];
        let _below: Vec<Mount> = names.iter().map(|name| Mount::new("tmpfs", &share.path(name))).collect();
        let mut seen = BTreeMap::new();
        let mut twice = 0;
        for i in 0..20 {
            share.put(&format!("file{i}"), b"");
        }
        for name in names {
            for i in 0..20 {
                share.put(&format!("{name}/file{i}"), b"");
            }
        }
        for parent_name in ["", "one", "two"] {
            let c = share.client();
            let parent = if parent_name.is_empty() { ROOT } else { c.lookup(ROOT, parent_name).unwrap().nodeid };
            for i in 0..20 {
                let name = format!("file{i}");
                let ino = number(share.client(), parent, &name);
                twice += u32::from(seen.insert(ino, (parent_name, name)).is_some());
            }
        }
        if unique {
            assert_eq!(twice, 0);
            // READDIR tells no attributes, so the number is all there is.
            let c = share.client();
            let one = c.lookup(ROOT, "one").unwrap().nodeid;
            let fh = c.opendir(one).unwrap().fh;
            for entry in c.readdir(one, fh, 0, 32_768).unwrap().iter().filter(|e| e.name.starts_with(b"file")) {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                assert_eq!(seen.get(&entry.ino), Some(&("one", name)), "READDIR");
            }
            c.releasedir(one, fh).unwrap();
        } else {
            assert!(twice > 0, "on devices of their own they need not differ, or this test shows nothing");
        }
    }
}

#[test]
fn a_file_that_an_overlay_copies_up_stays_the_node_that_it_was() {
    if !private_mounts::enter() {
        return;
    }
    // Without file handles, as overlays are by default, and with them.
    for options in ["", ",index=on,nfs_export=on"] {
        copy_up(options);
    }
}

fn copy_up(options: &str) {
    let mut share = Share::new();
    let layers = Scratch::on_tmpfs();
    let _layers = Mount::new("tmpfs", layers.path());
    for name in ["lower", "upper", "work", "lower/dir"] {
        std::fs::create_dir(layers.path().join(name)).unwrap();
    }
    std::fs::write(layers.path().join("lower/file"), b"below").unwrap();
    std::fs::create_dir(share.path("merged")).unwrap();
    let Some(_overlay) = Mount::overlay(layers.path(), &share.path("merged"), options) else { return };
    // The copies are born at another time than what they are of.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let c = share.client();

    let merged = c.lookup(ROOT, "merged").unwrap().nodeid;
    let (file, dir) = (c.lookup(merged, "file").unwrap().nodeid, c.lookup(merged, "dir").unwrap().nodeid);
    let open = c.open(file, libc::O_RDWR).unwrap();
    assert_eq!(c.write(file, open.fh, 0, b"ABOVE"), Ok(5));
    c.create(dir, "made", 0o644, libc::O_RDWR).unwrap();
    assert_eq!(std::fs::read(layers.path().join("upper/file")).unwrap(), b"ABOVE", "it was copied up");
    assert_eq!(c.lookup(merged, "file").unwrap().nodeid, file);
    assert_eq!(c.lookup(merged, "dir").unwrap().nodeid, dir, "or whoever works there has no way back");
    assert_eq!(c.lookup(dir, "..").unwrap().nodeid, merged);
    for node in [file, dir] {
        c.forget(node, 2).unwrap();
        assert_eq!(errno(c.getattr(node, None)), libc::ESTALE, "each lookup was counted");
    }
}
