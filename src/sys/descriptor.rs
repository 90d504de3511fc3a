//! Descriptors by number: close(2) with its error, and sockets that were inherited.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use parking_lot::Mutex;
use rustix::net::sockopt;

use crate::types::Errno;

/// Closes `fd` and tells what the file system had to say. The descriptor is gone in any case.
pub fn close(fd: OwnedFd) -> Result<(), Errno> {
    // SAFETY: the descriptor was owned and is given up here.
    if unsafe { libc::close(fd.into_raw_fd()) } == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Takes over descriptor `fd`, which the process inherited as a listening unix socket. A number is taken over once:
/// what came through execve(2) lacks FD_CLOEXEC, which it gets here, and which every descriptor has that this process
/// opens. EBADF where it is not open or was not inherited, EINVAL where it is no listening unix socket.
pub fn inherited_listener(fd: i32) -> io::Result<UnixListener> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only looked at; the kernel answers EBADF for a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let is_unix = sockopt::socket_domain(borrowed)? == rustix::net::AddressFamily::UNIX;
    if !is_unix || !sockopt::socket_acceptconn(borrowed)? {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: inherited and not taken over before, as the flag said, so nobody else in the process owns it.
    Ok(unsafe { UnixListener::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

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
