//! Workers that died: how long to wait before the next one, and what it may trust.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A life shorter than this that a fault ended is followed by a wait.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// A life longer than this ends the waits.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// The first wait. Each is twice the one before.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// The longest wait: a guest's request waits as long.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// So many deaths within [`MANY_WITHIN`] are worth an error of their own.
const MANY: usize = 10;
/// As [`MANY`] says.
const MANY_WITHIN: Duration = Duration::from_secs(60);
/// Workers that died before they were ready after which the next one does not read the records, and again after which there is
/// none: the second of two deaths is no accident.
const UNREADY_MAX: u32 = 2;

/// What follows a death.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A worker that reads the records, after this time.
    Recovery(Duration),
    /// A worker that does not.
    Fresh(Duration),
    /// Nothing helps.
    None,
}

/// Why a worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A fault of its own: what it did may end the next one as well.
    Fault,
    /// SIGKILL: somebody's wish, or the machine was out of memory.
    Killed,
}

/// The deaths so far.
#[derive(Debug, Default)]
pub struct Deaths {
    wait: Duration,
    /// By a fault, of workers that were not ready, one after the other.
    unready: u32,
    recent: VecDeque<Instant>,
}

impl Deaths {
    /// A worker died at `now`, after `life`, and `was_ready` or not.
    pub fn note(&mut self, now: Instant, life: Duration, was_ready: bool, cause: Cause) -> Next {
        if was_ready {
            self.unready = 0;
        } else if cause == Cause::Fault {
            self.unready += 1;
        }
        if life >= LONG_LIFE {
            self.wait = Duration::ZERO;
        }
        let waits = life < SHORT_LIFE && (cause == Cause::Fault || !was_ready);
        if waits {
            self.wait = (self.wait * 2).clamp(WAIT_MIN, WAIT_MAX);
        }
        let wait = if waits { self.wait } else { Duration::ZERO };
        self.recent.push_back(now);
        while self.recent.len() > MANY || self.recent.front().is_some_and(|first| now.duration_since(*first) > MANY_WITHIN) {
            self.recent.pop_front();
        }
        match self.unready {
            0..UNREADY_MAX => Next::Recovery(wait),
            unready if unready < 2 * UNREADY_MAX => Next::Fresh(wait),
            _ => Next::None,
        }
    }

    /// The number of the last deaths and the time that they took, where that is too many. Begins to count anew then.
    pub fn many(&mut self) -> Option<(usize, Duration)> {
        if self.recent.len() < MANY {
            return None;
        }
        let took = self.recent.back()?.duration_since(*self.recent.front()?);
        self.recent.clear();
        Some((MANY, took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lives_are_followed_by_longer_waits_and_a_long_one_by_none() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        let mut after = |life| deaths.note(now, life, true, Cause::Fault);
        let ms = |ms| Next::Recovery(Duration::from_millis(ms));
        assert_eq!(after(Duration::from_secs(5)), ms(0));
        let waits: Vec<Next> = (0..9).map(|_| after(Duration::ZERO)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000].map(ms));
        assert_eq!(after(Duration::from_secs(2)), ms(0));
        assert_eq!(after(Duration::ZERO), ms(1000), "it is not forgotten yet");
        assert_eq!(after(Duration::from_secs(11)), ms(0));
        assert_eq!(after(Duration::ZERO), ms(10));
    }

    #[test]
    fn workers_that_do_not_get_ready_do_not_read_the_records_and_then_there_is_none() {
        let (mut deaths, now, life) = (Deaths::default(), Instant::now(), Duration::from_secs(5));
        let mut note = |ready| deaths.note(now, life, ready, Cause::Fault);
        let none = Duration::ZERO;
        assert_eq!(
            [note(false), note(false), note(false), note(false)],
            [Next::Recovery(none), Next::Fresh(none), Next::Fresh(none), Next::None]
        );
        assert_eq!(note(true), Next::Recovery(none));
    }

    #[test]
    fn a_worker_that_is_killed_is_followed_at_once_and_its_records_are_read() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(deaths.note(now, Duration::ZERO, true, Cause::Killed), Next::Recovery(Duration::ZERO));
        }
        let unready: Vec<Next> = (0..3).map(|_| deaths.note(now, Duration::ZERO, false, Cause::Killed)).collect();
        assert_eq!(unready, [10, 20, 40].map(|ms| Next::Recovery(Duration::from_millis(ms))));
    }

    #[test]
    fn many_deaths_in_a_minute_are_told_once() {
        let (mut deaths, start) = (Deaths::default(), Instant::now());
        for second in 0..9 {
            deaths.note(start + Duration::from_secs(second), Duration::ZERO, true, Cause::Killed);
            assert_eq!(deaths.many(), None);
        }
        deaths.note(start + Duration::from_secs(9), Duration::ZERO, true, Cause::Killed);
        assert_eq!(deaths.many(), Some((10, Duration::from_secs(9))));
        assert_eq!(deaths.many(), None);
        for minute in 1..30 {
            deaths.note(start + Duration::from_secs(60 * minute), Duration::ZERO, true, Cause::Killed);
            assert_eq!(deaths.many(), None);
        }
    }
}
