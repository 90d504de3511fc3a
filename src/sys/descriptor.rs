//! Descriptors: close(2) with its error, fsync(2), and those that came through execve(2), by their number.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use parking_lot::Mutex;
use rustix::fs::{RawDir, SealFlags, SeekFrom};
use rustix::io::FdFlags;
use rustix::net::sockopt;

use super::failpoint::{crash_point, fail_call};
use crate::types::Errno;

/// Where [`open_ones`] stops: a process that starts has few descriptors, and low ones.
const FIRST_NUMBERS: RawFd = 1024;

/// Bytes of a listing of descriptors that are read at once.
const LISTING_LEN: usize = 32 << 10;

/// Closes `fd`. The error is that of close(2), for example EIO or ENOSPC of a network file system. The descriptor is closed in
/// any case.
pub fn close(fd: OwnedFd) -> Result<(), Errno> {
    fail_call!("close");
    // SAFETY: the descriptor was owned by `fd`, which no longer owns it.
    if unsafe { libc::close(fd.into_raw_fd()) } == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// fsync(2), or fdatasync(2), with their errors: EIO or ENOSPC where data was lost.
pub fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<(), Errno> {
    fail_call!("fsync");
    Ok(if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }?)
}

/// syncfs(2) of the file system of `fd`. EIO, ENOSPC or EDQUOT where data was lost since its last syncfs by this descriptor.
pub fn sync_file_system(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    fail_call!("syncfs");
    Ok(rustix::fs::syncfs(fd)?)
}

/// Another descriptor of the same open file description. EMFILE where the process has too many.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fail_call!("fcntl_dupfd");
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 0)?)
}

/// Whether a descriptor has the number `fd`.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: the number is only queried; the kernel answers EBADF where it is not open.
    fd >= 0 && rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok()
}

/// Makes the process's table of descriptors as large as `count` of them need. To be called while the process has one thread: the
/// kernel lets each later growth wait for an RCU grace period, some ten milliseconds, if several threads share the table. No
/// error is reported: the table then grows when it must.
pub fn make_room(fd: BorrowedFd<'_>, count: usize) {
    let last = i32::try_from(count.saturating_sub(1)).unwrap_or(i32::MAX);
    // A descriptor of the highest number makes the kernel grow the table, which does not shrink when it is closed.
    drop(rustix::io::fcntl_dupfd_cloexec(fd, last));
}

/// The numbers below [`FIRST_NUMBERS`] that are open.
pub fn open_ones() -> Vec<RawFd> {
    // SAFETY: the number is only queried; the kernel answers EBADF where it is not open.
    (0..FIRST_NUMBERS).filter(|fd| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*fd) }).is_ok()).collect()
}

/// Closes every descriptor of the process but those of `kept`, which it sorts: those of a process that shared the table and died. The
/// caller names every one that is in use, here or in another process with the same table. May wait for the host, as close(2) does.
pub fn close_others(kept: &mut [RawFd]) -> io::Result<()> {
    kept.sort_unstable();
    let mut next = 0;
    for fd in kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).chain([u32::MAX]) {
        if fd > next {
            let (first, last): (libc::c_uint, libc::c_uint) = (next, if fd == u32::MAX { fd } else { fd - 1 });
            // SAFETY: no memory is touched, and nobody uses these descriptors, as the caller says. No flags: one unshares the table.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
                // Linux before 5.9, or a filter around the daemon that does not know it.
                close_each(first, last)?;
            }
        }
        next = fd.saturating_add(1);
    }
    crash_point!("swept");
    Ok(())
}

/// Closes the descriptors from `first` to `last`, one after the other. An error where it is not known how many there may be.
fn close_each(first: u32, last: u32) -> io::Result<()> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let end = most.and_then(|most| u32::try_from(most).ok()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))?;
    for fd in first..end.min(last.saturating_add(1)) {
        // SAFETY: nobody uses it, as the caller of `close_others` says. A number that is not open is EBADF.
        unsafe { libc::close(fd.cast_signed()) };
    }
    Ok(())
}

/// Takes ownership of descriptor `fd`, which the process inherited. A descriptor that came through execve(2) lacks FD_CLOEXEC, and
/// this process opens none without it. This function sets the flag, so that a descriptor has one owner. EBADF where it is not open
/// or was not inherited.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    inherited_if(fd, |_| Ok(()))
}

/// As [`inherited`], for a listening unix socket. EINVAL where it is none.
pub fn inherited_listener(fd: RawFd) -> io::Result<UnixListener> {
    let fd = inherited_if(fd, |fd| {
        let is_unix = sockopt::socket_domain(fd)? == rustix::net::AddressFamily::UNIX;
        if is_unix && sockopt::socket_acceptconn(fd)? { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    });
    Ok(UnixListener::from(fd?))
}

fn inherited_if(fd: RawFd, check: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<OwnedFd> {
    // The flag belongs to the process, and so does the lock between test and set.
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = LOCK.lock();
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is only queried; the kernel answers EBADF where it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    check(borrowed)?;
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: FD_CLOEXEC was not set, so the descriptor was inherited and has no owner in this process yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets every descriptor of the process stay open in the program that it executes next. `listing` is its /proc/self/fd, open for
/// reading.
pub fn keep_over_exec(listing: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::seek(listing, SeekFrom::Start(0))?;
    let mut entries = vec![MaybeUninit::uninit(); LISTING_LEN];
    let mut entries = RawDir::new(listing, &mut entries);
    while let Some(entry) = entries.next() {
        // Not "." and "..".
        if let Some(fd) = entry?.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()) {
            // SAFETY: the number is only used for its flags; the kernel answers EBADF where it is not open.
            match rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::BADF) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// Undoes [`keep_over_exec`].
pub fn close_on_exec() -> io::Result<()> {
    let (first, last, flags): (libc::c_uint, libc::c_uint, libc::c_uint) = (0, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: no memory is touched, and no descriptor is closed. The flag does not unshare the table.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether nobody can change the file behind `fd` any more: a memfd that is sealed against writing (man fcntl(2), F_SEAL_WRITE).
pub fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
}

/// Whether the file behind `fd` is memory, such as a memfd, or a file of a tmpfs: reads of it do not wait for anybody.
pub fn is_memory(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;

    #[test]
    fn the_table_has_room_for_as_many_as_asked_for() {
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
            line.trim().parse::<usize>().unwrap()
        };
        let file = std::fs::File::open("/dev/null").unwrap();
        make_room(file.as_fd(), 600);
        assert!(size() >= 600, "{}", size());
        // Beyond RLIMIT_NOFILE nothing happens.
        make_room(file.as_fd(), usize::MAX);
    }

    #[test]
    fn what_the_process_opened_itself_is_not_taken_over_and_what_it_inherited_once() {
        let errno = |result: io::Result<UnixListener>| result.map_err(|e| e.raw_os_error()).err().flatten();
        let dir = std::env::temp_dir().join(format!("gfs-descriptor-{}", std::process::id()));
        let own = UnixListener::bind(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        assert_eq!(errno(inherited_listener(own.as_raw_fd())), Some(libc::EBADF));
        // As execve(2) leaves it.
        let inherited = rustix::io::dup(&own).unwrap().into_raw_fd();
        let taken = inherited_listener(inherited).unwrap();
        assert_eq!(taken.as_raw_fd(), inherited);
        assert_eq!(errno(inherited_listener(inherited)), Some(libc::EBADF), "a second owner");
        assert_eq!(errno(inherited_listener(-1)), Some(libc::EBADF));
    }
}
