//! The worker's end of its connection to the keeper: what it begins with, and where its frontends come from.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg};

use super::life::{OLD_SESSION, READY};
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
        sendmsg(&self.control, &[IoSlice::new(&[READY])], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
        Ok(())
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
