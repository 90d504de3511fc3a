//! The pid file `SOCKET.pid` beside the socket. Programs that start the daemon in the background wait for it and signal the
//! process. It is locked while the daemon runs.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The path of the pid file of `socket`.
pub fn path_of(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".pid");
    path.into()
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().write(true).create(create).truncate(false).mode(0o600).custom_flags(flags).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Locks the file at `path`, if it exists, before the socket is touched: another daemon may run in a network or pid namespace
/// where neither its socket nor its process is visible.
///
/// # Errors
/// EWOULDBLOCK if another process has locked it; errors of open(2).
pub fn claim(path: &Path) -> io::Result<Option<File>> {
    match open(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Writes the process id to the file at `path`, which stays locked until the result is dropped. `claimed` is the result of
/// [`claim`].
///
/// # Errors
/// EWOULDBLOCK if another process has locked it; errors of open(2) and write(2).
pub fn write(path: &Path, mut claimed: Option<File>) -> io::Result<File> {
    loop {
        let mut file = claimed.take().map_or_else(|| open(path, true), Ok)?;
        // The previous holder of the lock may have removed the file in the meantime.
        let is_there = std::fs::symlink_metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
        if is_there {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            return Ok(file);
        }
    }
}
