//! How many threads of a queue serve slow requests at the same time (`docs/decisions/0011`). Knows nothing of rings and threads.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::pace::Pace;
use crate::sys::affinity::Cpus;

/// How long a thread takes the number of CPUs that it may use for the same: a running process can be moved to others.
const CPUS_TIME: Duration = Duration::from_millis(10);

/// What one thread goes by.
#[derive(Debug)]
pub(super) struct Overlap {
    /// Threads that serve requests which copy, at most.
    most: u16,
    /// How many CPUs this thread may use, and when that was asked.
    cpus: Cell<(u16, Option<Instant>)>,
}

impl Overlap {
    /// For a process that had so many CPUs when it started. Two at least: it may have got more since, and a quota of its cgroup is no
    /// affinity, as two threads may overlap for as long as it lasts.
    pub fn of_cpus(cpus: u16) -> Overlap {
        Overlap { most: cpus.max(2), cpus: Cell::default() }
    }

    /// Whether slow requests that are not known to wait for the host may have one more thread beside the `serving` ones.
    pub fn has_room(&self, pace: &Pace, serving: u16, now: Instant) -> bool {
        serving < self.most && (pace.may_wait() || serving < self.cpus(now, || Cpus::allowed().map_or(self.most, |cpus| cpus.count())))
    }

    fn cpus(&self, now: Instant, ask: impl FnOnce() -> u16) -> u16 {
        let (cpus, asked_at) = self.cpus.get();
        if asked_at.is_some_and(|at| now.saturating_duration_since(at) <= CPUS_TIME) {
            return cpus;
        }
        let cpus = ask();
        self.cpus.set((cpus, Some(now)));
        cpus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_have_as_many_threads_as_cpus_and_requests_that_may_wait_have_two_at_least() {
        let (now, slow) = (Instant::now(), Duration::from_micros(50));
        let (mut copies, mut mixed) = (Pace::default(), Pace::default());
        for i in 0..100 {
            copies.note(slow, Some(false));
            mixed.note(slow, Some(i % 4 == 0));
        }
        for (of_process, allowed, of_copies, of_mixed) in [(4, 4, 4, 4), (4, 1, 1, 4), (1, 1, 1, 2), (1, 4, 2, 2)] {
            let overlap = Overlap::of_cpus(of_process);
            overlap.cpus(now, || allowed);
            let threads = |pace| (0..10).find(|serving| !overlap.has_room(pace, *serving, now));
            let found = (threads(&copies), threads(&mixed));
            assert_eq!(found, (Some(of_copies), Some(of_mixed)), "{of_process} CPUs at the start, {allowed} now");
        }
    }

    #[test]
    fn a_thread_that_is_moved_learns_of_it() {
        let (overlap, now) = (Overlap::of_cpus(2), Instant::now());
        assert_eq!(overlap.cpus(now, || 2), 2);
        assert_eq!(overlap.cpus(now + CPUS_TIME, || 1), 2);
        assert_eq!(overlap.cpus(now + 2 * CPUS_TIME, || 1), 1);
    }
}
