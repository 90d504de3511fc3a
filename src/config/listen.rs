//! The listening socket, created at a path or inherited, and the files that are removed with it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::control_socket::{ControlError, ControlPlace, listen_for_control};
use super::pid_file;
use crate::outer::ControlSocket;

/// The longest path of a socket, in bytes (man unix(7)); one that is relative to a deep directory may be shorter.
const SOCKET_PATH_MAX: usize = 107;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listening {
    /// On a socket that is created.
    Path {
        /// Its path.
        path: PathBuf,
        /// Its group, by name or number.
        group: Option<String>,
    },
    /// On an inherited descriptor.
    Inherited(i32),
}

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("another process listens on {0}; stop it or choose another --socket-path")]
    Taken(PathBuf),
    /// The path is another kind of file.
    #[error("{0} exists and is not a socket; remove it or choose another --socket-path")]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("cannot listen on {path}: {source}")]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// The path does not fit into a socket address.
    #[error(
        "cannot listen on {path}: the path has {} bytes, at most {SOCKET_PATH_MAX} are allowed; choose a shorter --socket-path",
        .path.as_os_str().len()
    )]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// The directory of the socket does not exist.
    #[error("cannot listen on {path}: {what}; create the directory or choose another --socket-path")]
    NoDirectory {
        /// The socket's path.
        path: PathBuf,
        /// The missing directory, or the file in its place.
        what: String,
    },
    /// The process id could not be written.
    #[error("cannot write the pid file {path}, which another daemon may have locked: {source}; remove it or choose another --socket-path")]
    PidFile {
        /// The pid file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No such group.
    #[error("--socket-group {0}: no such group; give the name or number of a group")]
    NoGroup(String),
    /// The group databases could not be read.
    #[error("--socket-group {group}: the group database cannot be read: {source}; give the group's number")]
    GroupDatabase {
        /// The group.
        group: String,
        /// The C library's error.
        source: io::Error,
    },
    /// The group could not be set.
    #[error("cannot change the group of {path} to {group}: {source}; this requires root or membership of the group")]
    Chown {
        /// The socket's path.
        path: PathBuf,
        /// The group.
        group: String,
        /// The system call's error.
        source: io::Error,
    },
    /// The descriptor is not a listening socket.
    #[error("--fd {fd} is not a listening Unix socket: {source}; in a systemd socket unit, use ListenStream=PATH")]
    Inherited {
        /// The descriptor.
        fd: i32,
        /// The system call's error.
        source: io::Error,
    },
}

/// The socket's file, its pid file and the control socket's. The process that created them removes them when it exits, relative to their directory:
/// in a sandbox the path may not be reachable.
#[derive(Debug)]
pub struct SocketFile {
    place: Option<(OwnedFd, OsString)>,
    /// The control socket's.
    control: Option<(OwnedFd, OsString)>,
    /// Locked while the daemon runs.
    _pid_file: Option<File>,
}

impl SocketFile {
    /// Removes the files, if this process created them.
    pub fn remove(&mut self) {
        if let Some((directory, name)) = self.place.take() {
            let pid_file = pid_file::path_of(Path::new(&name));
            let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
            let _ = rustix::fs::unlinkat(&directory, pid_file, AtFlags::empty());
        }
        if let Some((directory, name)) = self.control.take() {
            let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
        }
    }

    /// Makes the control socket, which is removed with the others.
    ///
    /// # Errors
    /// Its path was given, and no socket can be made there.
    pub fn add_control(&mut self, place: &ControlPlace) -> Result<Option<ControlSocket>, ListenError> {
        let Some(socket) = listen_for_control(place)? else { return Ok(None) };
        let directory = socket.directory.try_clone().map_err(|source| ListenError::Bind { path: socket.name.clone().into(), source })?;
        self.control = Some((directory, socket.name.clone()));
        Ok(Some(socket))
    }

    /// Closes the directory: the files are removed by the process outside the sandbox.
    pub fn leave(&mut self) {
        (self.place, self.control) = (None, None);
    }

    /// The directory of the files, if this process created them.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.place.as_ref().map(|(directory, _)| directory.as_fd())
    }

    fn at(path: &Path, claimed: Option<File>) -> Result<SocketFile, ListenError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(SocketFile { place: None, control: None, _pid_file: None });
        };
        let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| ListenError::Bind { path: path.to_owned(), source: e.into() })?;
        let pid_path = pid_file::path_of(path);
        let pid_file = pid_file::write(&pid_path, claimed).map_err(|source| ListenError::PidFile { path: pid_path, source })?;
        Ok(SocketFile { place: Some((directory, name.to_owned())), control: None, _pid_file: Some(pid_file) })
    }
}

/// Creates or takes over the socket. A socket file on which no process listens is replaced.
///
/// # Errors
/// The path is in use, too long, not a socket or in a directory that does not exist; the group does not exist or cannot be set;
/// the pid file is locked; the inherited descriptor is not a listening socket.
pub fn listen(listening: &Listening) -> Result<(UnixListener, SocketFile), ListenError> {
    match listening {
        Listening::Inherited(fd) => Ok((inherit(*fd)?, SocketFile { place: None, control: None, _pid_file: None })),
        Listening::Path { path, group } => {
            let typed = path;
            let path = std::path::absolute(typed).map_err(|source| ListenError::Bind { path: typed.clone(), source })?;
            check_directory(&path)?;
            let bindable = if path.as_os_str().len() <= SOCKET_PATH_MAX { &path } else { typed };
            if bindable.as_os_str().len() > SOCKET_PATH_MAX {
                return Err(ListenError::TooLong { path: typed.clone() });
            }
            let pid_path = pid_file::path_of(&path);
            let claimed = pid_file::claim(&pid_path).map_err(|source| match source.kind() {
                io::ErrorKind::WouldBlock if fs::symlink_metadata(&path).is_ok() => ListenError::Taken(path.clone()),
                _ => ListenError::PidFile { path: pid_path, source },
            })?;
            // A connection gives access to the share: for the daemon's user only, unless a group is given.
            let umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
            let bound = bind(bindable);
            rustix::process::umask(umask);
            let listener = bound?;
            let given = group.as_ref().map_or(Ok(()), |group| give_to_group(&path, group));
            // Last, since programs that wait for the pid file connect next.
            let file = given.and_then(|()| SocketFile::at(&path, claimed));
            Ok((listener, file.inspect_err(|_| _ = fs::remove_file(&path))?))
        }
    }
}

/// Fails if the directory of the socket at `path` does not exist, with the first missing directory in the message. Other errors
/// are left to bind(2).
fn check_directory(path: &Path) -> Result<(), ListenError> {
    let failed = |what| ListenError::NoDirectory { path: path.to_owned(), what };
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    for directory in above.into_iter().rev() {
        match fs::metadata(directory) {
            Ok(found) if !found.is_dir() => return Err(failed(format!("{} is not a directory", directory.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(failed(format!("the directory {} does not exist", directory.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

fn bind(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Bind { path: path.to_owned(), source };
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            if is_bound(path).map_err(failed)? {
                return Err(ListenError::Taken(path.to_owned()));
            }
            fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)
        }
        bound => bound.map_err(failed),
    }
}

/// Type and state in /proc/net/unix of a connection: SOCK_STREAM, SS_CONNECTED.
const CONNECTED: [&[u8]; 2] = [b"0001", b"03"];

/// Whether a process has a socket bound to `path`. A connection attempt would use up the only connection of a daemon without
/// `--keep-listening`. A connection that was accepted there has the path too, and does not count: a service manager may have kept one of a
/// daemon that died.
fn is_bound(path: &Path) -> io::Result<bool> {
    // Columns: address, references, protocol, flags, type, state, inode, path.
    let sockets = fs::read("/proc/net/unix")?;
    let path_of = |line: &[u8]| {
        let (mut rest, mut columns) = (line, [&line[..0]; 7]);
        for column in &mut columns {
            rest = rest.trim_ascii_start();
            (*column, rest) = rest.split_at(rest.iter().position(|&b| b == b' ')?);
        }
        rest.get(1..).filter(|_| columns[4..6] != CONNECTED).map(<[u8]>::to_vec)
    };
    let wanted = [path.as_os_str().as_bytes().to_vec(), fs::canonicalize(path)?.as_os_str().as_bytes().to_vec()];
    Ok(sockets.split(|&b| b == b'\n').filter_map(path_of).any(|bound| wanted.contains(&bound)))
}

fn give_to_group(path: &Path, group: &str) -> Result<(), ListenError> {
    let gid = gid_of(group)?;
    let chown = || -> io::Result<()> {
        std::os::unix::fs::chown(path, None, Some(gid))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o660);
        fs::set_permissions(path, mode)
    };
    chown().map_err(|source| ListenError::Chown { path: path.to_owned(), group: group.to_owned(), source })
}

/// The number of `group`, by its name in the C library's group databases (nsswitch.conf(5)), else as a number.
fn gid_of(group: &str) -> Result<u32, ListenError> {
    let found = nix::unistd::Group::from_name(group);
    match (found, group.parse()) {
        (Ok(Some(found)), _) => Ok(found.gid.as_raw()),
        (_, Ok(gid)) => Ok(gid),
        (Ok(None), _) => Err(ListenError::NoGroup(group.to_owned())),
        (Err(source), _) => Err(ListenError::GroupDatabase { group: group.to_owned(), source: source.into() }),
    }
}

fn inherit(fd: i32) -> Result<UnixListener, ListenError> {
    crate::sys::descriptor::inherited_listener(fd).map_err(|source| ListenError::Inherited { fd, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_name_or_number() {
        let root = nix::unistd::Group::from_gid(0.into()).unwrap().unwrap();
        assert_eq!(gid_of(&root.name).unwrap(), 0);
        assert_eq!(gid_of("54321").unwrap(), 54321);
        for unknown in ["no-such-group", "", "-1"] {
            assert!(matches!(gid_of(unknown), Err(ListenError::NoGroup(group)) if group == unknown), "{unknown}");
        }
    }
}
