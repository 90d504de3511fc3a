//! Relieves a leader that sits on a slow request, so that those behind it are served.
//!
//! A leader serves a lone request itself, with kicks off: that is what makes a lone request fast. If it
//! then waits for a disk, nobody watches the ring. One thread a session looks every other millisecond,
//! while there is activity, for leaders that still sit on the request they sat on before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use super::queue::{Queue, publish_and_call};
use super::worker::hand_over;

/// How often leaders are looked at. A request waits at most twice this behind a slow one.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Looks without any leader awake after which the thread sleeps.
const QUIET_LOOKS_MAX: u32 = 25;

/// The watch over a session's leaders.
#[derive(Debug, Default)]
pub(super) struct Relief {
    active: AtomicBool,
    ending: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Relief {
    /// A leader woke up: it is to be looked at.
    #[inline]
    pub fn note_activity(&self) {
        if !self.active.load(Ordering::Relaxed) && !self.active.swap(true, Ordering::AcqRel) {
            self.unpark();
        }
    }

    /// Ends the watch.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Watches `queues` until `end`.
    pub fn run(self: &Arc<Self>, queues: &[Arc<Queue>]) {
        let _ = self.thread.set(std::thread::current());
        let mut seen = vec![0; queues.len()];
        let mut quiet = 0;
        while !self.ending.load(Ordering::Acquire) {
            if quiet > QUIET_LOOKS_MAX {
                self.active.store(false, Ordering::Release);
                // A leader that woke up before the store is found by this look.
                if !self.look(queues, &mut seen) && !self.active.load(Ordering::Acquire) {
                    std::thread::park();
                }
                quiet = 0;
                continue;
            }
            std::thread::park_timeout(LOOK_EVERY);
            quiet = if self.look(queues, &mut seen) { 0 } else { quiet + 1 };
        }
    }

    /// Looks once; true where a leader is awake.
    fn look(self: &Arc<Self>, queues: &[Arc<Queue>], seen: &mut [u64]) -> bool {
        let mut awake = false;
        for (queue, seen) in queues.iter().zip(seen) {
            let mut state = queue.state.lock();
            if !state.led || state.asleep {
                continue;
            }
            awake = true;
            let turns = state.turns;
            if turns == std::mem::replace(seen, turns) && state.serving > 0 {
                // In the same breath as the look: publishing opens the lock, and a leader that came back
                // meanwhile must not lose the lead while it sleeps.
                hand_over(queue, &mut state, self);
                if let Some((_, service)) = queue.bound() {
                    service.metrics.followers_woken.increment();
                    publish_and_call(&mut state, service);
                }
            }
        }
        awake
    }
}
