//! The control socket, as the outer process serves it: each client sends one request as a packet, gets one answer and is hung up on.
//! Nothing waits for a client. What a request leads to it does not know.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::AtFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, accept_with, recvmsg, sendmsg,
    sockopt,
};
use rustix::process::Uid;

use super::protocol::{ANSWER_MAX, REQUEST_MAX, STATUS, UPGRADE, UPGRADE_FORCE};

/// Clients at a time. One more takes the place of the one that has said nothing for the longest time.
const CLIENTS_MAX: usize = 8;
/// How long a client may say nothing: gatherfsctl connects when it has its request ready.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long no client is accepted after one could not be: the process is out of descriptors, and will be at once again.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// The user id that stands for one which a user namespace has no number for, where the kernel does not say another one.
const OVERFLOW_ID: u32 = 65534;

const NOT_ALLOWED: &str = "refused only root and the daemon's own user may control it";
const TOO_MANY: &str = "refused too many clients; try again";
const NO_REQUEST: &str = "refused no such request; this version knows upgrade, upgrade-force and status, so use its own gatherfsctl";

/// A socket that listens, and where its file is.
#[derive(Debug)]
pub struct ControlSocket {
    /// A listening socket of packets that does not block.
    pub listener: OwnedFd,
    /// The directory of its file.
    pub directory: OwnedFd,
    /// The name of its file.
    pub name: OsString,
}

/// What a client asks for.
#[derive(Debug)]
pub enum Request {
    /// To go on as this program, or as the default one.
    Upgrade {
        /// The program.
        program: Option<OwnedFd>,
        /// A worker that does not finish what is in flight is ended.
        is_forced: bool,
    },
    /// What the daemon does.
    Status,
}

/// A client that has connected.
#[derive(Debug)]
struct Client {
    number: u64,
    socket: OwnedFd,
    /// `None` once it has made its request.
    silent_until: Option<Instant>,
}

/// The socket and its clients.
#[derive(Debug)]
pub struct Control {
    socket: ControlSocket,
    peers: Peers,
    clients: Vec<Client>,
    next_number: u64,
    accept_at: Option<Instant>,
}

/// Who may use the socket, by the user id that the kernel gives for the other end (SO_PEERCRED).
#[derive(Debug)]
struct Peers {
    own: Uid,
    /// In a user namespace, in which root of the host has no number.
    overflow: Option<Uid>,
}

impl Peers {
    fn allows(&self, peer: Uid, socket: &ControlSocket) -> bool {
        match self.overflow {
            _ if peer == self.own => true,
            None => peer == Uid::ROOT,
            // Root, or anybody whose id is not mapped: who of them could connect is up to the mode of the file.
            Some(overflow) => {
                let stat = rustix::fs::statat(&socket.directory, &socket.name, AtFlags::SYMLINK_NOFOLLOW);
                peer == overflow && stat.is_ok_and(|stat| stat.st_mode & 0o077 == 0)
            }
        }
    }
}

/// The id of users without a number, to be read while /proc is in reach.
pub fn overflow_id() -> u32 {
    let said = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    said.and_then(|id| id.trim().parse().ok()).unwrap_or(OVERFLOW_ID)
}

impl Control {
    /// Serves `socket`. `overflow_id` is that of users without a number, where this process is in a user namespace of its own.
    pub fn new(socket: ControlSocket, overflow_id: Option<u32>) -> Control {
        let peers = Peers { own: rustix::process::geteuid(), overflow: overflow_id.map(Uid::from_raw) };
        Control { socket, peers, clients: Vec::new(), next_number: 0, accept_at: None }
    }

    /// What becomes readable when there is something to do.
    pub fn awaited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = self.accept_at.is_none().then(|| self.socket.listener.as_fd());
        let clients = self.clients.iter().filter(|client| client.silent_until.is_some());
        listener.into_iter().chain(clients.map(|client| client.socket.as_fd()))
    }

    /// After which time there is something to do, whatever comes.
    pub fn left(&self) -> Option<Duration> {
        let times = self.clients.iter().filter_map(|client| client.silent_until).chain(self.accept_at);
        times.min().map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Takes the clients that connect, and what all of them ask for: each by its number.
    pub fn requests(&mut self) -> Vec<(u64, Request)> {
        let now = Instant::now();
        self.clients.retain(|client| client.silent_until.is_none_or(|until| until > now));
        if self.accept_at.is_none_or(|at| at <= now) {
            self.accept_at = None;
            self.accept(now);
        }
        let mut requests = Vec::new();
        let mut at = 0;
        while at < self.clients.len() {
            let client = &mut self.clients[at];
            match client.silent_until.map(|_| receive(client.socket.as_fd())) {
                None | Some(Ok(None)) => at += 1,
                Some(Ok(Some(request))) => {
                    client.silent_until = None;
                    requests.push((client.number, request));
                    at += 1;
                }
                Some(Err(why)) => {
                    answer(client.socket.as_fd(), why);
                    self.clients.remove(at);
                }
            }
        }
        requests
    }

    /// Answers client `number` and hangs up on it.
    pub fn answer(&mut self, number: u64, text: &str) {
        if let Some(at) = self.clients.iter().position(|client| client.number == number) {
            let client = self.clients.remove(at);
            answer(client.socket.as_fd(), text);
        }
    }

    /// Accepts as many clients as there is room for. Their requests are looked at before more are accepted.
    fn accept(&mut self, now: Instant) {
        for _ in 0..CLIENTS_MAX {
            let socket = match accept_with(&self.socket.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => return,
                Err(e) => {
                    tracing::warn!("no client of the control socket is accepted: {e}");
                    self.accept_at = Some(now + ACCEPT_AGAIN);
                    return;
                }
            };
            let is_allowed = sockopt::socket_peercred(&socket).is_ok_and(|peer| self.peers.allows(peer.uid, &self.socket));
            if !is_allowed {
                refuse(socket.as_fd(), NOT_ALLOWED);
                continue;
            }
            if self.clients.len() == CLIENTS_MAX {
                // The first of them has been silent for the longest time.
                match self.clients.iter().position(|client| client.silent_until.is_some()) {
                    Some(at) => drop(self.clients.remove(at)),
                    None => {
                        refuse(socket.as_fd(), TOO_MANY);
                        continue;
                    }
                }
            }
            self.clients.push(Client { number: self.next_number, socket, silent_until: Some(now + SILENCE_MAX) });
            self.next_number = self.next_number.wrapping_add(1);
        }
    }
}

/// The request of a client, if it has come. The error is the answer to what is none.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<Request>, &'static str> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // One byte more than a request may have, by which a longer one is known.
    let mut packet = [0; REQUEST_MAX + 1];
    let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT) {
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(_) => return Err(NO_REQUEST),
        Ok(received) => received,
    };
    let program = control.drain().find_map(|received| match received {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    match &packet[..received.bytes] {
        words if words == UPGRADE.as_bytes() => Ok(Some(Request::Upgrade { program, is_forced: false })),
        words if words == UPGRADE_FORCE.as_bytes() => Ok(Some(Request::Upgrade { program, is_forced: true })),
        words if words == STATUS.as_bytes() => Ok(Some(Request::Status)),
        _ => Err(NO_REQUEST),
    }
}

/// Answers a client whose request is not looked at.
fn refuse(socket: BorrowedFd<'_>, text: &str) {
    // What is left unread when a socket is closed takes the answer away.
    let _ = receive(socket);
    answer(socket, text);
}

/// Sends an answer. A client that has gone, or that does not read, does not get it.
fn answer(socket: BorrowedFd<'_>, text: &str) {
    let text = &text[..text.floor_char_boundary(ANSWER_MAX)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if let Err(e) = sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut SendAncillaryBuffer::default(), flags) {
        tracing::debug!("a client of the control socket gets no answer: {}", io::Error::from(e));
    }
}
