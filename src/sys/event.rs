//! eventfd(2) and epoll(7): how a queue's thread sleeps until a kick.
//!
//! The kick is watched edge-triggered and never read: every write to an eventfd is a new edge, so a
//! wake-up costs one system call. Its counter would overflow after 2^64 kicks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// Sleeps until a kick or until another thread wakes it.
#[derive(Debug)]
pub struct KickWatch {
    epoll: OwnedFd,
    wake: OwnedFd,
}

const KICK: u64 = 0;
const WAKE: u64 = 1;
const COMPLETION: u64 = 2;

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// The frontend kicked.
    pub kicked: bool,
}

impl KickWatch {
    /// A watch without a kick. An error where the process is out of descriptors.
    pub fn new() -> io::Result<KickWatch> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), edge)?;
        Ok(KickWatch { epoll, wake })
    }

    /// Watches `kick`; a kick that was sent already counts.
    pub fn watch(&self, kick: impl AsFd) -> io::Result<()> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, kick, epoll::EventData::new_u64(KICK), edge)?)
    }

    /// Watches the completions of an I/O engine: `event` becomes readable with each.
    pub fn watch_completions(&self, event: impl AsFd) -> io::Result<()> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, event, epoll::EventData::new_u64(COMPLETION), edge)?)
    }

    /// Stops watching `kick`.
    pub fn unwatch(&self, kick: impl AsFd) {
        let _ = epoll::delete(&self.epoll, kick);
    }

    /// Ends the present or the next wait.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Sleeps until a kick, a completion or a wake.
    pub fn wait(&self) -> Woken {
        let mut storage = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 3];
        let count = epoll::wait(&self.epoll, &mut storage[..], None::<&Timespec>).unwrap_or(0);
        Woken { kicked: storage[..count].iter().any(|e| e.data.u64() == KICK) }
    }
}

/// Signals an eventfd: a call to the frontend. A full counter is a call already.
pub fn signal(event: BorrowedFd<'_>) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}
