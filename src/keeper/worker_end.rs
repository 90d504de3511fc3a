//! The worker's end of its connection to the keeper: what it begins with, and where its frontends come from.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg};

use super::control::{ALIVE, BUSY, LEAVING, READY, RINGS, RINGS_MAX, THREAD};
use crate::device::Frontends;
use crate::state::RequestName;
use crate::sys::failpoint::crash_point;

/// What a worker begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// No worker has served yet.
    First,
    /// An earlier worker has died, and no frontend was connected.
    Idle,
    /// An earlier worker has died in the middle of a session, which goes on.
    Recovery,
    /// As in a recovery, but the earlier worker was another keeper's: the records name no descriptor of this table.
    Restored,
    /// As in a recovery, but a fault has ended the earlier one: what was left unfinished is executed one request after the other.
    OneByOne,
    /// As in a recovery, but workers have died soon after they began, and which request did that is not known: what was left unfinished
    /// is given up.
    Careful,
    /// As in a recovery, but workers have died all the same: no records are to be read.
    Fresh,
}

/// What a worker is told.
#[derive(Debug, Clone)]
pub struct Inheritance {
    /// What it begins with.
    pub beginning: Beginning,
    /// The descriptors that the keeper has open.
    pub descriptors: Vec<RawFd>,
    /// The queues that the frontend has set up.
    pub queues: Vec<u16>,
    /// The io_uring rings of earlier workers.
    pub rings: Vec<RawFd>,
    /// The request that has ended two workers last, if one has.
    pub quarantined: Option<RequestName>,
}

/// Brings a socket for each frontend, on which the relayed connection is accepted.
#[derive(Debug)]
pub struct WorkerEnd {
    control: OwnedFd,
    inheritance: Inheritance,
}

impl WorkerEnd {
    /// Of the worker's half of a socketpair of packets.
    pub(super) fn new(control: OwnedFd, mut inheritance: Inheritance) -> io::Result<WorkerEnd> {
        // The descriptor of this process.
        let mut number = [0; size_of::<RawFd>()];
        recvmsg(&control, &mut [IoSliceMut::new(&mut number)], &mut RecvAncillaryBuffer::default(), RecvFlags::empty())?;
        inheritance.descriptors.extend([RawFd::from_ne_bytes(number), control.as_raw_fd()]);
        Ok(WorkerEnd { control, inheritance })
    }

    /// What the worker begins with. Of descriptors, those that the keeper and this have open; there are no others until
    /// [`WorkerEnd::say_ready`].
    pub fn inheritance(&self) -> &Inheritance {
        &self.inheritance
    }

    /// Tells the keeper that this worker has closed what an earlier one has left open.
    pub fn say_ready(&self) -> io::Result<()> {
        say(self.control.as_fd(), &[READY])?;
        crash_point!("ready");
        Ok(())
    }

    /// Tells the keeper that this worker is about to end in order.
    pub fn say_leaving(&self) -> io::Result<()> {
        say(self.control.as_fd(), &[LEAVING])
    }

    /// Tells the keeper of the io_uring rings of this worker.
    pub fn say_rings(&self, rings: &[RawFd]) -> io::Result<()> {
        let numbers = rings.iter().take(RINGS_MAX).flat_map(|fd| fd.to_ne_bytes());
        say(self.control.as_fd(), &[RINGS].into_iter().chain(numbers).collect::<Vec<u8>>())?;
        crash_point!("rings");
        Ok(())
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

/// By which the keeper learns that the worker lives, and of its end before the kernel has taken its memory down.
#[derive(Debug)]
pub struct Witness(OwnedFd);

impl Witness {
    /// Tells the keeper that the calling thread, which is not the process's first, ends when the process does.
    pub fn testify(&self) -> io::Result<()> {
        let id = rustix::thread::gettid().as_raw_nonzero().get().to_ne_bytes();
        say(self.0.as_fd(), &[&[THREAD], &id[..]].concat())
    }

    /// Tells the keeper that the worker lives.
    pub fn say_alive(&self) -> io::Result<()> {
        say(self.0.as_fd(), &[ALIVE])
    }

    /// Tells the keeper that requests in flight were not finished in time, and that the worker serves on.
    pub fn say_busy(&self) -> io::Result<()> {
        say(self.0.as_fd(), &[BUSY])
    }
}

impl Frontends for WorkerEnd {
    fn is_replaced(&self) -> bool {
        true
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    fn listener(&self) -> io::Result<UnixListener> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut packet = [0; 1];
        recvmsg(&self.control, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let listener = control.drain().find_map(|received| match received {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        listener.map(UnixListener::from).ok_or_else(|| io::Error::other("the keeper sent no connection; raise --rlimit-nofile"))
    }
}
