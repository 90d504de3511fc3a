//! The keeper's process: starts the worker, hands it the frontends that connect, passes signals on, and ends when the worker has
//! ended. One thread, one wait for everything.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair};
use rustix::process::Signal;

use super::connection;
use super::relay::Relay;
use super::worker_end::WorkerEnd;
use crate::sys::identity;
use crate::sys::process::{self, End, SharingChild};
use crate::sys::signal::Signals;

/// Which process returned from [`start`].
#[derive(Debug)]
pub enum Role {
    /// The keeper.
    Keeper(Keeper),
    /// The worker, with the place from which its frontends come.
    Worker(WorkerEnd),
}

/// The keeper, whose worker runs.
#[derive(Debug)]
pub struct Keeper {
    worker: SharingChild,
    /// Brings sockets to the worker.
    control: OwnedFd,
    signals: Signals,
}

/// Splits this process into keeper and worker, which share the table of descriptors: whatever is open belongs to the one that uses
/// it, and the other must not close its copy. The watched signals must be blocked (`sys/signal.rs`), and the process must have one
/// thread. The worker ends with the keeper.
///
/// An error where the kernel has no process or descriptor left, and in a worker whose keeper has ended already.
pub fn start() -> io::Result<Role> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let signals = Signals::new()?;
    // The worker's threads use the keeper's /proc/self/fd as working directory.
    let was_visible = process::set_visible(true)?;
    let keeper = rustix::process::getpid();
    match process::split()? {
        Some(worker) => {
            leave_to_worker(theirs);
            // Effective rights are for the worker; the keeper takes them up to remove its files.
            identity::lay_down_capabilities().map_err(|errno| io::Error::from_raw_os_error(errno.raw()))?;
            Ok(Role::Keeper(Keeper { worker, control: ours, signals }))
        }
        None => {
            process::end_with(Some(keeper))?;
            process::set_visible(was_visible)?;
            leave_to_keeper((ours, signals));
            Ok(Role::Worker(WorkerEnd::new(theirs)))
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

/// The frontend's connection.
#[derive(Debug)]
enum Link {
    /// None yet, or the next one is awaited.
    Awaited,
    /// One.
    Connected(Box<Relay>),
    /// There was one, and no other is wanted.
    Over,
}

impl Keeper {
    /// Accepts frontends on `listener`, one after the other with `keep_listening`, else only one, and returns how the worker ended.
    ///
    /// An error where the keeper cannot wait or accept; the worker then has to end with this process.
    pub fn run(&self, listener: &UnixListener, keep_listening: bool) -> io::Result<End> {
        let mut link = Link::Awaited;
        loop {
            if self.wait(listener, &link)? {
                let end = self.worker.wait()?;
                report(end, &link);
                return Ok(end);
            }
            while let Some(arrived) = self.signals.next()? {
                // The kernel sent ^C to the worker too.
                if !arrived.by_kernel
                    && let Some(signal) = Signal::from_named_raw(arrived.signal)
                {
                    // It may just have ended.
                    let _ = self.worker.send(signal);
                }
            }
            link = match link {
                Link::Awaited if is_ready(listener.as_fd())? => self.connect(listener, keep_listening)?,
                Link::Connected(mut relay) => match relay.pass() {
                    Ok(true) => Link::Connected(relay),
                    ended => {
                        if let Err(e) = ended {
                            tracing::error!("the connection to the VMM failed: {e}");
                        }
                        if keep_listening { Link::Awaited } else { Link::Over }
                    }
                },
                link => link,
            };
        }
    }

    /// Sleeps until there is something to do. True when the worker has ended.
    fn wait(&self, listener: &UnixListener, link: &Link) -> io::Result<bool> {
        let mut watched = vec![PollFd::from_borrowed_fd(self.worker.end(), PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        match link {
            Link::Awaited => watched.push(PollFd::new(listener, PollFlags::IN)),
            // A socket that nothing is expected of would report its hang-up again and again.
            Link::Connected(relay) => watched.extend(
                relay.awaited().into_iter().filter(|(_, flags)| !flags.is_empty()).map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)),
            ),
            Link::Over => {}
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!watched[0].revents().is_empty()),
            Err(e) => Err(e.into()),
        }
    }

    /// Accepts the frontend that waits, and gives the worker its end of a connection to it.
    fn connect(&self, listener: &UnixListener, keep_listening: bool) -> io::Result<Link> {
        let connected = || -> io::Result<Relay> {
            let (frontend, _) = listener.accept()?;
            let (worker, acceptable) = connection::acceptable()?;
            self.hand_over(acceptable.as_fd())?;
            Ok(Relay::new(frontend.into(), worker))
        };
        match connected() {
            Ok(relay) => Ok(Link::Connected(Box::new(relay))),
            Err(e) if keep_listening => {
                tracing::error!("cannot take a connection: {e}");
                Ok(Link::Awaited)
            }
            Err(e) => Err(io::Error::new(e.kind(), format!("cannot take a connection: {e}"))),
        }
    }

    fn hand_over(&self, acceptable: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [acceptable];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.control, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Whether a connection waits.
fn is_ready(listener: BorrowedFd<'_>) -> io::Result<bool> {
    let mut watched = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut watched, Some(&now)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Says what a worker's death means; one that exits has said itself why.
fn report(end: End, link: &Link) {
    let End::Signal(signal) = end else { return };
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("an unknown signal");
    let rings = match link {
        Link::Connected(relay) => relay.session().started_rings(),
        _ => 0,
    };
    if rings > 0 {
        tracing::error!(
            "the worker was ended by signal {signal} ({name}) with {rings} queues started; gatherfsd ends too, and what the guest \
             asks of this share waits until its VM is reset"
        );
    } else {
        tracing::error!("the worker was ended by signal {signal} ({name}) while no queue was started; gatherfsd ends too");
    }
}
