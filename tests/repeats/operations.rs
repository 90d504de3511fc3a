//! Every operation that takes a record, in the forms that take different ways through the rules, and some that may simply be
//! repeated. What each answers is told as text, to compare it with that of a twin.

use gatherfs::host::{AttributeChange, CopyRange, RequestContext};
use gatherfs::types::{Errno, NodeId};

use super::world::{LEN, USER, World};

const ROOT: NodeId = NodeId::ROOT;
const EXCLUSIVE: u32 = (libc::O_RDWR | libc::O_EXCL) as u32;
const READ_WRITE: u32 = libc::O_RDWR as u32;
const FILE_MODE: u32 = libc::S_IFREG | 0o644;

/// An operation.
pub struct Operation {
    pub name: &'static str,
    /// The user who asks for it.
    pub caller: u32,
    /// Lookups that a death may leave: a FORGET that was begun is not repeated.
    pub leaves: u64,
    pub act: fn(&World, &RequestContext<'_>) -> Result<String, Errno>,
}

const fn of(name: &'static str, act: fn(&World, &RequestContext<'_>) -> Result<String, Errno>) -> Operation {
    Operation { name, caller: 0, leaves: 0, act }
}

const fn of_user(name: &'static str, act: fn(&World, &RequestContext<'_>) -> Result<String, Errno>) -> Operation {
    Operation { name, caller: USER, leaves: 0, act }
}

const fn leaving_one(name: &'static str, act: fn(&World, &RequestContext<'_>) -> Result<String, Errno>) -> Operation {
    Operation { name, caller: 0, leaves: 1, act }
}

fn done<T>(_: T) -> String {
    String::new()
}

fn create(w: &World, r: &RequestContext<'_>, name: &std::ffi::CStr, flags: u32, is_labelled: bool) -> Result<String, Errno> {
    let (entry, opened) = w.share.create(ROOT, name, flags, 0o640, false, &w.create(r, is_labelled)?)?;
    Ok(format!("{}; {}", w.told(&entry), w.opened(entry.node, &opened)))
}

fn rename(w: &World, r: &RequestContext<'_>, new: (NodeId, &std::ffi::CStr), flags: u32) -> Result<String, Errno> {
    w.share.rename((ROOT, c"file"), new, flags, r).map(done)
}

fn open(w: &World, r: &RequestContext<'_>, flags: i32) -> Result<String, Errno> {
    w.share.open(w.file, flags as u32, false, r).map(|opened| w.opened(w.file, &opened))
}

fn fallocate(w: &World, r: &RequestContext<'_>, mode: i32) -> Result<String, Errno> {
    w.share.fallocate(w.fh, 4096, 4096, mode as u32, r).map(done)
}

fn changed(change: impl FnOnce(&mut AttributeChange)) -> AttributeChange {
    let (mode, uid, gid, size, atime, mtime) = Default::default();
    let mut set = AttributeChange { handle: None, mode, uid, gid, size, atime, mtime, clears_suidgid: false };
    change(&mut set);
    set
}

pub const OPERATIONS: &[Operation] = &[
    of("LOOKUP, new", |w, r| w.look_up(ROOT, c"fresh", r).map(|entry| w.told(&entry))),
    of("LOOKUP, known", |w, r| w.look_up(ROOT, c"file", r).map(|entry| w.told(&entry))),
    of("LOOKUP, absent", |w, r| w.look_up(ROOT, c"absent", r).map(|entry| w.told(&entry))),
    of("LOOKUP of .", |w, r| w.look_up(w.sub, c".", r).map(|entry| w.told(&entry))),
    // That of the root, which is never forgotten.
    leaving_one("LOOKUP of ..", |w, r| w.look_up(w.sub, c"..", r).map(|entry| w.told(&entry))),
    leaving_one("FORGET", |w, r| {
        w.share.forget_each([(w.link, 1)].into_iter(), r);
        Ok(String::new())
    }),
    leaving_one("BATCH_FORGET", |w, r| {
        w.share.forget_each([w.link, w.other, w.file].map(|node| (node, 1)).into_iter(), r);
        Ok(String::new())
    }),
    of("MKNOD of a file", |w, r| w.share.mknod(ROOT, c"new", FILE_MODE, (0, 0), &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("MKNOD of a FIFO", |w, r| w.share.mknod(ROOT, c"new", libc::S_IFIFO | 0o600, (0, 0), &w.create(r, false)?).map(|e| w.told(&e))),
    of("MKNOD of a device", |w, r| w.share.mknod(ROOT, c"new", libc::S_IFCHR | 0o600, (1, 3), &w.create(r, false)?).map(|e| w.told(&e))),
    of("MKNOD, label", |w, r| w.share.mknod(ROOT, c"new", FILE_MODE, (0, 0), &w.create(r, true)?).map(|entry| w.told(&entry))),
    of_user("MKNOD of a user", |w, r| w.share.mknod(w.sub, c"new", FILE_MODE, (0, 0), &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("MKNOD, exists", |w, r| w.share.mknod(ROOT, c"fresh", FILE_MODE, (0, 0), &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("MKDIR", |w, r| w.share.mkdir(ROOT, c"new", 0o755, &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("MKDIR, label", |w, r| w.share.mkdir(ROOT, c"new", 0o755, &w.create(r, true)?).map(|entry| w.told(&entry))),
    of_user("MKDIR of a user", |w, r| w.share.mkdir(w.sub, c"new", 0o755, &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("MKDIR, exists", |w, r| w.share.mkdir(ROOT, c"empty", 0o777, &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("SYMLINK", |w, r| w.share.symlink(ROOT, c"new", c"target", &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("SYMLINK, exists", |w, r| w.share.symlink(ROOT, c"link", c"file", &w.create(r, false)?).map(|entry| w.told(&entry))),
    of("LINK", |w, r| w.share.link(w.file, w.sub, c"new", r).map(|entry| w.told(&entry))),
    of("LINK of a directory to itself", |w, r| w.share.link(w.sub, ROOT, c"sub", r).map(|entry| w.told(&entry))),
    of("LINK, exists", |w, r| w.share.link(w.file, ROOT, c"fresh", r).map(|entry| w.told(&entry))),
    of("CREATE, exclusive", |w, r| create(w, r, c"new", EXCLUSIVE, false)),
    of("CREATE, exclusive, label", |w, r| create(w, r, c"new", EXCLUSIVE, true)),
    of("CREATE, exclusive, exists", |w, r| create(w, r, c"fresh", EXCLUSIVE, false)),
    of("CREATE", |w, r| create(w, r, c"new", READ_WRITE, false)),
    of("CREATE, exists", |w, r| create(w, r, c"fresh", READ_WRITE, false)),
    // The entry has the file's size before it is truncated, or behind that.
    of("CREATE, exists, truncate", |w, r| {
        let (entry, opened) = w.share.create(ROOT, c"fresh", READ_WRITE | libc::O_TRUNC as u32, 0o640, false, &w.create(r, false)?)?;
        Ok(w.opened(entry.node, &opened))
    }),
    of("TMPFILE", |w, r| {
        let (entry, opened) = w.share.tmpfile(ROOT, READ_WRITE, 0o600, &w.create(r, true)?)?;
        Ok(format!("{}; {}", w.told(&entry), w.opened(entry.node, &opened)))
    }),
    of("UNLINK", |w, r| w.share.unlink(ROOT, c"other", r).map(done)),
    of("UNLINK of a directory", |w, r| w.share.unlink(ROOT, c"empty", r).map(done)),
    of("RMDIR", |w, r| w.share.rmdir(ROOT, c"empty", r).map(done)),
    of("RMDIR, full", |w, r| w.share.rmdir(ROOT, c"full", r).map(done)),
    of("RENAME", |w, r| rename(w, r, (w.sub, c"new"), 0)),
    of("RENAME over another", |w, r| rename(w, r, (w.sub, c"entry"), 0)),
    of("RENAME over a directory", |w, r| rename(w, r, (ROOT, c"empty"), 0)),
    of("RENAME2, no replacement", |w, r| rename(w, r, (w.sub, c"new"), libc::RENAME_NOREPLACE)),
    of("RENAME2, no replacement, exists", |w, r| rename(w, r, (w.sub, c"entry"), libc::RENAME_NOREPLACE)),
    of("RENAME2, exchange", |w, r| rename(w, r, (w.sub, c"entry"), libc::RENAME_EXCHANGE)),
    of("RENAME2, exchange, absent", |w, r| rename(w, r, (w.sub, c"absent"), libc::RENAME_EXCHANGE)),
    of_user("RENAME2, whiteout", |w, r| rename(w, r, (w.sub, c"entry"), libc::RENAME_WHITEOUT)),
    of("OPEN", |w, r| open(w, r, libc::O_RDWR)),
    of("OPEN, truncate", |w, r| open(w, r, libc::O_WRONLY | libc::O_TRUNC)),
    of("OPENDIR", |w, r| {
        let opened = w.share.opendir(w.sub, r)?;
        Ok(w.opened(w.sub, &opened))
    }),
    of("RELEASE", |w, r| w.share.release(w.fh, None, r).map(done)),
    of("RELEASE of a directory", |w, r| w.share.release(w.sub_fh, None, r).map(done)),
    of("RELEASEDIR", |w, r| w.share.releasedir(w.sub_fh, r).map(done)),
    of("FLUSH", |w, r| w.share.flush(w.fh, 1, r).map(done)),
    of("FSYNCDIR", |w, r| w.share.fsyncdir(w.sub, w.sub_fh, false, r).map(done)),
    of("FSYNCDIR of a file", |w, r| w.share.fsyncdir(w.file, w.fh, false, r).map(done)),
    of("SETXATTR", |w, r| w.share.setxattr(w.file, c"user.known", b"other", 0, false, r).map(done)),
    of("SETXATTR, create", |w, r| w.share.setxattr(w.file, c"user.new", b"value", libc::XATTR_CREATE as u32, false, r).map(done)),
    of("SETXATTR, create, empty", |w, r| w.share.setxattr(w.file, c"user.new", b"", libc::XATTR_CREATE as u32, false, r).map(done)),
    of("SETXATTR, create, exists", |w, r| {
        w.share.setxattr(w.file, c"user.known", b"value2", libc::XATTR_CREATE as u32, false, r).map(done)
    }),
    of("SETXATTR, replace", |w, r| w.share.setxattr(w.file, c"user.known", b"other", libc::XATTR_REPLACE as u32, false, r).map(done)),
    of("REMOVEXATTR", |w, r| w.share.removexattr(w.file, c"user.known", r).map(done)),
    of("FALLOCATE", |w, r| w.share.fallocate(w.fh, LEN as u64, 4096, 0, r).map(done)),
    of("FALLOCATE, punch", |w, r| fallocate(w, r, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)),
    of("FALLOCATE, collapse", |w, r| fallocate(w, r, libc::FALLOC_FL_COLLAPSE_RANGE)),
    of("FALLOCATE, insert", |w, r| fallocate(w, r, libc::FALLOC_FL_INSERT_RANGE)),
    of("SETATTR", |w, r| {
        let set = changed(|set| (set.size, set.mode) = (Some(100), Some(0o600)));
        let got = w.share.setattr(w.file, &set, r)?.attributes;
        Ok(format!("{:o} of {} bytes", got.mode, got.size))
    }),
    of("COPY_FILE_RANGE", |w, r| {
        let copy = CopyRange { from: w.fh, from_offset: 0, to: w.other_fh, to_offset: 4096, len: 8192, flags: 0 };
        w.share.copy_file_range(&copy, r.uid).map(|len| len.to_string())
    }),
];
