//! The file beside the socket that says which process listens there: `SOCKET.pid`. Programs that start the
//! daemon in the background wait for it and end the daemon by it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Where the file lies for a socket.
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

/// Locks the file at `path`, if there is one, before anything of the socket's is touched: another daemon may live
/// where neither its process nor its socket can be seen from here. Fails with EWOULDBLOCK where one does.
pub fn claim(path: &Path) -> io::Result<Option<File>> {
    match open(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Writes our process id to the file at `path`, which stays locked as long as the result lives; `claimed` is what
/// [`claim`] brought. Fails with EWOULDBLOCK where a living process has locked it.
pub fn write(path: &Path, mut claimed: Option<File>) -> io::Result<File> {
    loop {
        let mut file = claimed.take().map_or_else(|| open(path, true), Ok)?;
        // Whoever held the lock before may have removed the file meanwhile.
        let is_there = std::fs::symlink_metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
        if is_there {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            return Ok(file);
        }
    }
}
