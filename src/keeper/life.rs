//! One life of a worker: its start, its descriptors, and how it gets its frontends.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use super::worker_end::{Beginning, WorkerEnd};
use crate::sys::identity;
use crate::sys::process::{self, SharingChild};

/// What the worker says once its descriptors are in order.
pub(super) const READY: u8 = 1;
/// What comes with a frontend's socket: the session is new to the worker, and to the frontend.
pub(super) const NEW_SESSION: u8 = 0;
/// What comes with a frontend's socket: the session goes on.
pub(super) const OLD_SESSION: u8 = 1;

/// A worker, as the keeper knows it.
#[derive(Debug)]
pub struct Life {
    pub worker: SharingChild,
    /// Brings sockets to the worker.
    control: OwnedFd,
    pub since: Instant,
    /// The worker's descriptors are in order: from here on the keeper may open and close others.
    pub is_ready: bool,
}

/// Which process returned from [`start`].
#[derive(Debug)]
pub enum Side {
    /// The keeper.
    Keeper(Life),
    /// The worker.
    Worker(WorkerEnd),
}

/// Splits this process into keeper and worker, which share the table of descriptors: whatever is open belongs to the one that uses
/// it, and the other must not close its copy. The watched signals must be blocked (`sys/signal.rs`), and the process must have one
/// thread. The worker ends with the keeper. `owned` is what the keeper has open.
///
/// An error where the kernel has no process or descriptor left, and in a worker whose keeper has ended already.
pub fn start(beginning: Beginning, mut owned: Vec<RawFd>) -> io::Result<Side> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    owned.extend([ours.as_raw_fd(), theirs.as_raw_fd()]);
    // Effective rights are for the worker.
    identity::take_capabilities_up().map_err(|errno| io::Error::from_raw_os_error(errno.raw()))?;
    // The worker's threads use the keeper's /proc/self/fd as working directory.
    let was_visible = process::set_visible(true)?;
    let keeper = rustix::process::getpid();
    match process::split()? {
        Some(worker) => {
            leave_to_worker(theirs);
            identity::lay_down_capabilities().map_err(|errno| io::Error::from_raw_os_error(errno.raw()))?;
            // The worker cannot know what the kernel chose for this one.
            let number = worker.end().as_raw_fd().to_ne_bytes();
            let life = Life { worker, control: ours, since: Instant::now(), is_ready: false };
            sendmsg(&life.control, &[IoSlice::new(&number)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
            Ok(Side::Keeper(life))
        }
        None => {
            process::end_with(Some(keeper))?;
            process::set_visible(was_visible)?;
            leave_to_keeper(ours);
            WorkerEnd::new(theirs, beginning, owned).map(Side::Worker)
        }
    }
}

/// Forgets what belongs to the worker.
fn leave_to_worker<T>(theirs: T) {
    std::mem::forget(theirs);
}

/// Forgets what belongs to the keeper.
fn leave_to_keeper<T>(ours: T) {
    std::mem::forget(ours);
}

impl Life {
    /// Readable when the worker has something to say.
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Takes what the worker has said, if anything. True when it is ready.
    pub fn hear(&mut self) -> io::Result<bool> {
        let mut packet = [0; 1];
        let received =
            recvmsg(&self.control, &mut [IoSliceMut::new(&mut packet)], &mut RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT);
        match received {
            Ok(received) => self.is_ready |= received.bytes == 1 && packet[0] == READY,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(self.is_ready)
    }

    /// Gives the worker a socket on which a frontend's connection is accepted; `session` says which.
    pub fn hand_over(&self, acceptable: BorrowedFd<'_>, session: u8) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [acceptable];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.control, &[IoSlice::new(&[session])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
