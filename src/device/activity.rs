//! What tells the watchdog that a leader is awake. Knows nothing of queues.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;

/// Whether there is anything to watch in a session.
#[derive(Debug, Default)]
pub(super) struct Activity {
    is_active: AtomicBool,
    is_ending: AtomicBool,
    watchdog: OnceLock<Thread>,
}

impl Activity {
    /// A leader woke up: the watchdog must check it.
    #[inline]
    pub fn note(&self) {
        if !self.is_active.load(Ordering::Relaxed) && !self.is_active.swap(true, Ordering::AcqRel) {
            self.unpark();
        }
    }

    /// No leader is awake; a note after this wakes the watchdog.
    pub fn clear(&self) {
        self.is_active.store(false, Ordering::Release);
    }

    /// Whether a leader woke up since [`Activity::clear`].
    pub fn is_noted(&self) -> bool {
        self.is_active.load(Ordering::Acquire)
    }

    /// The calling thread is the watchdog.
    pub fn register(&self) {
        let _ = self.watchdog.set(std::thread::current());
    }

    /// Ends the watchdog.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.unpark();
    }

    /// Whether the watchdog is to end.
    pub fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    fn unpark(&self) {
        if let Some(thread) = self.watchdog.get() {
            thread.unpark();
        }
    }
}
