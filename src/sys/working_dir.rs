//! The working directory /proc/self/fd. A thread there can use the number of a descriptor as a path, in system calls that take
//! no O_PATH descriptor (chmod, truncate, xattrs, open), without a second system call. Names from the guest are never resolved
//! there: they are always used with a directory descriptor.
//!
//! The directory may be that of another process with the same table of descriptors, which the kernel allows to a thread with the
//! same ids and all capabilities that are permitted to that process.

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::UnshareFlags;

use super::{fsetid, process};

/// /proc/self/fd, opened before the sandbox unmounts /proc.
#[derive(Debug)]
pub struct DescriptorDir(OwnedFd);

impl DescriptorDir {
    /// Opens the directory of the calling process; a child needs its own. ENOENT where /proc is not mounted.
    pub fn open() -> io::Result<DescriptorDir> {
        while_visible(|| rustix::fs::open(c"/proc/self/fd", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
    }

    /// Of its descriptor, for another program in the same process.
    pub fn of(fd: OwnedFd) -> DescriptorDir {
        DescriptorDir(fd)
    }

    /// The same directory, open for reading. EACCES where Landlock restricts the process already.
    pub fn listing(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.0, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The number of its descriptor.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// As `open`, as a detached mount, so that `..` does not lead to the rest of the host's /proc. EPERM without CAP_SYS_ADMIN,
    /// ENOSYS before Linux 5.2.
    pub fn open_alone() -> io::Result<DescriptorDir> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        while_visible(|| open_tree(rustix::fs::CWD, c"/proc/self/fd", flags))
    }

    /// Opens the file `fd` again, for a thread with another working directory. The errors of open(2).
    pub fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.0, DescriptorName::of(fd).as_c_str(), flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Makes it the working directory of the calling thread only, and sets the thread's umask to 0. EPERM where a seccomp filter
    /// or the kernel refuses unshare(2).
    pub fn enter(&self) -> io::Result<()> {
        // The thread that started this one may have laid CAP_FSETID down for a request at that moment.
        fsetid::keep_suidgid(true);
        // SAFETY: FS separates only the working directory, root directory and umask of this thread from the other threads'.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        // The thread that started this one may have had the umask of a request at that moment.
        rustix::process::umask(Mode::empty());
        Ok(rustix::process::fchdir(self.0.as_fd())?)
    }
}

/// Opens the directory when it belongs to the process's user: that of a process that is not visible belongs to root, and its owner
/// is the one that it had when it was looked up (man proc_pid(5)).
fn while_visible(open: impl FnOnce() -> rustix::io::Result<OwnedFd>) -> io::Result<DescriptorDir> {
    let was_visible = process::set_visible(true)?;
    let opened = open();
    process::set_visible(was_visible)?;
    Ok(DescriptorDir(opened?))
}

/// The name of a descriptor in /proc/self/fd.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorName([u8; 12]);

impl DescriptorName {
    /// The name of `fd`. Takes CAP_FSETID up, for the kernel follows a link in another process's directory only for a thread that
    /// has laid nothing down (ptrace_may_access of man ptrace(2)).
    pub fn of(fd: BorrowedFd<'_>) -> DescriptorName {
        fsetid::keep_suidgid(true);
        let mut name = [0; 12];
        // An i32 has at most eleven characters; the twelfth byte stays NUL.
        let _ = write!(&mut name[..11], "{}", fd.as_raw_fd());
        DescriptorName(name)
    }

    /// As a C string.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use caps::Capability;

    use super::*;
    use crate::sys::identity;

    #[test]
    fn a_thread_that_names_a_descriptor_has_all_its_capabilities() {
        let has = || identity::has_capability(Capability::CAP_FSETID);
        let thread = std::thread::spawn(move || {
            if !has() {
                return println!("skipped: CAP_FSETID is not permitted here");
            }
            fsetid::keep_suidgid(false);
            assert!(!has());
            let file = std::fs::File::open("/dev/null").unwrap();
            assert_eq!(DescriptorName::of(file.as_fd()).as_c_str().to_str(), Ok(&*file.as_raw_fd().to_string()));
            assert!(has());
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_does_not_keep_the_umask_of_the_one_that_started_it() {
        let dir = std::sync::Arc::new(DescriptorDir::open().unwrap());
        let starter = std::thread::spawn(move || {
            dir.enter().unwrap();
            rustix::process::umask(Mode::RWXG | Mode::RWXO);
            let started = std::thread::spawn(move || {
                dir.enter().unwrap();
                rustix::process::umask(Mode::empty())
            });
            started.join().unwrap()
        });
        assert_eq!(starter.join().unwrap(), Mode::empty());
    }
}
