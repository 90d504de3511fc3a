//! The worker's end of its connection to the keeper: where its frontends come from.

use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::device::Frontends;

/// Brings a socket for each frontend, on which the relayed connection is accepted.
#[derive(Debug)]
pub struct WorkerEnd(OwnedFd);

impl WorkerEnd {
    /// Of the worker's half of a socketpair of packets.
    pub(super) fn new(control: OwnedFd) -> WorkerEnd {
        WorkerEnd(control)
    }
}

impl Frontends for WorkerEnd {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn listener(&self) -> io::Result<UnixListener> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut packet = [0; 1];
        recvmsg(&self.0, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let listener = control.drain().find_map(|received| match received {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        listener.map(UnixListener::from).ok_or_else(|| io::Error::other("the keeper sent no connection; raise --rlimit-nofile"))
    }
}
