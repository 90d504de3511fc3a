//! What the service manager is told (man sd_notify(3)): datagrams to the socket that NOTIFY_SOCKET names. It is connected before the
//! sandbox, for later neither its path nor, as an abstract name, its network namespace is in reach. Knows nothing of when there is
//! something to tell.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::sys::process;

/// Datagrams that wait until the manager has read earlier ones. There are more only where it has stopped to read; then the newest are
/// lost.
const UNSENT_MAX: usize = 16;

const SOCKET: &str = "NOTIFY_SOCKET";
/// Set by systemd 254 and later, from FileDescriptorStoreMax=.
const KEEPS: &str = "FDSTORE";
const WATCHDOG_TIME: &str = "WATCHDOG_USEC";
const WATCHDOG_PROCESS: &str = "WATCHDOG_PID";

/// The service manager.
#[derive(Debug)]
pub struct Notify {
    socket: UnixDatagram,
    unsent: VecDeque<Datagram>,
    /// Descriptors that the manager keeps at most.
    pub keeps: usize,
}

#[derive(Debug)]
struct Datagram {
    lines: String,
    fd: Option<OwnedFd>,
}

impl Notify {
    /// The manager that the environment names, if one does. Takes the variables out of the environment, which is for this process alone,
    /// but for WATCHDOG_USEC where the manager expects signs of life from it (see [`alive_every`]). To be called while the process has one
    /// thread.
    pub fn from_environment() -> Option<Notify> {
        let keeps = env::var(KEEPS).ok().and_then(|number| number.parse().ok()).unwrap_or(0);
        let notify = env::var_os(SOCKET).and_then(|name| match connect(&name) {
            Ok(socket) => Some(Notify { socket, unsent: VecDeque::new(), keeps }),
            Err(e) => {
                tracing::warn!("{SOCKET}={}: {e}; the service manager is told nothing", name.display());
                None
            }
        });
        let process = env::var(WATCHDOG_PROCESS).ok();
        let is_watched = notify.is_some() && process.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let gone = [(SOCKET, true), (KEEPS, true), (WATCHDOG_PROCESS, true), (WATCHDOG_TIME, !is_watched)];
        for (name, _) in gone.into_iter().filter(|(_, is_gone)| *is_gone) {
            if let Err(e) = process::forget_variable(name) {
                tracing::debug!("{name} stays in the environment: {e}");
            }
        }
        notify
    }

    /// Sends `lines`, such as READY=1, after what could not be sent yet. Does not wait.
    pub fn say(&mut self, lines: String) {
        if self.unsent.len() < UNSENT_MAX {
            self.unsent.push_back(Datagram { lines, fd: None });
        }
        self.send_on();
    }

    /// Has the manager keep `fd` by `name`, for the next process, also where it is a socket whose other end is closed. Is not lost where the
    /// manager does not read: the caller bounds what there is.
    pub fn keep(&mut self, name: &str, fd: OwnedFd) {
        self.unsent.push_back(Datagram { lines: format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), fd: Some(fd) });
        self.send_on();
    }

    /// Has the manager close what it keeps by `name`. As [`Notify::keep`].
    pub fn forget(&mut self, name: &str) {
        self.unsent.push_back(Datagram { lines: format!("FDSTOREREMOVE=1\nFDNAME={name}"), fd: None });
        self.send_on();
    }

    /// Sends what could not be sent yet, as far as there is room.
    pub fn send_on(&mut self) {
        while let Some(Datagram { lines, fd }) = self.unsent.front() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&fds));
            }
            match sendmsg(&self.socket, &[IoSlice::new(lines.as_bytes())], &mut control, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => tracing::debug!("the service manager is not told: {e}"),
                Ok(_) => {}
            }
            self.unsent.pop_front();
        }
    }

    /// Writable when [`Notify::send_on`] can go on, where it has to.
    pub fn awaited(&self) -> Option<BorrowedFd<'_>> {
        (!self.unsent.is_empty()).then(|| self.socket.as_fd())
    }

    /// Waits until everything is sent, as sd_notify(3) does.
    pub fn send_all(&mut self) -> io::Result<()> {
        while let Some(socket) = self.awaited() {
            match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.send_on(),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Connects to the socket `name`: a path, or an abstract name behind an @.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract socket")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// How often the process that serves has to show that it lives: twice in the time after which the service manager gives it up. `None`
/// where nobody watches. To be called after [`Notify::from_environment`].
pub fn alive_every() -> Option<Duration> {
    let micros = env::var(WATCHDOG_TIME).ok()?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager's socket, and a connection to it.
    fn pair(name: &[u8]) -> (UnixDatagram, Notify) {
        let name = [b"gfs-notify-", name, std::process::id().to_string().as_bytes()].concat();
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        manager.set_nonblocking(true).unwrap();
        let socket = connect(OsStr::from_bytes(&[b"@", &name[..]].concat())).unwrap();
        (manager, Notify { socket, unsent: VecDeque::new(), keeps: 0 })
    }

    fn received(manager: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 256];
        let len = manager.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..len].to_vec()).unwrap())
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for_and_hears_the_rest_later() {
        let (manager, mut notify) = pair(b"slow");
        let mut said = 0;
        while notify.awaited().is_none() {
            notify.say(format!("STATUS={said}"));
            said += 1;
        }
        (0..100).for_each(|_| notify.say("STATUS=late".to_owned()));
        assert_eq!(notify.unsent.len(), UNSENT_MAX);
        for number in 0..said {
            let heard = received(&manager);
            assert_eq!(heard, Some(format!("STATUS={number}")));
            notify.send_on();
        }
        assert_eq!(received(&manager).as_deref(), Some("STATUS=late"));
        drop(manager);
        notify.send_on();
        assert!(notify.awaited().is_none(), "a manager that has gone is not told");
    }

    #[test]
    fn a_name_that_is_no_socket_is_an_error() {
        for name in ["", "relative", "vsock:2:1", "/no/such/socket", "@gfs-no-such-name"] {
            assert!(connect(OsStr::new(name)).is_err(), "{name}");
        }
    }
}
