//! One life of a worker: its start, its descriptors, and how it gets its frontends.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use rustix::process::Signal;

use super::control::{ALIVE, BUSY, LEAVING, READY, RINGS, RINGS_MAX, THREAD};
use super::worker_end::{Beginning, Inheritance, WorkerEnd};
use crate::sys::process::{self, Child, End};
use crate::sys::{fault, identity, thread};

/// Between two looks whether the other threads have ended, when one has: they end within milliseconds, if the host does not hold one up.
/// Later an eighth of the time since, up to the second.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(100));
/// The host holds a worker up: worth a line in the log, after this time, and then one each of the second.
const HELD_UP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Bytes of what the worker says at most.
const SAID_MAX: usize = 1 + RINGS_MAX * size_of::<u32>();

/// A worker, as the keeper knows it.
#[derive(Debug)]
pub struct Life {
    pub worker: Child,
    /// Brings sockets to the worker.
    control: OwnedFd,
    pub since: Instant,
    /// It is not the first one.
    pub is_later: bool,
    /// The worker's descriptors are in order: from here on the keeper may open and close others.
    pub is_ready: bool,
    /// It is about to end in order.
    is_leaving: bool,
    /// Descriptors of its io_uring rings.
    pub rings: Vec<RawFd>,
    /// It has shown that it lives, and nobody has been told.
    pub is_alive: bool,
    /// It was to drain, and serves on. Reset by who reads it.
    pub is_busy: bool,
    /// Readable when one thread of the worker's, not its first, has ended. `None` before Linux 6.9, and when it is known.
    thread: Option<OwnedFd>,
    /// Since when threads end, where the process is not about to end in order.
    died: Option<Instant>,
    /// When it is worth a line in the log that it does not serve.
    tell_at: Instant,
    is_told: bool,
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
/// thread. The worker ends with the keeper. `inheritance` is what it begins with, without what is made here; `is_visible`: processes of
/// the same user may look into the worker.
///
/// An error where the kernel has no process or descriptor left. A worker whose keeper has ended already ends as well.
pub fn start(mut inheritance: Inheritance, is_visible: bool) -> io::Result<Side> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    inheritance.descriptors.extend([ours.as_raw_fd(), theirs.as_raw_fd()]);
    // Effective rights are for the worker.
    identity::take_capabilities_up().map_err(|errno| io::Error::from_raw_os_error(errno.raw()))?;
    // The worker's threads use the keeper's /proc/self/fd as working directory.
    process::set_visible(true)?;
    let keeper = rustix::process::getpid();
    match process::split()? {
        Some(worker) => {
            leave_to_worker(theirs);
            // The worker cannot know what the kernel chose for this one.
            let number = worker.end().as_raw_fd().to_ne_bytes();
            let is_later = inheritance.beginning != Beginning::First;
            let since = Instant::now();
            let (rings, thread, died, tell_at) = (Vec::new(), None, None, since + HELD_UP.0);
            let [is_ready, is_leaving, is_alive, is_busy, is_told] = [false; 5];
            let control = ours;
            let life =
                Life { worker, control, since, is_later, is_ready, is_leaving, rings, is_alive, is_busy, thread, died, tell_at, is_told };
            let begun = || -> io::Result<()> {
                identity::lay_down_capabilities().map_err(|errno| io::Error::from_raw_os_error(errno.raw()))?;
                sendmsg(&life.control, &[IoSlice::new(&number)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
                Ok(())
            };
            if let Err(e) = begun() {
                // It waits for this message, and there is to be one worker.
                let _ = life.worker.send(Signal::KILL);
                life.worker.wait()?;
                return Err(e);
            }
            Ok(Side::Keeper(life))
        }
        None => {
            let begun = || -> io::Result<WorkerEnd> {
                process::end_with(Some(keeper))?;
                process::set_visible(is_visible)?;
                thread::record_this();
                fault::note_faults()?;
                leave_to_keeper(ours);
                WorkerEnd::new(theirs, inheritance)
            };
            // What the keeper does with an error is not for this process.
            Ok(begun().map_or_else(|_| process::end_now(1), Side::Worker))
        }
    }
}

/// Whether `fd` becomes readable within `time`; `None` is now.
pub fn is_ready(fd: BorrowedFd<'_>, time: Option<Duration>) -> io::Result<bool> {
    let mut watched = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let time = time.and_then(|time| Timespec::try_from(time).ok()).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    match poll(&mut watched, Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The end of a process in words.
pub fn described(end: End) -> String {
    match end {
        End::Exit(status) => format!("itself with status {status}"),
        End::Signal(signal) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("an unknown signal");
            format!("signal {signal} ({name})")
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
    /// Readable when the worker has something to say, where something is expected of it.
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_leaving).then(|| self.control.as_fd())
    }

    /// Whether the worker has said that it is about to end in order.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// Takes what the worker has said, if anything.
    pub fn hear(&mut self) -> io::Result<()> {
        loop {
            let mut said = [0; SAID_MAX];
            let received =
                recvmsg(&self.control, &mut [IoSliceMut::new(&mut said)], &mut RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT);
            let len = match received {
                Ok(received) if received.bytes > 0 => received.bytes,
                // It has closed its end, with a packet unread or without.
                Ok(_) | Err(rustix::io::Errno::CONNRESET) => {
                    self.is_leaving = true;
                    return Ok(());
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let numbers = said[1..len].as_chunks().0;
            match said[0] {
                READY => self.is_ready = true,
                LEAVING => self.is_leaving = true,
                ALIVE => self.is_alive = true,
                BUSY => self.is_busy = true,
                THREAD => self.thread = numbers.first().and_then(|id| process::end_of_thread(u32::from_ne_bytes(*id)).ok()),
                RINGS => self.rings = numbers.iter().map(|fd| RawFd::from_ne_bytes(*fd)).collect(),
                _ => {}
            }
        }
    }

    /// What becomes readable when a thread of the worker's has ended, where that is to be watched.
    pub fn thread_end(&self) -> Option<BorrowedFd<'_>> {
        self.thread.as_ref().filter(|_| !self.is_leaving).map(AsFd::as_fd)
    }

    /// A thread has ended: if the worker has not said that it is about to end, the others end, too.
    pub fn note_thread_end(&mut self) -> io::Result<()> {
        self.hear()?;
        self.thread = None;
        if !self.is_leaving {
            self.died = Some(Instant::now());
            (self.tell_at, self.is_told) = (Instant::now() + HELD_UP.0, false);
        }
        Ok(())
    }

    /// Whether it serves: it is ready, and none of its threads has ended.
    pub fn serves(&self) -> bool {
        self.is_ready && self.died.is_none()
    }

    /// Whether every thread has ended after one has: none of their system calls is in progress.
    pub fn have_threads_ended(&self) -> bool {
        self.died.is_some() && !self.is_leaving && thread::have_all_ended()
    }

    /// Whether it has died a while ago, and the host has not finished what one of its threads does.
    pub fn is_held_up(&self) -> bool {
        self.died.is_some() && self.is_told
    }

    /// Where it does not serve for longer than the host usually takes, what the status says of that. Logs it now and then.
    pub fn tell_delay(&mut self) -> Option<&'static str> {
        let (log, status) = match self.died {
            Some(_) => (
                "the worker has died, and the host has not finished a system call of one of its threads",
                "the worker has died, and the host has not finished what a thread of it does",
            ),
            None => (
                "a worker has begun and is not ready: the host has not finished what it needs, or what an earlier one has left",
                "a worker has begun and is not ready",
            ),
        };
        if self.tell_at <= Instant::now() {
            (self.tell_at, self.is_told) = (Instant::now() + HELD_UP.1, true);
            let time = self.died.unwrap_or(self.since).elapsed().as_secs();
            tracing::warn!("{log}, for {time} s (a server or a disk that does not respond?); the guest waits for it");
        }
        self.is_told.then_some(status)
    }

    /// When to look at it again, where it does not serve.
    pub fn look_again(&self) -> Option<Duration> {
        match self.died {
            Some(since) => Some((since.elapsed() / 8).clamp(LOOK_AGAIN.0, LOOK_AGAIN.1)),
            None => (!self.is_ready).then_some(HELD_UP.0),
        }
    }

    /// Gives the worker a socket on which a frontend's connection is accepted.
    pub fn hand_over(&self, acceptable: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [acceptable];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.control, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
