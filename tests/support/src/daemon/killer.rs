//! Kills the worker of a daemon at random moments, as long as a test works with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;
use super::process::children_of;

/// A thread that kills.
#[derive(Debug)]
pub struct Killer {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Killer {
    /// Kills one worker of the keeper `keeper` after the other, each time after at most `pause`. The same `seed` gives the same
    /// pauses.
    pub fn start(keeper: u32, mut seed: u64, pause: Duration) -> Killer {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let (mut killed, mut last) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                // Of a linear congruential generator (Knuth's MMIX) the upper bits.
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                std::thread::sleep(pause.mul_f64((seed >> 32) as f64 / f64::from(u32::MAX)));
                // One that was killed may not have been waited for yet.
                if let [worker] = children_of(keeper)[..]
                    && worker != last
                    && let Some(pid) = Pid::from_raw(worker.cast_signed())
                {
                    last = worker;
                    killed += u32::from(kill_process(pid, Signal::KILL).is_ok());
                }
            }
            // A daemon whose VMM disconnects while its worker dies ends with that one's status.
            eventually(|| matches!(children_of(keeper)[..], [worker] if worker != last));
            killed
        });
        Killer { is_over, thread }
    }

    /// Ends it, and returns how often it has killed.
    pub fn stop(self) -> u32 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic")
    }
}
