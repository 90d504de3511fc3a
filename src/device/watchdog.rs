//! The stall watchdog: takes the lead from a leader that is blocked in a slow request, so that the requests behind it are served.
//!
//! A leader serves a lone request itself, with kicks off: that is what makes a lone request fast. If it
//! then waits for a disk, no thread watches the ring. One thread a session checks every other millisecond, while there is
//! activity, for leaders that are still in the same request.

use std::sync::Arc;
use std::time::Duration;

use super::activity::Activity;
use super::leadership::Look;
use super::queue::Queue;
use super::worker::{add_missing, relieve};

/// Checks without any leader awake after which the thread sleeps.
const QUIET_LOOKS_MAX: u32 = 25;

/// Watches the leaders of `queues` until `activity` ends, once in `every`.
pub(super) fn run(activity: &Activity, queues: &[Arc<Queue>], every: Duration) {
    activity.register();
    let mut turns_seen = vec![0; queues.len()];
    let mut quiet = 0;
    while !activity.is_ending() {
        if quiet > QUIET_LOOKS_MAX {
            activity.clear();
            // Finds a leader that woke up before the flag was cleared.
            if !look(queues, &mut turns_seen) && !activity.is_noted() {
                std::thread::park();
            }
            quiet = 0;
            continue;
        }
        std::thread::park_timeout(every);
        quiet = if look(queues, &mut turns_seen) { 0 } else { quiet + 1 };
    }
}

/// Checks every queue once; true if a leader is awake.
fn look(queues: &[Arc<Queue>], turns_seen: &mut [u64]) -> bool {
    let mut is_any_awake = false;
    for (queue, turns_seen) in queues.iter().zip(turns_seen) {
        let mut state = queue.state.lock();
        let has_requests = state.in_flight.in_service() > 0;
        let found = state.leadership.look(turns_seen, has_requests);
        is_any_awake |= found != Look::Quiet;
        if found == Look::Stalled {
            // Under the same lock as the check: a leader that has returned and sleeps must not lose the lead.
            relieve(queue, &mut state);
        }
        is_any_awake |= add_missing(queue, &mut state);
    }
    is_any_awake
}
