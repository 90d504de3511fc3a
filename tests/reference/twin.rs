//! The side of the host: each operation as plain system calls in the twin directory. Names are taken one
//! component at a time and no symlink is followed, as a guest's kernel does.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps, Uid};
use rustix::io::{Errno, Result};

use gatherfs_support::reference::operation::{Attributes, Directory, Operation, Outcome, Place, SLOTS, identity};

/// The twin directory and the files that are open in it.
pub struct Twin {
    root: OwnedFd,
    slots: [Option<File>; SLOTS as usize],
}

/// The thread makes files as a caller until this is dropped.
struct Acting {
    active: bool,
}

impl Acting {
    fn as_caller(caller: u8) -> Acting {
        let (uid, gid, group) = identity(caller);
        let acting = Acting { active: caller != 0 };
        if acting.active {
            set_groups(group.as_slice());
            set_ids(uid, gid);
        }
        acting
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if self.active {
            set_ids(0, 0);
            set_groups(&[]);
        }
    }
}

/// The calling thread's groups; the C library's function would change those of every thread.
fn set_groups(groups: &[u32]) {
    // SAFETY: the kernel reads as many ids as the slice has.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    assert_eq!(done, 0, "setgroups: {}", std::io::Error::last_os_error());
}

/// The ids by which the calling thread makes files; other ids than root's have no rights beyond their own.
fn set_ids(uid: u32, gid: u32) {
    // SAFETY: these take numbers only. The group goes first: the user is what allows it.
    unsafe { libc::setfsgid(gid) };
    // SAFETY: as above.
    unsafe { libc::setfsuid(uid) };
    // SAFETY: as above; -1 changes nothing and tells what is set.
    let now = unsafe { libc::setfsuid(u32::MAX) };
    assert_eq!(now.cast_unsigned(), uid, "setfsuid");
}

fn attributes(st: &rustix::fs::Stat) -> Attributes {
    Attributes::new(st.st_mode, st.st_uid, st.st_gid, st.st_nlink as u32, st.st_size.cast_unsigned())
}

fn look(dir: impl AsFd, name: &str) -> Result<Outcome> {
    Ok(Outcome::Attributes(attributes(&rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)))
}

fn kind(dir: impl AsFd, name: &str) -> Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

fn flags_of(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC | OFlags::NOFOLLOW
}

/// How the file system's own error reads, of the calls of the standard library.
fn errno(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or_else(|| panic!("{e}"))
}

impl Twin {
    /// Begins in `directory`.
    pub fn begin(directory: &Path) -> Twin {
        rustix::process::umask(Mode::empty());
        let root = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Twin { root, slots: Default::default() }
    }

    /// A directory that is to be looked into. What is none is opened too: the call that uses it says so.
    fn directory(&self, directory: Directory) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd = rustix::fs::openat(&self.root, c".", flags, Mode::empty())?;
        for name in directory {
            fd = rustix::fs::openat(&fd, *name, flags, Mode::empty())?;
        }
        Ok(fd)
    }

    fn keep(&mut self, slot: u8, fd: OwnedFd) {
        self.slots[usize::from(slot)] = Some(File::from(fd));
    }

    /// Does `operation`.
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        match self.make(operation).unwrap_or_else(|| self.on_open(operation).unwrap_or_else(|| self.on_names(operation))) {
            Ok(outcome) => outcome,
            Err(errno) => Outcome::Errno(errno.raw_os_error()),
        }
    }

    /// What makes names. `None` for other operations.
    fn make(&mut self, operation: &Operation) -> Option<Result<Outcome>> {
        Some(match *operation {
            Operation::Create { place, slot, mode, flags, caller } => self.create(place, slot, mode, flags, caller),
            Operation::Tmpfile { directory, slot, mode, caller } => self.directory(directory).and_then(|dir| {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                let fd = {
                    let _acting = Acting::as_caller(caller);
                    rustix::fs::openat(dir, c".", flags, Mode::from_raw_mode(mode))?
                };
                let st = rustix::fs::fstat(&fd)?;
                self.keep(slot, fd);
                Ok(Outcome::Attributes(attributes(&st)))
            }),
            Operation::Mkdir { place, mode, caller } => {
                self.make_in(place, caller, |dir| rustix::fs::mkdirat(dir, place.name, Mode::from_raw_mode(mode)))
            }
            Operation::Fifo { place, mode, caller } => {
                self.make_in(place, caller, |dir| rustix::fs::mknodat(dir, place.name, FileType::Fifo, Mode::from_raw_mode(mode), 0))
            }
            Operation::Symlink { place, target, caller } => {
                self.make_in(place, caller, |dir| rustix::fs::symlinkat(target, dir, place.name))
            }
            _ => return None,
        })
    }

    fn make_in(&self, place: Place, caller: u8, make: impl FnOnce(&OwnedFd) -> Result<()>) -> Result<Outcome> {
        let dir = self.directory(place.directory)?;
        {
            let _acting = Acting::as_caller(caller);
            make(&dir)?;
        }
        look(dir, place.name)
    }

    /// Makes a file as the caller. One that is there is opened as root: whether the caller may is the guest's to say.
    fn create(&mut self, place: Place, slot: u8, mode: u32, flags: i32, caller: u8) -> Result<Outcome> {
        let dir = self.directory(place.directory)?;
        let made = {
            let _acting = Acting::as_caller(caller);
            rustix::fs::openat(&dir, place.name, flags_of(flags) | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(mode))
        };
        match made {
            Err(Errno::EXIST) if flags & libc::O_EXCL == 0 => self.open(&dir, place.name, slot, flags)?,
            made => self.keep(slot, made?),
        }
        look(dir, place.name)
    }

    /// Opens a regular file; special files are the guest's own.
    fn open(&mut self, dir: &OwnedFd, name: &str, slot: u8, flags: i32) -> Result<()> {
        if kind(dir, name)? != FileType::RegularFile {
            return Err(Errno::BADF);
        }
        let fd = rustix::fs::openat(dir, name, flags_of(flags & !libc::O_EXCL), Mode::empty())?;
        self.keep(slot, fd);
        Ok(())
    }

    /// What goes to an open file. `None` for other operations.
    fn on_open(&mut self, operation: &Operation) -> Option<Result<Outcome>> {
        let slot = match *operation {
            Operation::Close { slot } => {
                self.slots[usize::from(slot)] = None;
                return Some(Ok(Outcome::Nothing));
            }
            Operation::Copy { from, from_offset, to, to_offset, len } => {
                let (Some(from), Some(to)) = (&self.slots[usize::from(from)], &self.slots[usize::from(to)]) else {
                    return Some(Ok(Outcome::Nothing));
                };
                let (mut at, mut to_at) = (from_offset, to_offset);
                let copied = rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), len as usize);
                return Some(copied.map(|n| Outcome::Number(n as u64)));
            }
            Operation::Read { slot, .. }
            | Operation::Write { slot, .. }
            | Operation::TruncateOpen { slot, .. }
            | Operation::Allocate { slot, .. }
            | Operation::Seek { slot, .. }
            | Operation::LookOpen { slot }
            | Operation::Sync { slot, .. }
            | Operation::LinkOpen { slot, .. } => slot,
            _ => return None,
        };
        let Some(file) = &self.slots[usize::from(slot)] else { return Some(Ok(Outcome::Nothing)) };
        Some(self.on_file(file, operation))
    }

    fn on_file(&self, file: &File, operation: &Operation) -> Result<Outcome> {
        let look = || Ok(Outcome::Attributes(attributes(&rustix::fs::fstat(file)?)));
        match *operation {
            Operation::Read { offset, len, .. } => {
                let mut bytes = vec![0; len as usize];
                let count = file.read_at(&mut bytes, offset).map_err(|e| errno(&e))?;
                bytes.truncate(count);
                Ok(Outcome::Bytes(bytes))
            }
            Operation::Write { offset, len, seed, .. } => {
                let bytes = gatherfs_support::share::noise(seed.into(), len as usize);
                Ok(Outcome::Number(file.write_at(&bytes, offset).map_err(|e| errno(&e))? as u64))
            }
            Operation::TruncateOpen { len, .. } => {
                let writable = rustix::fs::fcntl_getfl(file)? & OFlags::ACCMODE != OFlags::RDONLY;
                if writable {
                    rustix::fs::ftruncate(file, len)?;
                } else {
                    // A guest's kernel truncates by name as well, and names any handle that it has.
                    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
                    let by_name = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                    rustix::fs::ftruncate(by_name, len)?;
                }
                look()
            }
            Operation::Allocate { mode, offset, len, .. } => {
                rustix::fs::fallocate(file, FallocateFlags::from_bits_retain(mode.cast_unsigned()), offset, len)?;
                Ok(Outcome::Nothing)
            }
            Operation::Seek { offset, whence, .. } => {
                let from = if whence == libc::SEEK_DATA { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
                Ok(Outcome::Number(rustix::fs::seek(file, from)?))
            }
            Operation::LookOpen { .. } => look(),
            Operation::Sync { data_only, .. } => {
                if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }?;
                Ok(Outcome::Nothing)
            }
            Operation::LinkOpen { to, .. } => {
                let dir = self.directory(to.directory)?;
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
                rustix::fs::linkat(rustix::fs::CWD, path, &dir, to.name, AtFlags::SYMLINK_FOLLOW)?;
                look()
            }
            _ => unreachable!("not an operation on an open file"),
        }
    }

    fn on_names(&mut self, operation: &Operation) -> Result<Outcome> {
        match *operation {
            Operation::Open { place, slot, flags } => {
                let dir = self.directory(place.directory)?;
                self.open(&dir, place.name, slot, flags)?;
            }
            Operation::Unlink { place } => rustix::fs::unlinkat(self.directory(place.directory)?, place.name, AtFlags::empty())?,
            Operation::Rmdir { place } => rustix::fs::unlinkat(self.directory(place.directory)?, place.name, AtFlags::REMOVEDIR)?,
            Operation::Rename { from, to, flags } => {
                let (from_dir, to_dir) = (self.directory(from.directory)?, self.directory(to.directory)?);
                rustix::fs::renameat_with(from_dir, from.name, to_dir, to.name, RenameFlags::from_bits_retain(flags))?;
            }
            Operation::Link { from, to } => {
                let from_dir = self.directory(from.directory)?;
                kind(&from_dir, from.name)?;
                let to_dir = self.directory(to.directory)?;
                rustix::fs::linkat(from_dir, from.name, &to_dir, to.name, AtFlags::empty())?;
                return look(to_dir, to.name);
            }
            Operation::Readlink { place } => {
                let target = rustix::fs::readlinkat(self.directory(place.directory)?, place.name, Vec::new())?;
                return Ok(Outcome::Bytes(target.into_bytes()));
            }
            Operation::List { directory, .. } => return self.list(directory),
            Operation::Forget => {}
            _ => return self.on_attributes(operation),
        }
        Ok(Outcome::Nothing)
    }

    fn on_attributes(&self, operation: &Operation) -> Result<Outcome> {
        let place = match *operation {
            Operation::Look { place }
            | Operation::Truncate { place, .. }
            | Operation::Chmod { place, .. }
            | Operation::Chown { place, .. }
            | Operation::SetTimes { place, .. } => place,
            _ => unreachable!("every operation has its place"),
        };
        let dir = self.directory(place.directory)?;
        let kind = kind(&dir, place.name)?;
        match *operation {
            Operation::Truncate { len, .. } => match kind {
                FileType::RegularFile => {
                    let file = rustix::fs::openat(&dir, place.name, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
                    rustix::fs::ftruncate(file, len)?;
                }
                FileType::Directory => return Err(Errno::ISDIR),
                _ => return Err(Errno::INVAL),
            },
            Operation::Chmod { mode, .. } => match kind {
                FileType::Symlink => return Err(Errno::OPNOTSUPP),
                _ => rustix::fs::chmodat(&dir, place.name, Mode::from_raw_mode(mode), AtFlags::empty())?,
            },
            Operation::Chown { uid, gid, .. } if uid.is_some() || gid.is_some() => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(&dir, place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Operation::SetTimes { seconds, .. } => {
                let at = |seconds: u64| Timespec { tv_sec: seconds.cast_signed(), tv_nsec: 0 };
                let times = Timestamps { last_access: at(seconds), last_modification: at(seconds + 1) };
                rustix::fs::utimensat(&dir, place.name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
                let st = rustix::fs::statat(&dir, place.name, AtFlags::SYMLINK_NOFOLLOW)?;
                return Ok(Outcome::Times(attributes(&st), st.st_atime.cast_unsigned(), st.st_mtime.cast_unsigned()));
            }
            _ => {}
        }
        look(dir, place.name)
    }

    fn list(&self, directory: Directory) -> Result<Outcome> {
        let dir = self.directory(directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(dir)? {
            let entry = entry?;
            names.push((entry.file_name().to_bytes().to_vec(), entry.file_type().as_raw_mode() >> 12));
        }
        names.sort();
        Ok(Outcome::Names(names))
    }
}
