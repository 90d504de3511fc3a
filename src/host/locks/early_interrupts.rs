//! INTERRUPTs that arrive before the request that they are for: the two use different queues. An INTERRUPT may also be for a
//! request that never arrives or that does not wait, so their number and age are limited. Does not know locks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::types::Unique;

/// INTERRUPTs that are remembered; the oldest one goes first. Linux interrupts one request of a process at a time.
const COUNT_MAX: usize = 256;
/// How long one is remembered: longer than a request stays in its queue. After that a request may reuse the number.
const AGE_MAX: Duration = Duration::from_secs(60);

/// The requests that were interrupted, oldest first.
#[derive(Debug, Default)]
pub(super) struct EarlyInterrupts(VecDeque<(Unique, Instant)>);

impl EarlyInterrupts {
    /// Remembers an INTERRUPT of `unique` that came at `now`.
    pub fn remember(&mut self, unique: Unique, now: Instant) {
        self.take(unique, now);
        if self.0.len() == COUNT_MAX {
            self.0.pop_front();
        }
        self.0.push_back((unique, now));
    }

    /// Whether `unique` was interrupted; removes the record.
    pub fn take(&mut self, unique: Unique, now: Instant) -> bool {
        while self.0.front().is_some_and(|(_, at)| now.saturating_duration_since(*at) > AGE_MAX) {
            self.0.pop_front();
        }
        let at = self.0.iter().position(|(known, _)| *known == unique);
        at.and_then(|at| self.0.remove(at)).is_some()
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Removes all records.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_for_one_request_and_is_forgotten_by_it() {
        let (mut early, now) = (EarlyInterrupts::default(), Instant::now());
        early.remember(Unique(4), now);
        early.remember(Unique(4), now);
        assert_eq!(early.len(), 1);
        assert!(!early.take(Unique(6), now));
        assert!(early.take(Unique(4), now));
        assert!(!early.take(Unique(4), now));
    }

    #[test]
    fn interrupts_of_requests_that_never_come_are_forgotten() {
        let (mut early, now) = (EarlyInterrupts::default(), Instant::now());
        (0..10_000).for_each(|unique| early.remember(Unique(unique), now));
        assert_eq!(early.len(), COUNT_MAX);
        assert!(!early.take(Unique(9_999 - COUNT_MAX as u64), now), "the oldest gave way");
        assert!(early.take(Unique(9_999), now));
        assert!(early.take(Unique(9_998), now + AGE_MAX));
        assert!(!early.take(Unique(9_997), now + AGE_MAX + Duration::from_nanos(1)));
        assert_eq!(early.len(), 0);
    }
}
