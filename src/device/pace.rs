//! How slow the recent requests of one queue were, and whether they waited for the host: what the leader protocol decides by.
//! Knows nothing of rings, requests or threads.
//!
//! A request that is slow because it waits for a disk leaves its CPU to others: any number of them gain by overlapping. One that is
//! slow because it copies much keeps its CPU: with more threads than CPUs they only take turns, and a request whose thread waits
//! for its turn is late (`docs/decisions/0011`).

use std::time::Duration;

/// Requests are slow when they take longer, on average, than waking another thread on the same CPU does.
const SLOW_NS: u32 = 10_000;
/// What one request counts at most, so that a single one that was interrupted does not make those after it slow.
const TIME_MAX_NS: u32 = 60_000;
/// The last request has one part in so many of each average.
const SMOOTHING: u32 = 8;
/// The share of requests that waited, where all of them did.
const ALL: u32 = 1024;
/// The share of requests that waited from which on the next one may: copies have next to none.
const SOME: u32 = ALL / 8;

/// The pace of a queue's requests. Kept under the queue's lock.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The time of a request, on average. In nanoseconds: arithmetic with a `Duration` divides several times.
    time_ns: u32,
    /// Of the slow ones that were observed, the share that waited, on average.
    waited: u32,
}

impl Pace {
    /// Whether the next request is expected to be slow.
    pub fn is_slow(&self) -> bool {
        self.time_ns > SLOW_NS
    }

    /// Whether the next request is expected to be slow because it waits for the host.
    pub fn waits(&self) -> bool {
        self.is_slow() && self.waited > ALL / 2
    }

    /// Whether the next request may well wait for the host, if it is slow.
    pub fn may_wait(&self) -> bool {
        self.waited > SOME
    }

    /// How many requests are served in `time`, as far as is known; at least one.
    pub fn count_in(&self, time: Duration) -> u16 {
        let time_ns = u32::try_from(time.as_nanos()).unwrap_or(u32::MAX);
        u16::try_from(time_ns / self.time_ns.max(1)).unwrap_or(u16::MAX).max(1)
    }

    /// A request took `time`. `has_waited`: whether its thread slept meanwhile, where that was observed.
    pub fn note(&mut self, time: Duration, has_waited: Option<bool>) {
        let time_ns = u32::try_from(time.as_nanos()).unwrap_or(u32::MAX);
        self.time_ns = (self.time_ns * (SMOOTHING - 1) + time_ns.min(TIME_MAX_NS)) / SMOOTHING;
        if let Some(has_waited) = has_waited.filter(|_| time_ns > SLOW_NS) {
            self.waited = (self.waited * (SMOOTHING - 1) + if has_waited { ALL } else { 0 }) / SMOOTHING;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(2);
    const SLOW: Duration = Duration::from_micros(80);

    fn after(count: usize, time: Duration, has_waited: Option<bool>, mut pace: Pace) -> Pace {
        (0..count).for_each(|_| pace.note(time, has_waited));
        pace
    }

    #[test]
    fn requests_that_are_slow_on_average_are_expected_to_be_slow_and_a_single_one_is_not() {
        let quick = after(100, QUICK, None, Pace::default());
        assert!(!quick.is_slow() && !quick.waits());
        let interrupted = after(1, Duration::from_secs(1), None, quick);
        assert!(!interrupted.is_slow());
        let slow = after(2, SLOW, None, interrupted);
        assert!(slow.is_slow());
        let mut mixed = slow;
        for i in 0..100 {
            mixed.note(if i % 4 == 0 { SLOW } else { QUICK }, None);
            assert!(mixed.is_slow(), "one miss of the cache in four");
        }
        assert!(!after(30, QUICK, None, mixed).is_slow());
    }

    #[test]
    fn quick_requests_are_counted_in_a_time_and_one_slow_one_is_at_least() {
        let time = Duration::from_micros(20);
        assert!((9..=11).contains(&after(100, QUICK, None, Pace::default()).count_in(time)));
        assert_eq!(after(100, SLOW, None, Pace::default()).count_in(time), 1);
        assert!(Pace::default().count_in(time) > 1000, "nothing is known yet");
    }

    #[test]
    fn slow_requests_of_which_some_wait_may_overlap_and_copies_may_not() {
        let copies = after(100, SLOW, Some(false), Pace::default());
        assert!(!copies.may_wait());
        let mut mixed = copies;
        for i in 0..100 {
            mixed.note(SLOW, Some(i % 4 == 0));
            assert!(!mixed.waits() && (i < 16 || mixed.may_wait()), "one in four waits");
        }
    }

    #[test]
    fn what_is_observed_tells_waiting_from_copying() {
        let unknown = after(10, SLOW, None, Pace::default());
        assert!(unknown.is_slow() && !unknown.waits(), "nothing was observed");
        let copies = after(10, SLOW, Some(false), unknown);
        assert!(copies.is_slow() && !copies.waits());
        let copies = after(100, QUICK, Some(true), copies);
        assert!(!after(4, SLOW, None, copies).waits(), "a quick request that slept says nothing");
        let waits = after(10, SLOW, Some(true), after(10, SLOW, Some(false), Pace::default()));
        assert!(waits.waits());
        assert!(after(2, SLOW, Some(false), waits).waits(), "some of them found their data in the cache");
    }
}
