//! Descriptors by number: close(2) with its error, and sockets that were inherited.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::sockopt;

use crate::types::Errno;

/// Closes `fd` and tells what the file system had to say. The descriptor is gone in any case.
pub fn close(fd: OwnedFd) -> Result<(), Errno> {
    // SAFETY: the descriptor was owned and is given up here.
    if unsafe { libc::close(fd.into_raw_fd()) } == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Takes over descriptor `fd`, which the process inherited as a listening unix socket. Call it once for a
/// number, before the process opens descriptors of its own. EBADF where it is not open, EINVAL where it is
/// no listening unix socket.
pub fn inherited_listener(fd: i32) -> io::Result<UnixListener> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only looked at; the kernel answers EBADF for a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let is_unix = sockopt::socket_domain(borrowed)? == rustix::net::AddressFamily::UNIX;
    if !is_unix || !sockopt::socket_acceptconn(borrowed)? {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: whoever started us gave us this descriptor, and nobody else in the process knows its number.
    Ok(unsafe { UnixListener::from_raw_fd(fd) })
}
