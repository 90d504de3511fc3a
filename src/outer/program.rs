//! The program of a live upgrade: which file it is, and whether the keeper can execute it. Knows nothing of how it is executed. At most
//! the headers of the file are read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use object::Endianness;
use object::elf::{ET_DYN, ET_EXEC, FileHeader64, Machine, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SealFlags};

use crate::sys::open;

/// Bytes that are read of a program: linkers place the program headers behind the file header, and a program has about ten of 56 bytes.
const HEADERS_MAX: usize = 4096;

/// Bytes of a program at most: the copy is memory, and the outer process does nothing else while it makes it (60 ms for 150 MB that are in
/// the page cache). A debug build of gatherfsd has 90 to 150 MB.
const SIZE_MAX: u64 = 256 << 20;

const MEMFD_FLAGS: MemfdFlags = MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING);

/// What the link /proc/self/exe has behind the path where the file was removed or replaced (man proc_pid_exe(5)).
const DELETED: &str = " (deleted)";

/// The machine that this program is for (man elf(5), e_machine).
const MACHINE: Machine = if cfg!(target_arch = "x86_64") {
    object::elf::EM_X86_64
} else if cfg!(target_arch = "aarch64") {
    object::elf::EM_AARCH64
} else if cfg!(target_arch = "riscv64") {
    object::elf::EM_RISCV
} else {
    object::elf::EM_NONE
};

/// Why a program cannot be executed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It cannot be opened.
    #[error("cannot open {path}: {source}; install gatherfsd there, or name a program: gatherfsctl upgrade PROGRAM")]
    Open {
        /// Its path when the daemon was started.
        path: PathBuf,
        /// The error of open(2).
        source: io::Error,
    },
    /// The path of this program is not known.
    #[error("the program that was started is not known: {0}; name a program: gatherfsctl upgrade PROGRAM")]
    NoDefault(io::Error),
    /// It is a directory, a device or the like.
    #[error("the program is not a regular file; give the file of a gatherfsd")]
    NotAFile,
    /// It is larger than [`SIZE_MAX`].
    #[error(
        "the program has {0} bytes, and at most {SIZE_MAX} are copied; give the file of a gatherfsd, if need be without symbols (strip)"
    )]
    TooLarge(u64),
    /// Its headers cannot be read.
    #[error("the program cannot be read: {0}; give a file that the daemon's user may read")]
    Unreadable(io::Error),
    /// It may not be executed.
    #[error("the program may not be executed by the daemon's user; chmod +x, and no file system that is mounted noexec")]
    NotExecutable,
    /// It is a script, or something else.
    #[error("the program is not an ELF program; give the file of a gatherfsd")]
    NotElf,
    /// It is for another machine.
    #[error("the program is for another kind of machine (ELF machine {0}); give one that was built for this one")]
    OtherMachine(u16),
    /// It is dynamically linked.
    #[error(
        "the program is dynamically linked, and in the sandbox the guest could supply its interpreter in the share; give one that is \
         linked statically (cargo static), or restart gatherfsd"
    )]
    Interpreted,
}

/// This program's file. To be called before the sandbox. The errors of open(2).
pub fn running() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(c"/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The file that now has the path from which this program was started, whatever becomes of this process's root directory.
#[derive(Debug)]
pub struct DefaultProgram {
    directory: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl DefaultProgram {
    /// Notes the directory and the name of this program. To be called before the sandbox. The errors of readlink(2) and open(2).
    pub fn find() -> io::Result<DefaultProgram> {
        let link = std::fs::read_link("/proc/self/exe")?;
        // A package may have replaced it already.
        let path = link.to_str().and_then(|text| text.strip_suffix(DELETED)).map_or_else(|| link.clone(), PathBuf::from);
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let directory = open::directory(directory).map_err(|e| io::Error::from_raw_os_error(e.raw()))?;
        Ok(DefaultProgram { directory, name: name.to_owned(), path })
    }

    /// Opens the file that has the name now. A symbolic link is not followed: an absolute one would lead into the share.
    pub fn open(&self) -> Result<OwnedFd, Unfit> {
        // O_NONBLOCK: an open of a fifo would wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty())
            .map_err(|e| Unfit::Open { path: self.path.clone(), source: e.into() })
    }
}

/// A copy of `program` that nobody can change: a sealed memfd. The keeper gets nothing else, for what it has open a worker has open as
/// well, and could write to the host's file. The errors of memfd_create(2) and of copying.
pub fn sealed(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let memfd = match rustix::fs::memfd_create(c"gatherfsd", MEMFD_FLAGS | MemfdFlags::EXEC) {
        // Linux before 6.3, which executes every memfd.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(c"gatherfsd", MEMFD_FLAGS),
        made => made,
    }?;
    let (mut from, mut to) = (File::from(program.try_clone_to_owned()?), File::from(memfd));
    from.rewind()?;
    // It may have grown since it was checked.
    io::copy(&mut from.take(SIZE_MAX), &mut to)?;
    rustix::fs::fcntl_add_seals(&to, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(to.into())
}

/// Whether the keeper can execute `program`. With `is_confined` the keeper's root directory is the share, where a guest can put a file at
/// the path of an interpreter.
pub fn check(program: BorrowedFd<'_>, is_confined: bool) -> Result<(), Unfit> {
    let stat = rustix::fs::fstat(program).map_err(|e| Unfit::Unreadable(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Unfit::NotAFile);
    }
    let size = stat.st_size.cast_unsigned();
    if size > SIZE_MAX {
        return Err(Unfit::TooLarge(size));
    }
    if !open::may_execute(program) {
        return Err(Unfit::NotExecutable);
    }
    let headers = read_headers(program).map_err(Unfit::Unreadable)?;
    let header = FileHeader64::<Endianness>::parse(&headers[..]).map_err(|_| Unfit::NotElf)?;
    let endian = header.endian().map_err(|_| Unfit::NotElf)?;
    if header.e_machine(endian) != MACHINE || endian != Endianness::default() {
        return Err(Unfit::OtherMachine(header.e_machine(endian).0));
    }
    if ![ET_EXEC, ET_DYN].contains(&header.e_type(endian)) {
        return Err(Unfit::NotElf);
    }
    let mut segments = header.program_headers(endian, &headers[..]).map_err(|_| Unfit::NotElf)?.iter();
    if is_confined && segments.any(|segment| segment.p_type(endian) == PT_INTERP) {
        return Err(Unfit::Interpreted);
    }
    Ok(())
}

/// The beginning of the file.
fn read_headers(program: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADERS_MAX];
    let mut len = 0;
    while len < HEADERS_MAX {
        match rustix::io::pread(program, &mut bytes[len..], len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// A file with `content` and `mode`, which has no name any more.
    fn file(content: &[u8], mode: u32) -> File {
        scratch_file(content, mode, None)
    }

    /// The same, with a hole behind the content.
    fn scratch_file(content: &[u8], mode: u32, size: Option<u64>) -> File {
        let id = rustix::thread::gettid().as_raw_nonzero();
        let path = std::env::temp_dir().join(format!("gfs-program-{}-{id}", std::process::id()));
        fs::write(&path, content).unwrap();
        size.iter().for_each(|size| File::options().write(true).open(&path).unwrap().set_len(*size).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let file = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file
    }

    fn said(file: &impl AsFd, is_confined: bool) -> String {
        check(file.as_fd(), is_confined).map_or_else(|e| e.to_string(), |()| "fit".to_owned())
    }

    fn own() -> Vec<u8> {
        let mut program = fs::read("/proc/self/exe").unwrap();
        program.truncate(HEADERS_MAX);
        program
    }

    #[test]
    fn this_program_can_be_executed_and_in_a_sandbox_only_where_it_is_static() {
        let program = File::open("/proc/self/exe").unwrap();
        assert_eq!(said(&program, false), "fit");
        assert!(cfg!(target_feature = "crt-static") || said(&program, true).contains("cargo static"));
    }

    #[test]
    fn what_cannot_be_executed_is_refused_with_what_to_do() {
        assert!(said(&File::open("/").unwrap(), false).contains("not a regular file"));
        assert!(said(&file(&own(), 0o644), false).contains("may not be executed"));
        assert!(said(&file(b"#!/bin/sh\n", 0o755), false).contains("not an ELF program"));
        assert!(said(&file(b"", 0o755), false).contains("not an ELF program"));
        assert!(said(&file(&own()[..63], 0o755), false).contains("not an ELF program"));
        assert!(said(&file(&own()[..80], 0o755), false).contains("not an ELF program"), "the program headers are cut off");
        let mut other = own();
        // e_machine.
        other[18..20].copy_from_slice(&object::elf::EM_S390.0.to_le_bytes());
        assert!(said(&file(&other, 0o755), false).contains("another kind of machine (ELF machine 22)"));
        let mut object = own();
        // e_type: a relocatable object.
        object[16..18].copy_from_slice(&1u16.to_le_bytes());
        assert!(said(&file(&object, 0o755), false).contains("not an ELF program"));
        let large = scratch_file(&own(), 0o755, Some(SIZE_MAX + 1));
        let why = said(&large, false);
        assert!(why.contains("the program has 268435457 bytes") && why.contains("strip"), "{why}");
        let path = rustix::fs::open("/proc/self/exe", OFlags::PATH, Mode::empty()).unwrap();
        assert!(said(&path, false).contains("cannot be read"));
    }

    #[test]
    fn the_copy_of_a_program_cannot_be_changed() {
        let copy = sealed(file(b"program", 0o755).as_fd()).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(rustix::io::pread(&copy, &mut bytes, 0).map(|len| bytes[..len].to_vec()), Ok(b"program".to_vec()));
        assert_eq!(rustix::io::pwrite(&copy, b"x", 0), Err(rustix::io::Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&copy, 0), Err(rustix::io::Errno::PERM));
        assert_eq!(rustix::fs::fcntl_add_seals(&copy, SealFlags::FUTURE_WRITE), Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn whatever_the_headers_say_the_check_comes_to_an_end() {
        let own = own();
        for at in 0..128 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = own.clone();
                changed[at] = value;
                said(&file(&changed, 0o755), true);
            }
        }
    }

    #[test]
    fn the_default_is_the_file_that_now_has_the_path() {
        let found = DefaultProgram::find().unwrap();
        let opened = File::from(found.open().unwrap());
        assert_eq!(opened.metadata().unwrap().ino(), fs::metadata("/proc/self/exe").unwrap().ino());
        let missing = DefaultProgram { name: "no-such-program".into(), ..found };
        assert!(missing.open().unwrap_err().to_string().contains("gatherfsctl upgrade PROGRAM"));
    }
}
