//! A connection whose other end has to be accepted: vhost-user-backend serves what it accepts itself.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen, shutdown, socket_with,
};

/// Names that are tried: a stranger who connects first takes one of them away.
const ATTEMPTS_MAX: u32 = 16;

/// Two connected ends: ours, and the socket on which exactly one connection, the other end, can be accepted.
///
/// The name is an abstract one that the kernel chooses (man unix(7), "Autobind feature"), to which other processes may connect as
/// well. There is room for one connection that waits, so ours, if it is accepted, is the first; then no other one is.
pub fn acceptable() -> io::Result<(OwnedFd, OwnedFd)> {
    for _ in 0..ATTEMPTS_MAX {
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&listener, &SocketAddrUnix::new_unnamed())?;
        let name = getsockname(&listener)?;
        listen(&listener, 0)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let ours = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&ours, &name) {
            Ok(()) => {
                shutdown(&listener, Shutdown::Read)?;
                return Ok((ours, listener));
            }
            Err(rustix::io::Errno::AGAIN) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::Error::other("other processes connect to the sockets between keeper and worker"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_other_end_is_accepted_once_and_nobody_else_can_connect() {
        let (ours, listener) = acceptable().unwrap();
        let listener = UnixListener::from(listener);
        let name = listener.local_addr().unwrap();
        assert!(UnixStream::connect_addr(&name).is_err());
        let (mut theirs, _) = listener.accept().unwrap();
        assert!(UnixStream::connect_addr(&name).is_err());
        UnixStream::from(ours).write_all(b"x").unwrap();
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x");
    }

    #[test]
    fn a_connection_fails_where_a_stranger_was_first() {
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new_unnamed()).unwrap();
        listen(&listener, 0).unwrap();
        let name = getsockname(&listener).unwrap();
        let connect_to = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
            let connected = connect(&socket, &name);
            (socket, connected)
        };
        let (_stranger, first) = connect_to();
        assert_eq!(first, Ok(()));
        assert_eq!(connect_to().1, Err(rustix::io::Errno::AGAIN));
    }
}
