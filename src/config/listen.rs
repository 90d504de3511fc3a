//! The socket that monitors connect to: made here, inherited, or found taken.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::pid_file;

/// The longest path of a socket, in bytes (man unix(7)); one that is relative to a deep directory may be shorter.
const SOCKET_PATH_MAX: usize = 107;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listening {
    /// On a socket that we make.
    Path {
        /// Its path.
        path: PathBuf,
        /// Its group, by name or number.
        group: Option<String>,
    },
    /// On a socket that was inherited.
    Inherited(i32),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("another process listens on {0}; end it or choose another --socket-path")]
    Taken(PathBuf),
    /// Something else lies there.
    #[error("{0} exists and is no socket; remove it or choose another --socket-path")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("cannot listen on {path}: {source}")]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path is longer than a socket's address.
    #[error(
        "cannot listen on {path}: the path is {} bytes long and the limit is {SOCKET_PATH_MAX}; choose a shorter --socket-path",
        .path.as_os_str().len()
    )]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// The directory of the socket is missing.
    #[error("cannot listen on {path}: {what}; create the directory or choose another --socket-path")]
    NoDirectory {
        /// The socket's path.
        path: PathBuf,
        /// Which directory, and what is there instead.
        what: String,
    },
    /// The process id could not be written.
    #[error("cannot write the process id to {path}, which another daemon may hold: {source}; remove it or choose another --socket-path")]
    PidFile {
        /// The file beside the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No such group.
    #[error("--socket-group {0}: there is no such group; give its name or number")]
    NoGroup(String),
    /// The group databases could not be read.
    #[error("--socket-group {group}: the group database cannot be read: {source}; give the group's number")]
    GroupDatabase {
        /// The group.
        group: String,
        /// What the C library said.
        source: io::Error,
    },
    /// The group could not be set.
    #[error("cannot give {path} to group {group}: {source}")]
    Chown {
        /// The socket's path.
        path: PathBuf,
        /// The group.
        group: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not a listening socket.
    #[error("--fd {fd} is no listening unix socket: {source}; where systemd made it, its unit needs ListenStream=PATH")]
    Inherited {
        /// The descriptor.
        fd: i32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The socket's file and the one with the process id beside it; removed by whoever made them, when that ends.
/// They are found by their directory, since a sandbox may have taken the path away by then.
#[derive(Debug)]
pub struct SocketFile {
    place: Option<(OwnedFd, OsString)>,
    /// Locked while the daemon lives.
    _pid_file: Option<File>,
}

impl SocketFile {
    /// Removes the files, if we made them.
    pub fn remove(&mut self) {
        if let Some((directory, name)) = self.place.take() {
            let pid_file = pid_file::path_of(Path::new(&name));
            let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
            let _ = rustix::fs::unlinkat(&directory, pid_file, AtFlags::empty());
        }
    }

    /// Leaves the files alone and forgets its directory: another process of ours removes it.
    pub fn leave(&mut self) {
        self.place = None;
    }

    /// The directory that it lies in, if we made it.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.place.as_ref().map(|(directory, _)| directory.as_fd())
    }

    fn at(path: &Path, claimed: Option<File>) -> Result<SocketFile, ListenError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(SocketFile { place: None, _pid_file: None }) };
        let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| ListenError::Bind { path: path.to_owned(), source: e.into() })?;
        let pid_path = pid_file::path_of(path);
        let pid_file = pid_file::write(&pid_path, claimed).map_err(|source| ListenError::PidFile { path: pid_path, source })?;
        Ok(SocketFile { place: Some((directory, name.to_owned())), _pid_file: Some(pid_file) })
    }
}

/// Listens. A socket file that nobody listens on any more is replaced.
pub fn listen(listening: &Listening) -> Result<(UnixListener, SocketFile), ListenError> {
    match listening {
        Listening::Inherited(fd) => Ok((inherit(*fd)?, SocketFile { place: None, _pid_file: None })),
        Listening::Path { path, group } => {
            let typed = path;
            let path = std::path::absolute(typed).map_err(|source| ListenError::Bind { path: typed.clone(), source })?;
            look_for_directory(&path)?;
            let bindable = if path.as_os_str().len() <= SOCKET_PATH_MAX { &path } else { typed };
            if bindable.as_os_str().len() > SOCKET_PATH_MAX {
                return Err(ListenError::TooLong { path: typed.clone() });
            }
            let pid_path = pid_file::path_of(&path);
            let claimed = pid_file::claim(&pid_path).map_err(|source| match source.kind() {
                io::ErrorKind::WouldBlock if fs::symlink_metadata(&path).is_ok() => ListenError::Taken(path.clone()),
                _ => ListenError::PidFile { path: pid_path, source },
            })?;
            // Whoever connects has the share: nobody but us, unless a group is named.
            let umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
            let bound = bind(bindable);
            rustix::process::umask(umask);
            let listener = bound?;
            let given = group.as_ref().map_or(Ok(()), |group| give_to_group(&path, group));
            // Last, since whoever waits for the process id connects next.
            let file = given.and_then(|()| SocketFile::at(&path, claimed));
            Ok((listener, file.inspect_err(|_| _ = fs::remove_file(&path))?))
        }
    }
}

/// Fails where the directory of the socket at `path` is not there, and names the first one that is missing. What else may be
/// wrong with it is the kernel's to say.
fn look_for_directory(path: &Path) -> Result<(), ListenError> {
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

/// Whether a living process has a socket bound to `path`. Connecting would tell too, but a daemon that
/// serves one monitor would take the attempt for it.
fn is_bound(path: &Path) -> io::Result<bool> {
    // Columns: address, references, protocol, flags, type, state, inode, path.
    let sockets = fs::read("/proc/net/unix")?;
    let path_of = |line: &[u8]| {
        let mut rest = line;
        for _ in 0..7 {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|&b| b == b' ')?;
            rest = &rest[end..];
        }
        Some(rest.get(1..)?.to_vec())
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
