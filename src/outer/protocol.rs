//! What goes over the control socket, and the client's side of it. A request is one packet: `upgrade` or
//! `upgrade-force`, with the descriptor of a program or without, or `status`. The answer is one packet: `ok`, or `refused`, a space, and text.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recvmsg, sendmsg, socket_with,
};

/// To go on as another program.
pub const UPGRADE: &str = "upgrade";
/// The same, and a worker that does not finish what is in flight is ended.
pub const UPGRADE_FORCE: &str = "upgrade-force";
/// What the daemon does.
pub const STATUS: &str = "status";
/// Bytes of a request at most: the longest word of this version and of later ones.
pub const REQUEST_MAX: usize = 64;
/// Bytes of an answer at most: what the keeper says, and some lines.
pub const ANSWER_MAX: usize = 4096;
/// What the file of the control socket is called: the path of the socket for VMMs with this behind it.
const SUFFIX: &str = ".control";

/// The default path of the control socket of the daemon that listens for VMMs at `socket`.
pub fn path_beside(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(SUFFIX);
    path.into()
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Ok(String),
    /// It was not: why, and what to do.
    Refused(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("cannot connect to {path}: {source}; give the --socket-path of a gatherfsd that runs, or its --control-socket")]
    Connect {
        /// The path of the control socket.
        path: PathBuf,
        /// The error of connect(2).
        source: io::Error,
    },
    /// The socket is for VMMs, and there is none for control beside it.
    #[error("{0} is the socket for a VMM, and its gatherfsd has no control socket beside it; give the path of its --control-socket")]
    NoControl(PathBuf),
    /// It ended in between.
    #[error("gatherfsd has given no answer{}; see its log", .0.as_ref().map_or_else(String::new, |e| format!(": {e}")))]
    NoAnswer(Option<io::Error>),
}

/// Asks the daemon whose socket for VMMs, or whose control socket, is at `path`, and waits for the answer.
pub fn ask(path: &Path, request: &str, program: Option<BorrowedFd<'_>>) -> Result<Answer, AskError> {
    let socket = connect_to(path)?;
    let failed = |e: rustix::io::Errno| AskError::NoAnswer(Some(e.into()));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = program.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    match sendmsg(&socket, &[IoSlice::new(request.as_bytes())], &mut control, SendFlags::NOSIGNAL) {
        // A refusal may have come before the request.
        Ok(_) | Err(rustix::io::Errno::PIPE) => {}
        Err(e) => return Err(failed(e)),
    }
    let mut packet = vec![0; ANSWER_MAX];
    let received =
        recvmsg(&socket, &mut [IoSliceMut::new(&mut packet)], &mut RecvAncillaryBuffer::default(), RecvFlags::empty()).map_err(failed)?;
    let text = String::from_utf8_lossy(&packet[..received.bytes]);
    match text.split_once(' ') {
        Some(("ok", text)) => Ok(Answer::Ok(text.to_owned())),
        Some(("refused", text)) => Ok(Answer::Refused(text.to_owned())),
        _ => Err(AskError::NoAnswer(None)),
    }
}

/// A connection to the control socket beside `path`, or at `path`. A socket of another type, as the one for VMMs, does not notice.
fn connect_to(path: &Path) -> Result<OwnedFd, AskError> {
    let try_path = |path: &Path| -> rustix::io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    let beside = path_beside(path);
    match try_path(&beside) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NAMETOOLONG) => {}
        connected => return connected.map_err(|e| AskError::Connect { path: beside, source: e.into() }),
    }
    match try_path(path) {
        Err(rustix::io::Errno::PROTOTYPE) => Err(AskError::NoControl(path.to_owned())),
        connected => connected.map_err(|e| AskError::Connect { path: path.to_owned(), source: e.into() }),
    }
}
