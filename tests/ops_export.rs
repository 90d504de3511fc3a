//! What an NFS server in the guest, and open_by_handle_at(2) there, rest on: a node that was forgotten is found
//! again by its id, and a directory leads to its parent.

use std::collections::BTreeMap;

use gatherfs_support::guest::fuse::{ROOT, init};
use gatherfs_support::share::{self, Share, errno};

#[test]
fn a_forgotten_node_is_found_again_by_its_id() {
    if !share::is_root() {
        return;
    }
    for mut share in Share::with_file_handles() {
        share.put("file", b"contents");
        let c = share.client();
        let file = c.lookup(ROOT, "file").unwrap();
        let dir = c.mkdir(ROOT, "dir", 0o755).unwrap();
        for (entry, name) in [(file, "file"), (dir, "dir")] {
            let node = entry.nodeid;
            assert_eq!(c.lookup(node, ".").unwrap().nodeid, node, "while it is known");
            c.forget(node, 2).unwrap();

            let again = c.lookup(node, ".").unwrap();
            assert_eq!((again.nodeid, again.generation, again.attr.ino), (node, entry.generation, entry.attr.ino));
            c.forget(node, 1).unwrap();
            assert_eq!(c.lookup(ROOT, name).unwrap().nodeid, node, "by name too");
            c.forget(node, 1).unwrap();
        }
        assert_eq!(c.lookup(ROOT, ".").unwrap().nodeid, ROOT);
        for unknown in [0, 99, u64::MAX, file.nodeid ^ 1 << 40] {
            assert_eq!(errno(c.lookup(unknown, ".")), libc::ESTALE, "{unknown:#x}");
            assert_eq!(errno(c.lookup(unknown, "..")), libc::ESTALE, "{unknown:#x}");
        }
    }
}

#[test]
fn a_forgotten_node_whose_file_is_deleted_is_stale_and_never_another_file() {
    if !share::is_root() {
        return;
    }
    for mut share in Share::with_file_handles() {
        let mut reused = 0;
        for round in 0..50 {
            let name = format!("file{round}");
            share.put(&name, b"old");
            let old = share.client().lookup(ROOT, &name).unwrap();
            share.client().forget(old.nodeid, 1).unwrap();
            std::fs::remove_file(share.path(&name)).unwrap();
            assert_eq!(errno(share.client().lookup(old.nodeid, ".")), libc::ESTALE, "round {round}");
            // ext4 gives the number of a deleted file to the next one.
            share.put(&name, b"new!");
            let new = share.client().lookup(ROOT, &name).unwrap();
            reused += u32::from(new.attr.ino == old.attr.ino);
            assert_ne!(new.nodeid, old.nodeid, "round {round}");
            // ENOMEM is what ext4 answers, rarely, while another process makes a file with this very number.
            let stale = errno(share.client().lookup(old.nodeid, "."));
            assert!(stale == libc::ESTALE || stale == libc::ENOMEM, "round {round}: {stale}");
            share.client().forget(new.nodeid, 1).unwrap();
        }
        println!("{reused} of 50 inode numbers were given again");
    }
}

#[test]
fn a_directory_leads_to_its_parent_and_never_out_of_the_share() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    std::fs::create_dir_all(share.path("a/b")).unwrap();
    share.put("file", b"");
    let c = share.client();
    let file = c.lookup(ROOT, "file").unwrap().nodeid;
    let a = c.lookup(ROOT, "a").unwrap().nodeid;
    let b = c.lookup(a, "b").unwrap().nodeid;

    assert_eq!(c.lookup(b, "..").unwrap().nodeid, a);
    assert_eq!(c.lookup(a, "..").unwrap().nodeid, ROOT);
    assert_eq!(c.lookup(ROOT, "..").unwrap().nodeid, ROOT, "nothing lies above the share");
    assert_eq!(errno(c.lookup(file, "..")), libc::ENOTDIR);
    // The parent was forgotten.
    c.forget(a, 2).unwrap();
    assert_eq!(c.lookup(b, "..").unwrap().nodeid, a);
    // What the host moved out of the share leads nowhere.
    let outside = share.outside("moved");
    std::fs::rename(share.path("a"), &outside).unwrap();
    let c = share.client();
    assert_eq!(errno(c.lookup(b, "..")), libc::ESTALE);
    assert_eq!(errno(c.lookup(a, "..")), libc::ESTALE);
    std::fs::rename(&outside, share.path("a")).unwrap();
    assert_eq!(share.client().lookup(b, "..").unwrap().nodeid, a);
}

#[test]
fn without_file_handles_or_a_guest_that_asks_nothing_is_found_by_its_id_alone() {
    let mut shares = vec![Share::with(&["--inode-file-handles", "never"])];
    if share::is_root() {
        shares.push(Share::forgetting());
    }
    for mut share in shares {
        std::fs::create_dir(share.path("dir")).unwrap();
        let c = share.client();
        assert_eq!(c.init_flags() & init::EXPORT_SUPPORT, 0);
        let dir = c.lookup(ROOT, "dir").unwrap().nodeid;
        assert_eq!(errno(c.lookup(dir, ".")), libc::EINVAL);
        assert_eq!(errno(c.lookup(dir, "..")), libc::EINVAL);
        c.forget(dir, 1).unwrap();
        assert_eq!(errno(c.getattr(dir, None)), libc::ESTALE);
    }
}

#[test]
fn the_end_of_a_session_is_the_end_of_every_id() {
    let mut share = Share::new();
    share.put("file", b"");
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    c.forget(node, 1).unwrap();
    c.destroy().unwrap();
    c.init().unwrap();
    assert_eq!(errno(c.getattr(node, None)), libc::ESTALE);
    assert_ne!(c.lookup(ROOT, "file").unwrap().nodeid, node);
}

#[test]
fn any_order_of_lookups_and_forgets_leads_to_the_same_file_or_none() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    for i in 0..40 {
        share.put(&format!("file{i}"), &vec![0; i]);
    }
    // Which file each id ever meant, by its size.
    let mut meant = BTreeMap::new();
    let mut state = 1u64;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for step in 0..5000 {
        let size = below(40);
        let ids: Vec<u64> = meant.keys().copied().collect();
        let id = if ids.is_empty() { ROOT } else { ids[below(ids.len() as u64) as usize] };
        let found = match below(5) {
            0 => share.client().lookup(ROOT, &format!("file{size}")),
            1 => share.client().lookup(id, "."),
            2 => {
                share.client().forget(id, [0, 1, 2, u64::MAX][below(4) as usize]).unwrap();
                continue;
            }
            3 => {
                // Deleted and made anew: another file.
                if below(10) == 0 {
                    std::fs::remove_file(share.path(&format!("file{size}"))).unwrap();
                    share.put(&format!("file{size}"), &vec![0; size as usize]);
                }
                continue;
            }
            _ => share.client().lookup(id, ".."),
        };
        if let Ok(entry) = found
            && entry.nodeid != ROOT
        {
            let size = *meant.entry(entry.nodeid).or_insert(entry.attr.size);
            assert_eq!(entry.attr.size, size, "step {step}: node {:#x}", entry.nodeid);
        }
    }
    assert!(meant.len() >= 40, "{} nodes", meant.len());
}

#[test]
fn what_a_guest_forgot_takes_no_memory_from_the_host() {
    if !share::is_root() {
        return;
    }
    // Several blocks of records, of 128 bytes each.
    const FILES: usize = 20_000;
    let mut share = Share::forgetting();
    let records_kib = |share: &Share| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", share.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    for i in 0..FILES {
        share.put(&format!("file{i}"), b"");
    }
    let before = records_kib(&share);
    // The second time in memory that was given back.
    for _ in 0..2 {
        let nodes: Vec<u64> = (0..FILES).map(|i| share.client().lookup(ROOT, &format!("file{i}")).unwrap().nodeid).collect();
        let knows = records_kib(&share);
        assert!(knows >= before + FILES as u64 * 128 / 1024, "{before} KiB, then {knows}");
        nodes.iter().for_each(|node| share.client().forget(*node, 1).unwrap());
        // A FORGET has no answer: this one is taken after the others.
        share.client().getattr(ROOT, None).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while records_kib(&share) > before + 1024 {
            assert!(std::time::Instant::now() < deadline, "{before} KiB, {knows} known, then {}", records_kib(&share));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(nodes.iter().all(|node| errno(share.client().getattr(*node, None)) == libc::ESTALE));
    }
}
