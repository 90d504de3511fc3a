//! The worker's end of its connection to the keeper: what it begins with, and where its frontends come from.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg};

use super::control::{LEAVING, OLD_SESSION, READY, THREAD};
use crate::device::{Frontend, Frontends};

/// What a worker begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// No worker has served yet.
    First,
    /// An earlier worker has died, and no frontend was connected.
    Idle,
    /// An earlier worker has died in the middle of a session, which goes on.
    Recovery,
    /// As in a recovery, but workers have died while they looked at the records, of which nothing is to be read.
    Fresh,
}

/// Brings a socket for each frontend, on which the relayed connection is accepted.
#[derive(Debug)]
pub struct WorkerEnd {
    control: OwnedFd,
    beginning: Beginning,
    of_keeper: Vec<RawFd>,
}

impl WorkerEnd {
    /// Of the worker's half of a socketpair of packets. `of_keeper` is what the keeper had open when the worker was started.
    pub(super) fn new(control: OwnedFd, beginning: Beginning, mut of_keeper: Vec<RawFd>) -> io::Result<WorkerEnd> {
        // The descriptor of this process.
        let mut number = [0; size_of::<RawFd>()];
        recvmsg(&control, &mut [IoSliceMut::new(&mut number)], &mut RecvAncillaryBuffer::default(), RecvFlags::empty())?;
        of_keeper.push(RawFd::from_ne_bytes(number));
        of_keeper.push(control.as_raw_fd());
        Ok(WorkerEnd { control, beginning, of_keeper })
    }

    /// What the worker begins with.
    pub fn beginning(&self) -> Beginning {
        self.beginning
    }

    /// The descriptors that the keeper and this have open; no others until [`WorkerEnd::say_ready`].
    pub fn descriptors(&self) -> &[RawFd] {
        &self.of_keeper
    }

    /// Tells the keeper that this worker has closed what an earlier one has left open.
    pub fn say_ready(&self) -> io::Result<()> {
        say(self.control.as_fd(), &[READY])
    }

    /// Tells the keeper that this worker is about to end in order.
    pub fn say_leaving(&self) -> io::Result<()> {
        say(self.control.as_fd(), &[LEAVING])
    }

    /// What a thread that lives as long as the process has to tell the keeper.
    pub fn witness(&self) -> io::Result<Witness> {
        Ok(Witness(self.control.try_clone()?))
    }
}

fn say(control: BorrowedFd<'_>, what: &[u8]) -> io::Result<()> {
    sendmsg(control, &[IoSlice::new(what)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
    Ok(())
}

/// By which the keeper learns of the worker's end before the kernel has taken its memory down.
#[derive(Debug)]
pub struct Witness(OwnedFd);

impl Witness {
    /// Tells the keeper that the calling thread, which is not the process's first, ends when the process does.
    pub fn testify(self) -> io::Result<()> {
        let id = rustix::thread::gettid().as_raw_nonzero().get().to_ne_bytes();
        say(self.0.as_fd(), &[&[THREAD], &id[..]].concat())
    }
}

impl Frontends for WorkerEnd {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    fn next(&self) -> io::Result<Frontend> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut packet = [0; 1];
        recvmsg(&self.control, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let listener = control.drain().find_map(|received| match received {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        let listener =
            listener.map(UnixListener::from).ok_or_else(|| io::Error::other("the keeper sent no connection; raise --rlimit-nofile"))?;
        Ok(Frontend { listener, goes_on: packet[0] == OLD_SESSION })
    }
}
