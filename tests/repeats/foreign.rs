//! What another process does between the death and the second execution: what it made is neither removed nor taken for the guest's.

use std::os::unix::fs::PermissionsExt;

use gatherfs::host::{Appended, FileHandles, RequestContext};
use gatherfs::state::RequestRecord;
use gatherfs::sys::failpoint::Moment::{After, Before, Between};
use gatherfs::types::{Errno, NodeId};
use gatherfs_support::share::is_root;

use super::world::{LEN, World, left_of};
use super::{Point, dying_at, failing};

const ROOT: NodeId = NodeId::ROOT;
const EXCLUSIVE: u32 = (libc::O_RDWR | libc::O_EXCL) as u32;
const FILE_MODE: u32 = libc::S_IFREG | 0o644;
const COLLAPSE: u32 = libc::FALLOC_FL_COLLAPSE_RANGE as u32;

type Act = fn(&World, &RequestContext<'_>) -> Result<(), Errno>;

/// Executes `act` in a new world until it dies at `point`, lets `meanwhile` change the directory, and executes it again.
fn repeated(point: Point, meanwhile: fn(&World), act: Act) -> (Result<(), Errno>, World) {
    let (world, record) = (World::new(FileHandles::Prefer), RequestRecord::default());
    let died = dying_at(usize::MAX, Some(point), || act(&world, &world.request(0, &record, None)));
    assert!(died.is_none(), "the operation does not come to {point:?}");
    meanwhile(&world);
    let result = act(&world, &world.request(0, &record, left_of(&record)));
    (result, world)
}

fn mknod(w: &World, r: &RequestContext<'_>) -> Result<(), Errno> {
    w.share.mknod(ROOT, c"new", FILE_MODE, (0, 0), &w.create(r, false)?).map(|_| ())
}

fn mkdir(w: &World, r: &RequestContext<'_>) -> Result<(), Errno> {
    w.share.mkdir(ROOT, c"new", 0o755, &w.create(r, false)?).map(|_| ())
}

fn create(w: &World, r: &RequestContext<'_>) -> Result<(), Errno> {
    w.share.create(ROOT, c"new", EXCLUSIVE, 0o644, false, &w.create(r, false)?).map(|_| ())
}

/// Puts a file at `new` in place of whatever is there.
fn replace(w: &World) {
    std::fs::write(w.path("theirs"), b"").unwrap();
    std::fs::set_permissions(w.path("theirs"), PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::rename(w.path("theirs"), w.path("new")).unwrap();
}

fn mode(w: &World, name: &str) -> u32 {
    std::fs::symlink_metadata(w.path(name)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_another_process_made_at_the_name_is_not_taken_for_the_guests() {
    for (point, act) in [
        (("begun", Between), mknod as Act),
        (("mknodat", After), mknod),
        (("made", Between), mknod),
        (("openat2", Before), create),
        (("openat2", After), create),
        (("made", Between), create),
    ] {
        let (result, world) = repeated(point, replace, act);
        assert_eq!(result, Err(Errno::EEXIST), "{point:?}");
        assert_eq!(mode(&world, "new"), 0o600, "{point:?}");
    }
    // Another type, and a directory that is not empty.
    let (result, world) = repeated(("mkdirat", Before), replace, mkdir);
    assert_eq!((result, mode(&world, "new")), (Err(Errno::EEXIST), 0o600));
    let filled = |w: &World| std::fs::create_dir_all(w.path("new/theirs")).unwrap();
    let (result, world) = repeated(("mkdirat", Before), filled, mkdir);
    assert_eq!(result, Err(Errno::EEXIST));
    assert!(world.path("new/theirs").exists());
}

/// Which errno comes first is up to the host, in the second execution as in the first.
#[test]
fn a_name_that_was_there_before_is_the_hosts_to_refuse() {
    const USER: u32 = 1000;
    if !is_root() {
        return;
    }
    let mknod_there: Act = |w, r| w.share.mknod(w.sub, c"entry", FILE_MODE, (0, 0), &w.create(r, false)?).map(|_| ());
    let mkdir_there: Act = |w, r| w.share.mkdir(w.sub, c"entry", 0o755, &w.create(r, false)?).map(|_| ());
    let create_there: Act = |w, r| w.share.create(w.sub, c"entry", EXCLUSIVE, 0o644, false, &w.create(r, false)?).map(|_| ());
    for (name, act) in [("mknodat", mknod_there), ("mkdirat", mkdir_there), ("openat2", create_there)] {
        let (world, record) = (World::new(FileHandles::Prefer), RequestRecord::default());
        std::fs::set_permissions(world.path("sub"), PermissionsExt::from_mode(0o700)).unwrap();
        let died = dying_at(usize::MAX, Some((name, Before)), || act(&world, &world.request(USER, &record, None)));
        assert!(died.is_none(), "{name}");
        assert_eq!(act(&world, &world.request(USER, &record, left_of(&record))), Err(Errno::EACCES), "{name}");
        assert_eq!(act(&world, &world.request(USER, &RequestRecord::default(), None)), Err(Errno::EACCES), "{name}, the first time");
    }
}

#[test]
fn what_another_process_wrote_to_the_new_file_is_not_truncated() {
    let write = |w: &World| std::fs::write(w.path("new"), b"theirs").unwrap();
    let truncating = |w: &World, r: &RequestContext<'_>| {
        let flags = EXCLUSIVE | libc::O_TRUNC as u32;
        w.share.create(ROOT, c"new", flags, 0o644, false, &w.create(r, false)?).map(|_| ())
    };
    let (result, world) = repeated(("openat2", After), write, truncating);
    assert_eq!(result, Err(Errno::EEXIST), "nobody knows who made it");
    assert_eq!(std::fs::read(world.path("new")).unwrap(), b"theirs");
    let (result, world) = repeated(("made", Between), write, truncating);
    assert_eq!(result, Ok(()), "the guest made it");
    assert_eq!(std::fs::read(world.path("new")).unwrap(), b"theirs");
}

#[test]
fn a_new_name_that_another_process_removed_is_gone() {
    let remove = |w: &World| std::fs::remove_file(w.path("new")).unwrap();
    let (result, world) = repeated(("made", Between), remove, mknod);
    assert_eq!(result, Err(Errno::ENOENT));
    assert!(!world.path("new").exists());
}

#[test]
fn a_link_that_another_process_replaced_is_not_the_guests() {
    let link = |w: &World, r: &RequestContext<'_>| w.share.link(w.file, ROOT, c"new", r).map(|_| ());
    for point in [("linkat", Before), ("linkat", After), ("made", Between)] {
        let (result, world) = repeated(point, replace, link);
        assert_eq!((result, mode(&world, "new")), (Err(Errno::EEXIST), 0o600), "{point:?}");
    }
}

#[test]
fn what_another_process_made_at_a_removed_name_stays() {
    let unlink = |w: &World, r: &RequestContext<'_>| w.share.unlink(ROOT, c"other", r);
    let rmdir = |w: &World, r: &RequestContext<'_>| w.share.rmdir(ROOT, c"empty", r);
    // ext4 gives the new file the inode number of the removed one.
    let (result, world) = repeated(("unlinkat", After), |w| std::fs::write(w.path("other"), b"theirs").unwrap(), unlink);
    assert_eq!((result, std::fs::read(world.path("other")).unwrap()), (Ok(()), b"theirs".to_vec()));
    let (result, world) = repeated(("unlinkat", After), |w| std::fs::create_dir(w.path("empty")).unwrap(), rmdir);
    assert_eq!((result, world.path("empty").is_dir()), (Ok(()), true));
    // Replaced before the guest could remove it.
    let replaced = |w: &World| std::fs::rename(w.path("fresh"), w.path("other")).unwrap();
    let (result, world) = repeated(("unlinkat", Before), replaced, unlink);
    assert_eq!((result, std::fs::read(world.path("other")).unwrap().len()), (Ok(()), LEN));
}

#[test]
fn what_another_process_made_at_a_name_that_was_moved_stays() {
    let rename = |w: &World, r: &RequestContext<'_>| w.share.rename((ROOT, c"file"), (w.sub, c"entry"), 0, r);
    let (result, world) = repeated(("renameat2", After), |w| std::fs::write(w.path("file"), b"theirs").unwrap(), rename);
    assert_eq!(result, Ok(()));
    assert_eq!(std::fs::read(world.path("file")).unwrap(), b"theirs");
    assert_eq!(std::fs::read(world.path("sub/entry")).unwrap().len(), LEN, "moved once");
    // The guest looks both names up again after ENOENT.
    let removed = |w: &World| ["file", "sub/entry"].iter().for_each(|name| std::fs::remove_file(w.path(name)).unwrap());
    let (result, _) = repeated(("renameat2", Before), removed, rename);
    assert_eq!(result, Err(Errno::ENOENT));
    let replaced = |w: &World| {
        std::fs::remove_file(w.path("sub/entry")).unwrap();
        std::fs::write(w.path("sub/entry"), b"theirs").unwrap();
    };
    let (result, world) = repeated(("renameat2", After), replaced, rename);
    assert_eq!((result, std::fs::read(world.path("sub/entry")).unwrap()), (Err(Errno::ENOENT), b"theirs".to_vec()));
}

#[test]
fn an_attribute_that_another_process_made_is_not_the_guests() {
    let set = |w: &World, r: &RequestContext<'_>| w.share.setxattr(w.file, c"user.new", b"value", libc::XATTR_CREATE as u32, false, r);
    for value in [&b"value2"[..], b"valu", b""] {
        let (world, record) = (World::new(FileHandles::Prefer), RequestRecord::default());
        let died = dying_at(usize::MAX, Some(("setxattr", Before)), || set(&world, &world.request(0, &record, None)));
        assert!(died.is_none());
        rustix::fs::setxattr(world.path("file"), c"user.new", value, rustix::fs::XattrFlags::empty()).unwrap();
        let result = set(&world, &world.request(0, &record, left_of(&record)));
        assert_eq!(result, Err(Errno::EEXIST), "{value:?}");
    }
}

#[test]
fn a_move_of_data_beside_another_processs_is_an_error() {
    let collapse = |w: &World, r: &RequestContext<'_>| w.share.fallocate(w.fh, 0, 4096, COLLAPSE, r);
    for point in [("fallocate", Before), ("fallocate", After)] {
        let shortened = |w: &World| std::fs::File::options().write(true).open(w.path("file")).unwrap().set_len(100).unwrap();
        let (result, world) = repeated(point, shortened, collapse);
        assert_eq!((result, std::fs::read(world.path("file")).unwrap().len()), (Err(Errno::EIO), 100), "{point:?}");
    }
}

#[test]
fn an_error_that_the_dead_process_has_used_up_is_told_by_the_file_system() {
    let eio = || Errno::EIO;
    let fsyncdir = |w: &World, r: &RequestContext<'_>| w.share.fsyncdir(w.sub, w.sub_fh, false, r);
    let fsync = |w: &World, r: &RequestContext<'_>| {
        let file = w.share.prepare_sync(w.file, w.fh, true)?.file;
        let synced = w.share.sync_again(&file, true, r);
        w.share.let_go(file);
        synced
    };
    for act in [fsyncdir as fn(&World, &RequestContext<'_>) -> _, fsync] {
        let (world, record) = (World::new(FileHandles::Prefer), RequestRecord::default());
        // Nobody is asked where no process has died.
        assert_eq!(failing("syncfs", eio(), || act(&world, &world.request(0, &record, None))), Ok(()));
        for (point, expected) in [(("fsync", Before), Err(eio())), (("fsync", After), Err(eio())), (("made", Between), Ok(()))] {
            let record = RequestRecord::default();
            assert!(dying_at(usize::MAX, Some(point), || act(&world, &world.request(0, &record, None))).is_none());
            let result = failing("syncfs", eio(), || act(&world, &world.request(0, &record, left_of(&record))));
            assert_eq!(result, expected, "{point:?}");
            // The answer is the same if it dies once more before it is given.
            assert_eq!(act(&world, &world.request(0, &record, left_of(&record))), expected, "{point:?}");
        }
    }
}

/// What an append of `payload` is, where the file has `contents` and had `before` bytes when it was begun.
fn appended(before: i64, contents: &[u8], payload: &'static [u8]) -> Appended {
    let (world, record) = (World::new(FileHandles::Prefer), RequestRecord::default());
    std::fs::write(world.path("file"), contents).unwrap();
    record.begin(before);
    let request = world.request(0, &record, left_of(&record));
    let copy = |at: usize, to: &mut [u8]| {
        let len = to.len().min(payload.len() - at);
        to[..len].copy_from_slice(&payload[at..at + len]);
        len
    };
    world.share.appended_before(world.file, payload.len(), copy, &request)
}

#[test]
fn an_append_is_found_in_the_file() {
    let (all, unknown) = (Appended::Done(Ok(4)), Appended::Done(Err(Errno::EIO)));
    assert_eq!(appended(4, b"once", b"more"), Appended::Part(0), "still to be made");
    assert_eq!(appended(4, b"oncemore", b"more"), all);
    assert_eq!(appended(4, b"oncemo", b"more"), Appended::Part(2), "the rest is to be written");
    assert_eq!(appended(4, b"oncemoretheirs", b"more"), all, "another process appended behind it");
    assert_eq!(appended(4, b"oncetheirsmore", b"more"), unknown, "another process appended before it");
    assert_eq!(appended(4, b"oncetheirs", b"more"), unknown);
    assert_eq!(appended(4, b"on", b"more"), unknown, "another process truncated the file");
    static LONG: [u8; 200_000] = [7; 200_000];
    assert_eq!(appended(0, &LONG, &LONG), Appended::Done(Ok(LONG.len())));
    let mut other = LONG;
    other[150_000] = 8;
    assert_eq!(appended(0, &other, &LONG), unknown);
}

#[test]
fn the_result_of_an_append_is_given_again() {
    let (world, record) = (World::new(FileHandles::Prefer), RequestRecord::default());
    record.begin(0);
    for (made, result) in [(5, Ok(5)), (-i64::from(libc::ENOSPC), Err(Errno::from_raw(libc::ENOSPC)))] {
        record.note_made(made);
        let request = world.request(0, &record, left_of(&record));
        assert_eq!(world.share.appended_before(world.file, 5, |_, _| 0, &request), Appended::Done(result));
    }
}
