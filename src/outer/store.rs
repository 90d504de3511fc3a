//! Descriptors that the service manager keeps for the process that follows this one (man sd_notify(3), FDSTORE=1): the keeper says which,
//! on a pair of sockets of their own, and the outer process passes them on, one by one, with a name that has their number. What they
//! are it does not know, and what a worker that a guest has taken over sends here is what that worker has anyway.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use super::notify::Notify;
use crate::sys::descriptor;

/// How the names of these descriptors begin. A socket that systemd passes on has the name of its unit, as "gatherfsd@NAME.socket".
pub const NAME_BEGIN: &str = "gatherfs-session-";
/// Descriptors in a packet: the kernel takes at most 253.
const AT_ONCE: usize = 64;
/// Descriptors that are kept at most: a session of 509 regions and 256 rings has fewer.
pub const KEPT_MAX: usize = 2048;

/// Packets that are taken in [`WINDOW`] at most: a worker that a guest has taken over can send them without a pause, and the manager has
/// other services. A usual session is two.
const PACKETS: u32 = 4;
const WINDOW: Duration = Duration::from_millis(50);
/// More than a whole session.
const LAST_PACKETS: usize = 64;

/// All that is kept is forgotten; how many come follows, in 4 bytes.
const ANEW: u8 = 1;
/// Here are some.
const MORE: u8 = 2;

/// The outer process's end.
#[derive(Debug)]
pub struct Store {
    socket: OwnedFd,
    /// The manager has those with a lower number, perhaps.
    kept: usize,
    /// What it takes at most.
    room: usize,
    /// The keeper was told that there is no room.
    has_warned: bool,
    /// What comes belongs to more than there is room for, or the manager is not to have it.
    is_too_much: bool,
    /// The keeper has closed its end.
    is_closed: bool,
    /// Packets of this window, and its end.
    window: (u32, Instant),
}

/// A pair of ends, the second one for the keeper. The manager takes `room` descriptors, and has those with numbers below `kept` of an
/// earlier process. EMFILE or ENFILE.
pub fn store(room: usize, kept: usize) -> io::Result<(Store, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, keeper) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((Store { socket, kept, room, has_warned: false, is_too_much: false, is_closed: false, window: (0, Instant::now()) }, keeper))
}

impl Store {
    /// The manager forgets what it has: whatever follows, it was taken over or cannot be.
    pub fn forget(&mut self, notify: &mut Notify) {
        forget(notify, 0..std::mem::take(&mut self.kept));
    }

    /// Readable when the keeper has something to be kept.
    pub fn awaited(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_closed && self.left().is_none()).then(|| self.socket.as_fd())
    }

    /// How long nothing is taken.
    pub fn left(&self) -> Option<Duration> {
        let (packets, end) = self.window;
        (packets >= PACKETS).then(|| end.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// Takes the last that the keeper has said, which has ended.
    pub fn hear_rest(&mut self, notify: &mut Notify) {
        for _ in 0..LAST_PACKETS {
            self.window.0 = 0;
            if !self.hear(notify) {
                break;
            }
        }
    }

    /// Takes what the keeper wants to be kept. True where there may be more. To be called when all that was taken before is sent.
    pub fn hear(&mut self, notify: &mut Notify) -> bool {
        if self.left().is_some() {
            return false;
        }
        if self.window.1 <= Instant::now() {
            self.window = (0, Instant::now() + WINDOW);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut packet = [0; 5];
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let Ok(len) = received.map(|received| received.bytes) else { return false };
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let fds: Vec<OwnedFd> = rights.flatten().collect();
        match (len, packet) {
            (5, [ANEW, count @ ..]) => {
                self.forget(notify);
                let count = u32::from_ne_bytes(count) as usize;
                self.is_too_much = count > self.room;
                if self.is_too_much && !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(
                        "the session has {count} descriptors, and the service manager keeps {}: a death of this process ends it; \
                         raise FileDescriptorStoreMax=",
                        self.room
                    );
                }
            }
            (1, [MORE, ..]) if !self.is_too_much && !fds.iter().all(answers_at_once) => {
                self.forget(notify);
                self.is_too_much = true;
                if !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(
                        "the session has a file on a file system, for which the service manager might have to wait: a death of this process \
                         ends it; give guest memory as a memfd, or on tmpfs or hugetlbfs"
                    );
                }
            }
            (1, [MORE, ..]) if !self.is_too_much => {
                for fd in fds {
                    if self.kept >= self.room.min(KEPT_MAX) {
                        break;
                    }
                    notify.keep(&format!("{NAME_BEGIN}{}", self.kept), fd);
                    self.kept += 1;
                }
            }
            _ => {}
        }
        self.window.0 += 1;
        self.is_closed = len == 0;
        !self.is_closed
    }
}

/// Whether the service manager may have `fd`: memory, a socket, or an eventfd. It asks for the attributes of what it keeps, and a file on
/// another file system may not answer it. This question waits for nobody (man statx(2), AT_STATX_DONT_SYNC).
fn answers_at_once(fd: &OwnedFd) -> bool {
    let is_nameless = || {
        let st = statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
        st.is_ok_and(|st| u32::from(st.stx_mode) & libc::S_IFMT == 0)
    };
    descriptor::is_memory(fd.as_fd()) || sockopt::socket_type(fd).is_ok() || is_nameless()
}

/// Has the manager forget what it keeps by `numbers`.
pub fn forget(notify: &mut Notify, numbers: Range<usize>) {
    numbers.for_each(|number| notify.forget(&format!("{NAME_BEGIN}{number}")));
}

/// Has the manager keep `fds`, numbered in this order, and forget what it has. An error of sendmsg(2) where the outer process does not
/// get them, such as WOULDBLOCK; what it has then is not complete.
pub fn keep(store: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
    let anew = [&[ANEW], &count.to_ne_bytes()[..]].concat();
    sendmsg(store, &[IoSlice::new(&anew)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
    for some in fds.chunks(AT_ONCE) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(some));
        sendmsg(store, &[IoSlice::new(&[MORE])], &mut control, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn the_manager_gets_memory_sockets_and_events_only() {
        let memory = memfd_create(c"memory", MemfdFlags::CLOEXEC).unwrap();
        for fd in [memory, eventfd(0, EventfdFlags::CLOEXEC).unwrap(), UnixStream::pair().unwrap().0.into()] {
            assert!(answers_at_once(&fd));
        }
        for path in ["/proc/self/exe", "/proc/self/status", "/dev/null", "/"] {
            assert!(!answers_at_once(&File::open(path).unwrap().into()), "{path}");
        }
    }
}
