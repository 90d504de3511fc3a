//! Every operation of the guest that makes a call on the host, each in the forms that take different ways there. What an operation
//! answers is told as text, to compare it with that of the same operation without a fault.

pub mod world;

use crate::guest::client::{Call, Result};
use crate::guest::fuse::{CopyFileRangeIn, FallocateIn, FileLock, ForgetOne, LkIn, OpenIn, SetattrIn, flag, opcode};
use crate::share::noise;
use zerocopy::IntoBytes;

use world::{LEN, World};

/// A user of the guest's who is not root.
const USER: u32 = 1000;
/// A group of the user's beside its own.
const GROUP: u32 = 4321;
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_ATTRIBUTES: u32 = 0x801c_581f;

/// What an operation is called, and the operation.
pub type Operation = (&'static str, fn(&mut World<'_>) -> Result<String>);

fn done<T>(_: T) -> String {
    String::new()
}

fn set(w: &mut World<'_>, set: SetattrIn) -> Result<String> {
    let attr = w.client.setattr(w.file, &set)?.attr;
    Ok(format!("{:o} {} {} {}", attr.mode, attr.uid, attr.gid, attr.size))
}

fn valid(valid: u32) -> SetattrIn {
    SetattrIn { valid, ..SetattrIn::default() }
}

/// Does `act` as a user; afterwards the client is root again.
fn as_user(w: &mut World<'_>, act: fn(&mut World<'_>) -> Result<String>) -> Result<String> {
    (w.client.caller.uid, w.client.caller.gid) = (USER, USER);
    let result = act(w);
    (w.client.caller.uid, w.client.caller.gid) = (0, 0);
    result
}

/// Does `act` as a user with a supplementary group, which the guest sends.
fn as_member(w: &mut World<'_>, act: fn(&mut World<'_>) -> Result<String>) -> Result<String> {
    w.client.groups = vec![GROUP];
    let result = as_user(w, act);
    w.client.groups.clear();
    result
}

fn labelled(w: &mut World<'_>, act: fn(&mut World<'_>) -> Result<String>) -> Result<String> {
    w.client.label = Some(("user.label".to_owned(), b"label".to_vec()));
    let result = act(w);
    w.client.label = None;
    result
}

fn create(w: &mut World<'_>, name: &str, flags: i32) -> Result<String> {
    let made = w.client.create(w.dir, name, 0o644, flags)?;
    w.opened(made.entry.nodeid, made.open.fh);
    Ok(w.knows(&made.entry))
}

fn open(w: &mut World<'_>, flags: i32, open_flags: u32) -> Result<String> {
    let request = OpenIn { flags: flags as u32, open_flags };
    let reply = w.client.exchange(&Call { room: 16, ..Call::new(opcode::OPEN, w.file, &[request.as_bytes()]) })?;
    if reply.header.error != 0 {
        return Err((-reply.header.error).into());
    }
    let fh = u64::from_ne_bytes(reply.payload[..8].try_into().unwrap());
    w.opened(w.file, fh);
    Ok(String::new())
}

fn lock(w: &mut World<'_>, kind: i32, lk_flags: u32) -> Result<String> {
    let lk = FileLock { start: 0, end: 9, kind: kind as u32, pid: 1 };
    w.client.setlk(w.file, &LkIn { fh: w.fh, owner: 7, lk, lk_flags, padding: 0 }, false).map(done)
}

fn listed(w: &mut World<'_>, plus: bool) -> Result<String> {
    let entries = if plus { w.client.readdirplus(w.sub, w.sub_fh, 0, 4096)? } else { w.client.readdir(w.sub, w.sub_fh, 0, 4096)? };
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        let known = entry.entry.filter(|entry| entry.nodeid != 0).map(|entry| w.knows(&entry));
        names.push(format!("{} {known:?}", String::from_utf8_lossy(&entry.name)));
    }
    names.sort();
    Ok(names.join(", "))
}

fn fallocate(w: &mut World<'_>, mode: i32) -> Result<String> {
    let range = FallocateIn { fh: w.fh, offset: 4096, length: 8192, mode: mode as u32, padding: 0 };
    w.client.fallocate(w.file, &range).map(done)
}

fn copy(w: &World<'_>) -> CopyFileRangeIn {
    CopyFileRangeIn { fh_in: w.fh, off_in: 0, nodeid_out: w.other, fh_out: w.other_fh, off_out: 4096, len: 8192, flags: 0 }
}

/// All of them.
pub const OPERATIONS: &[Operation] = &[
    ("LOOKUP, new", |w| w.client.lookup(w.dir, "fresh").map(|entry| w.knows(&entry))),
    ("LOOKUP, known", |w| w.client.lookup(w.dir, "file").map(|entry| w.knows(&entry))),
    ("LOOKUP of .", |w| w.client.lookup(w.sub, ".").map(|entry| w.knows(&entry))),
    ("LOOKUP of ..", |w| w.client.lookup(w.sub, "..").map(|entry| w.knows(&entry))),
    ("FORGET", |w| w.client.forget(w.link, 1).map(|()| w.forgotten(w.link)).map(done)),
    ("BATCH_FORGET", |w| {
        w.client.batch_forget(&[w.link, w.sub].map(|nodeid| ForgetOne { nodeid, nlookup: 1 }))?;
        [w.link, w.sub].iter().for_each(|node| w.forgotten(*node));
        Ok(String::new())
    }),
    ("GETATTR", |w| w.client.getattr(w.file, None).map(|out| out.attr.size.to_string())),
    ("GETATTR, handle", |w| w.client.getattr(w.file, Some(w.fh)).map(|out| out.attr.size.to_string())),
    ("STATX", |w| w.client.statx(w.file, None, 0xfff).map(|out| out.stat.size.to_string())),
    ("SETATTR, mode", |w| set(w, SetattrIn { mode: 0o600, ..valid(flag::FATTR_MODE) })),
    ("SETATTR, owner", |w| set(w, SetattrIn { uid: 7, gid: 8, ..valid(flag::FATTR_UID | flag::FATTR_GID) })),
    ("SETATTR, size", |w| set(w, SetattrIn { size: 100, ..valid(flag::FATTR_SIZE) })),
    ("SETATTR, size, handle", |w| set(w, SetattrIn { size: 100, fh: w.fh, ..valid(flag::FATTR_SIZE | flag::FATTR_FH) })),
    ("SETATTR, size, killpriv", |w| set(w, SetattrIn { size: 100, ..valid(flag::FATTR_SIZE | flag::FATTR_KILL_SUIDGID) })),
    ("SETATTR, times", |w| set(w, SetattrIn { atime: 5, mtime: 6, ..valid(flag::FATTR_ATIME | flag::FATTR_MTIME) })),
    ("SETATTR, all", |w| {
        let all = flag::FATTR_UID | flag::FATTR_SIZE | flag::FATTR_MODE | flag::FATTR_MTIME;
        set(w, SetattrIn { uid: 7, size: 100, mode: 0o700, mtime: 6, ..valid(all) })
    }),
    ("SETATTR, nothing: killpriv", |w| set(w, valid(0))),
    ("ACCESS", |w| w.client.access(w.file, 4).map(done)),
    ("READLINK", |w| w.client.readlink(w.link).map(|target| String::from_utf8_lossy(&target).into_owned())),
    ("SYMLINK", |w| w.client.symlink(w.dir, "new", "target").map(|entry| w.knows(&entry))),
    ("MKNOD", |w| w.client.mknod(w.dir, "new", libc::S_IFIFO | 0o644, 0).map(|entry| w.knows(&entry))),
    ("MKNOD, label", |w| labelled(w, |w| w.client.mknod(w.dir, "new", libc::S_IFREG | 0o644, 0).map(|entry| w.knows(&entry)))),
    ("MKDIR", |w| w.client.mkdir(w.dir, "new", 0o755).map(|entry| w.knows(&entry))),
    ("MKDIR of a user", |w| as_user(w, |w| w.client.mkdir(w.dir, "new", 0o755).map(|entry| w.knows(&entry)))),
    ("MKDIR of a user in a group", |w| as_member(w, |w| w.client.mkdir(w.dir, "new", 0o755).map(|entry| w.knows(&entry)))),
    ("MKDIR, label", |w| labelled(w, |w| w.client.mkdir(w.dir, "new", 0o755).map(|entry| w.knows(&entry)))),
    ("CREATE", |w| create(w, "new", libc::O_RDWR | libc::O_EXCL)),
    ("CREATE of a user", |w| as_user(w, |w| create(w, "new", libc::O_RDWR | libc::O_EXCL))),
    ("CREATE, label", |w| labelled(w, |w| create(w, "new", libc::O_RDWR | libc::O_EXCL))),
    ("CREATE, direct", |w| create(w, "new", libc::O_RDWR | libc::O_EXCL | libc::O_DIRECT)),
    ("CREATE, exists", |w| create(w, "fresh", libc::O_RDWR)),
    ("TMPFILE", |w| {
        let made = w.client.tmpfile(w.dir, 0o644, libc::O_RDWR)?;
        w.opened(made.entry.nodeid, made.open.fh);
        Ok(w.knows(&made.entry))
    }),
    ("TMPFILE, label", |w| {
        labelled(w, |w| {
            let made = w.client.tmpfile(w.dir, 0o644, libc::O_RDWR)?;
            w.opened(made.entry.nodeid, made.open.fh);
            Ok(w.knows(&made.entry))
        })
    }),
    ("LINK", |w| w.client.link(w.file, w.dir, "new").map(|entry| w.knows(&entry))),
    ("UNLINK", |w| w.client.unlink(w.dir, "other").map(done)),
    ("RMDIR", |w| w.client.rmdir(w.dir, "empty").map(done)),
    ("RENAME", |w| w.client.rename(w.dir, "file", w.sub, "entry").map(done)),
    ("RENAME2, exchange", |w| w.client.rename2((w.dir, "file"), (w.sub, "entry"), libc::RENAME_EXCHANGE).map(done)),
    ("RENAME2, whiteout of a user", |w| as_user(w, |w| w.client.rename2((w.dir, "file"), (w.dir, "new"), libc::RENAME_WHITEOUT).map(done))),
    ("OPEN", |w| open(w, libc::O_RDWR, 0)),
    ("OPEN, direct", |w| open(w, libc::O_RDWR | libc::O_DIRECT, 0)),
    ("OPEN, truncate", |w| open(w, libc::O_WRONLY | libc::O_TRUNC, 0)),
    ("OPEN, truncate, killpriv", |w| open(w, libc::O_WRONLY | libc::O_TRUNC, flag::OPEN_KILL_SUIDGID)),
    ("OPEN for reading, truncate, killpriv", |w| open(w, libc::O_RDONLY | libc::O_TRUNC, flag::OPEN_KILL_SUIDGID)),
    ("READ", |w| {
        let bytes = w.client.read(w.file, w.fh, 0, LEN as u32)?;
        Ok(if noise(4, LEN).starts_with(&bytes) { bytes.len().to_string() } else { "wrong bytes".to_owned() })
    }),
    ("WRITE", |w| w.client.write(w.file, w.fh, 4096, &noise(9, 8192)).map(|len| len.to_string())),
    ("WRITE of the page cache", |w| {
        w.client.write_flags = flag::WRITE_CACHE;
        let result = w.client.write(w.file, w.fh, 4096, &noise(9, 8192)).map(|len| len.to_string());
        w.client.write_flags = 0;
        result
    }),
    ("WRITE of a user", |w| {
        w.client.write_flags = flag::WRITE_KILL_SUIDGID;
        let result = w.client.write(w.file, w.fh, 4096, &noise(9, 8192)).map(|len| len.to_string());
        w.client.write_flags = 0;
        result
    }),
    ("WRITE, append", |w| {
        w.client.file_flags = (libc::O_RDWR | libc::O_APPEND) as u32;
        let result = w.client.write(w.file, w.fh, 0, &noise(9, 8192)).map(|len| len.to_string());
        w.client.file_flags = libc::O_RDWR as u32;
        result
    }),
    ("STATFS", |w| w.client.statfs(w.file).map(|out| out.namelen.to_string())),
    ("RELEASE", |w| w.client.release(w.file, w.fh).map(|()| w.released(w.fh)).map(done)),
    ("FSYNC", |w| w.client.fsync(w.file, w.fh, false).map(done)),
    ("FSYNC, data only", |w| w.client.fsync(w.file, w.fh, true).map(done)),
    ("SETXATTR", |w| w.client.setxattr(w.file, "user.new", b"new", 0).map(done)),
    ("GETXATTR", |w| w.client.getxattr(w.file, "user.known", 100).map(|value| format!("{value:?}"))),
    ("GETXATTR, size", |w| w.client.getxattr_size(w.file, "user.known").map(|size| size.to_string())),
    ("LISTXATTR", |w| w.client.listxattr(w.file, 1000).map(|names| format!("{names:?}"))),
    ("LISTXATTR, size", |w| w.client.listxattr_size(w.file).map(|size| size.to_string())),
    ("REMOVEXATTR", |w| w.client.removexattr(w.file, "user.known").map(done)),
    ("FLUSH", |w| w.client.flush(w.file, w.fh).map(done)),
    ("OPENDIR", |w| {
        let fh = w.client.opendir(w.dir)?.fh;
        w.opened_directory(w.dir, fh);
        Ok(String::new())
    }),
    ("READDIR", |w| listed(w, false)),
    ("READDIRPLUS", |w| listed(w, true)),
    ("RELEASEDIR", |w| w.client.releasedir(w.sub, w.sub_fh).map(|()| w.released(w.sub_fh)).map(done)),
    ("FSYNCDIR", |w| w.client.fsyncdir(w.sub, w.sub_fh, false).map(done)),
    ("SYNCFS", |w| w.client.syncfs(w.dir).map(done)),
    ("GETLK", |w| {
        let lk = FileLock { start: 0, end: 9, kind: libc::F_WRLCK as u32, pid: 1 };
        w.client.getlk(w.file, &LkIn { fh: w.fh, owner: 7, lk, lk_flags: 0, padding: 0 }).map(|lock| lock.kind.to_string())
    }),
    ("SETLK", |w| lock(w, libc::F_WRLCK, 0)),
    ("SETLK of a flock", |w| lock(w, libc::F_WRLCK, flag::LK_FLOCK)),
    ("SETLK, unlock", |w| lock(w, libc::F_UNLCK, 0)),
    ("IOCTL, get flags", |w| w.client.ioctl(w.file, w.fh, GET_FLAGS, &[], 4).map(|flags| format!("{flags:?}"))),
    ("IOCTL, set flags", |w| w.client.ioctl(w.file, w.fh, SET_FLAGS, &0x40u32.to_ne_bytes(), 0).map(done)),
    ("IOCTL, get attributes", |w| w.client.ioctl(w.file, w.fh, GET_ATTRIBUTES, &[], 28).map(done)),
    ("FALLOCATE", |w| fallocate(w, 0)),
    ("FALLOCATE, punch", |w| fallocate(w, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)),
    ("LSEEK", |w| w.client.lseek(w.file, w.fh, 0, libc::SEEK_HOLE).map(|offset| offset.to_string())),
    ("COPY_FILE_RANGE", |w| {
        let range = copy(w);
        w.client.copy_file_range(w.file, &range).map(|len| len.to_string())
    }),
    ("COPY_FILE_RANGE_64", |w| {
        let range = copy(w);
        w.client.copy_file_range_64(w.file, &range).map(|len| len.to_string())
    }),
];
