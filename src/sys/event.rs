//! eventfd(2) and epoll(7): a queue's thread waits for a kick.
//!
//! The kick is watched edge-triggered and never read: every write to an eventfd is a new edge, so a wake-up costs one system
//! call. The counter overflows after 2^64 kicks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// Waits for a kick, a completion, or a wake-up by another thread.
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
    /// A watch without a kick. EMFILE or ENFILE where no descriptor is available.
    pub fn new() -> io::Result<KickWatch> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), edge)?;
        Ok(KickWatch { epoll, wake })
    }

    /// Watches `kick`. A kick that was sent before counts. EEXIST where it is watched already, ENOSPC beyond the user's limit of
    /// watches (fs.epoll.max_user_watches).
    pub fn watch(&self, kick: impl AsFd) -> io::Result<()> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, kick, epoll::EventData::new_u64(KICK), edge)?)
    }

    /// Watches the completions of an I/O engine: each makes `event` readable. Errors as for [`KickWatch::watch`].
    pub fn watch_completions(&self, event: impl AsFd) -> io::Result<()> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, event, epoll::EventData::new_u64(COMPLETION), edge)?)
    }

    /// Stops watching `kick`.
    pub fn unwatch(&self, kick: impl AsFd) {
        let _ = epoll::delete(&self.epoll, kick);
    }

    /// Ends the current wait, or the next one where no thread waits.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Waits for a kick, a completion or a wake-up.
    pub fn wait(&self) -> Woken {
        self.wait_until(None)
    }

    /// The same for `time` at most, which is less than a second.
    pub fn wait_for(&self, time: Duration) -> Woken {
        self.wait_until(Some(&Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() }))
    }

    fn wait_until(&self, timeout: Option<&Timespec>) -> Woken {
        let mut storage = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 3];
        let count = epoll::wait(&self.epoll, &mut storage[..], timeout).unwrap_or(0);
        Woken { kicked: storage[..count].iter().any(|e| e.data.u64() == KICK) }
    }
}

/// Signals an eventfd: a call to the frontend. A full counter is readable already, so its EAGAIN is ignored.
pub fn signal(event: BorrowedFd<'_>) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}
