//! The control socket: where it is, and how it is made. It is for root and the daemon's own user.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use crate::outer::ControlSocket;

/// Clients that wait until they are accepted.
const BACKLOG: i32 = 8;

/// A value of `--control-socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlPath {
    /// This path.
    At(PathBuf),
    /// No control socket.
    None,
}

impl FromStr for ControlPath {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<ControlPath, Infallible> {
        Ok(if text == "none" { ControlPath::None } else { ControlPath::At(text.into()) })
    }
}

/// Where the control socket is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlPlace {
    /// At this path, which was given.
    At(PathBuf),
    /// At this path, if that is possible.
    Beside(PathBuf),
    /// Nowhere.
    None,
}

/// A control socket that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path} (--control-socket): {source}; choose another path, or give --control-socket none")]
pub struct ControlError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the control socket, for the daemon's user only. One on which no process listens is replaced. To be called before the sandbox,
/// and removed with the other socket.
///
/// An error where the path was given and no socket can be made there.
pub fn listen_for_control(place: &ControlPlace) -> Result<Option<ControlSocket>, ControlError> {
    match place {
        ControlPlace::None => Ok(None),
        ControlPlace::At(path) => make(path).map(Some).map_err(|source| ControlError { path: path.clone(), source }),
        ControlPlace::Beside(path) => Ok(make(path)
            .inspect_err(|e| tracing::debug!("no control socket at {}: {e}; --control-socket gives another path", path.display()))
            .ok()),
    }
}

fn make(path: &Path) -> io::Result<ControlSocket> {
    let path = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    };
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(&path)?;
    let listener = packets()?;
    // bind(2) gives the file all rights that the mask leaves.
    let umask = rustix::process::umask(Mode::XUSR | Mode::RWXG | Mode::RWXO);
    let bound = match bind(&listener, &address) {
        Err(rustix::io::Errno::ADDRINUSE) if is_stale(&directory, name, &address) => {
            rustix::fs::unlinkat(&directory, name, AtFlags::empty()).and_then(|()| bind(&listener, &address))
        }
        bound => bound,
    };
    rustix::process::umask(umask);
    bound?;
    listen(&listener, BACKLOG)?;
    Ok(ControlSocket { listener, directory, name: name.to_owned() })
}

fn packets() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Whether `name` is a socket on which nobody listens.
fn is_stale(directory: &OwnedFd, name: &OsStr, address: &SocketAddrUnix) -> bool {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    let is_socket = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    is_socket && packets().and_then(|socket| connect(&socket, address)) == Err(rustix::io::Errno::CONNREFUSED)
}
