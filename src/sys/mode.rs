//! Permission bits of the file behind an O_PATH descriptor: fchmodat2(2), and chmod(2) by the descriptor's name before Linux 6.6.
//! The name leads through /proc, which takes more than twice the time. Does not follow symbolic links, which have no mode.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode};

use super::failpoint::fail_call;
use super::working_dir::DescriptorName;
use crate::types::Errno;

/// Number of fchmodat2(2) on every architecture that is served; not every libc crate has it.
pub const SYS_FCHMODAT2: libc::c_long = 452;

/// The kernel answered fchmodat2(2) with ENOSYS.
static IS_ABSENT: AtomicBool = AtomicBool::new(false);

/// Sets the permission bits `mode` of the file behind `fd`. The calling thread's working directory must be /proc/self/fd, see
/// `working_dir`. The errno of chmod(2).
pub fn set(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    if !IS_ABSENT.load(Ordering::Relaxed) {
        match fchmodat2(fd, mode) {
            Err(Errno::ENOSYS) => IS_ABSENT.store(true, Ordering::Relaxed),
            // Seccomp filters that do not know the call, as older containers have, answer it with EPERM, too.
            Err(Errno::EPERM) => {}
            set => return set,
        }
    }
    by_name(fd, mode)
}

fn fchmodat2(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    fail_call!("fchmodat2");
    // SAFETY: the path is an empty C string, and the kernel writes nothing.
    let r = unsafe { libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    if r == 0 { Ok(()) } else { Err(Errno::last()) }
}

fn by_name(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    fail_call!("fchmodat");
    Ok(rustix::fs::chmodat(CWD, DescriptorName::of(fd).as_c_str(), Mode::from_raw_mode(mode), AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::OFlags;

    use super::*;
    use crate::sys::working_dir::DescriptorDir;

    #[test]
    fn either_way_sets_the_mode_behind_an_o_path_descriptor() {
        let place = std::env::temp_dir().join(format!("gatherfs-mode-{}", std::process::id()));
        std::fs::write(&place, b"").unwrap();
        let path = place.clone();
        // In a thread, as the working directory is the thread's own.
        let thread = std::thread::spawn(move || {
            DescriptorDir::open().unwrap().enter().unwrap();
            let fd = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let mode_of = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            for (mode, how) in [(0o640, set as fn(_, _) -> _), (0o4701, by_name), (0o600, fchmodat2)] {
                match how(fd.as_fd(), mode) {
                    Err(Errno::ENOSYS) => println!("skipped: this kernel has no fchmodat2(2)"),
                    set => assert_eq!((set, mode_of()), (Ok(()), mode)),
                }
            }
        });
        let result = thread.join();
        std::fs::remove_file(&place).unwrap();
        result.unwrap();
    }
}
