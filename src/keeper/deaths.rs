//! Workers that died: how long to wait before the next one, and what it may trust. Survives an upgrade.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::worker_end::Beginning;
use crate::state::RequestName;

/// A life shorter than this that a fault ended is followed by a wait.
pub const SHORT_LIFE: Duration = Duration::from_secs(1);
/// A life longer than this ends the waits.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// The first wait. Each is twice the one before.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// The longest wait: a guest's request waits as long.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// A life shorter than this that somebody ended: see [`QUICK_MAX`].
const QUICK_LIFE: Duration = Duration::from_millis(100);
/// More lives than this that were ended so soon, one after the other, are followed by [`WAIT_MIN`]: the machine may be out of memory.
const QUICK_MAX: u32 = 2;
/// So many faults in short lives, one after the other and with no request to blame, are no accident: the next worker trusts less of what
/// was left.
const FAULTS_MAX: u32 = 2;
/// So many deaths within [`MANY_WITHIN`] are worth an error of their own.
const MANY: usize = 10;
/// As [`MANY`] says.
const MANY_WITHIN: Duration = Duration::from_secs(60);

/// What the next worker may trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Everything.
    All,
    /// Everything, but what was left unfinished may be what ends workers: it is executed one request after the other.
    OneByOne,
    /// The records of files, and no request that was left unfinished.
    Files,
    /// Nothing.
    Nothing,
}

impl Trust {
    /// What the next worker begins with where there is a session to go on with, and what the log says of that.
    pub fn beginning(self) -> (Beginning, &'static str) {
        match self {
            Trust::All => (Beginning::Recovery, "another one goes on with the guest's session"),
            Trust::OneByOne => {
                (Beginning::OneByOne, "another one goes on with the guest's session, and executes what is unfinished one after the other")
            }
            Trust::Files => {
                (Beginning::Careful, "another one goes on with the guest's session, and answers what is unfinished with an error")
            }
            Trust::Nothing => (Beginning::Fresh, "another one goes on without the records of the session: what the guest has open is lost"),
        }
    }
}

/// Why a worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A fault of its own: what it did may end the next one as well.
    Fault {
        /// It executed one request alone, which no worker executes again.
        is_named: bool,
    },
    /// SIGKILL: somebody's wish, or the machine was out of memory.
    Killed,
    /// It has said that the host lacked something that it needed.
    Shortage,
}

/// The exit status of a worker that the host had no thread, memory or open file for (EX_TEMPFAIL of sysexits.h).
pub const SHORTAGE: u8 = 75;
/// The first wait after that; each is twice the one before, up to [`WAIT_MAX`].
const SHORTAGE_WAIT_MIN: Duration = Duration::from_millis(50);

/// The deaths so far.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Deaths {
    /// Workers that followed one that died.
    pub restarts: u32,
    /// The request that has ended two workers last.
    pub quarantined: Option<RequestName>,
    wait: Duration,
    /// Faults in short lives, one after the other, for which no request could be named.
    faults: u32,
    /// Lives that were ended soon, one after the other.
    quick: u32,
    #[serde(with = "ages")]
    recent: VecDeque<Instant>,
}

/// Moments, in ms before the one at which they are handed over.
mod ages {
    use std::collections::VecDeque;
    use std::time::{Duration, Instant};

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(moments: &VecDeque<Instant>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(moments.iter().map(|moment| u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<VecDeque<Instant>, D::Error> {
        let (ages, now) = (Vec::<u64>::deserialize(from)?, Instant::now());
        // A moment before the clock began is as old as makes no difference.
        Ok(ages.into_iter().filter_map(|age| now.checked_sub(Duration::from_millis(age))).collect())
    }
}

impl Deaths {
    /// A worker died at `now`, after `life`: how long to wait for the next one, and what that one may trust. `None` where nothing
    /// helps.
    pub fn note(&mut self, now: Instant, life: Duration, cause: Cause) -> Option<(Duration, Trust)> {
        if life >= LONG_LIFE {
            self.wait = Duration::ZERO;
        }
        if life >= SHORT_LIFE {
            self.faults = 0;
        }
        self.quick = if life < QUICK_LIFE { self.quick + 1 } else { 0 };
        let wait = match cause {
            Cause::Fault { is_named } if life < SHORT_LIFE => {
                self.faults = if is_named { 0 } else { self.faults + 1 };
                self.wait = (self.wait * 2).clamp(WAIT_MIN, WAIT_MAX);
                self.wait
            }
            Cause::Killed if self.quick > QUICK_MAX => WAIT_MIN,
            Cause::Shortage => {
                self.wait = (self.wait * 2).clamp(SHORTAGE_WAIT_MIN, WAIT_MAX);
                self.wait
            }
            _ => Duration::ZERO,
        };
        self.recent.push_back(now);
        while self.recent.len() > MANY || self.recent.front().is_some_and(|first| now.duration_since(*first) > MANY_WITHIN) {
            self.recent.pop_front();
        }
        let trust = match (self.faults / FAULTS_MAX, cause) {
            (0, Cause::Killed | Cause::Shortage) => Trust::All,
            (0, Cause::Fault { .. }) => Trust::OneByOne,
            (1, _) => Trust::Files,
            (2, _) => Trust::Nothing,
            _ => return None,
        };
        Some((wait, trust))
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
    fn faults_in_short_lives_are_followed_by_longer_waits_and_less_trust() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        let mut after = |life| deaths.note(now, life, Cause::Fault { is_named: false });
        let ms = |ms, trust| Some((Duration::from_millis(ms), trust));
        assert_eq!(after(Duration::from_secs(5)), ms(0, Trust::OneByOne));
        let short: Vec<_> = (0..6).map(|_| after(Duration::ZERO)).collect();
        let expected =
            [ms(10, Trust::OneByOne), ms(20, Trust::Files), ms(40, Trust::Files), ms(80, Trust::Nothing), ms(160, Trust::Nothing), None];
        assert_eq!(short, expected);
        assert_eq!(after(Duration::from_secs(2)), ms(0, Trust::OneByOne));
        assert_eq!(after(Duration::ZERO), ms(640, Trust::OneByOne), "the wait is not forgotten yet");
        assert_eq!(after(Duration::from_secs(11)), ms(0, Trust::OneByOne));
        assert_eq!(after(Duration::ZERO), ms(10, Trust::OneByOne));
    }

    #[test]
    fn a_guest_that_repeats_a_request_which_ends_workers_waits_and_keeps_its_session() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        let (unknown, named) = (Cause::Fault { is_named: false }, Cause::Fault { is_named: true });
        let followed: Vec<_> = [unknown, named].into_iter().cycle().take(20).map(|cause| deaths.note(now, Duration::ZERO, cause)).collect();
        assert!(followed.iter().all(|followed| followed.is_some_and(|(_, trust)| trust == Trust::OneByOne)), "{followed:?}");
        assert_eq!(followed.last(), Some(&Some((WAIT_MAX, Trust::OneByOne))));
        // One that is named makes up for none of those behind it.
        assert_eq!(deaths.note(now, Duration::ZERO, unknown).map(|(_, trust)| trust), Some(Trust::OneByOne));
        assert_eq!(deaths.note(now, Duration::ZERO, unknown).map(|(_, trust)| trust), Some(Trust::Files));
    }

    #[test]
    fn a_worker_that_is_killed_is_followed_at_once_and_everything_is_trusted() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        let waits: Vec<_> = (0..5).map(|_| deaths.note(now, Duration::ZERO, Cause::Killed)).collect();
        assert_eq!(waits, [0, 0, 10, 10, 10].map(|ms| Some((Duration::from_millis(ms), Trust::All))));
        assert_eq!(deaths.note(now, QUICK_LIFE, Cause::Killed), Some((Duration::ZERO, Trust::All)));
    }

    #[test]
    fn what_is_handed_over_goes_on_and_what_an_older_program_leaves_out_begins_anew() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        for _ in 0..9 {
            deaths.note(now, QUICK_LIFE, Cause::Killed);
        }
        deaths.note(now, Duration::ZERO, Cause::Fault { is_named: false });
        deaths.recent.truncate(9);
        let name = RequestName { queue: crate::types::QueueIndex(3), sequence: 70 };
        (deaths.restarts, deaths.quarantined) = (10, Some(name));
        let mut taken: Deaths = serde_json::from_slice(&serde_json::to_vec(&deaths).unwrap()).unwrap();
        assert_eq!((taken.restarts, taken.quarantined, taken.recent.len()), (10, Some(name), 9));
        let next = taken.note(Instant::now(), Duration::ZERO, Cause::Fault { is_named: false });
        assert_eq!(next, Some((2 * WAIT_MIN, Trust::Files)), "the second fault, and the second wait");
        assert!(taken.many().is_some_and(|(count, took)| count == MANY && took < MANY_WITHIN));
        let older: Deaths = serde_json::from_str(r#"{"restarts": 1, "something": []}"#).unwrap();
        assert_eq!((older.restarts, older.quarantined, older.recent.len()), (1, None, 0));
    }

    #[test]
    fn many_deaths_in_a_minute_are_told_once() {
        let (mut deaths, start) = (Deaths::default(), Instant::now());
        for second in 0..9 {
            deaths.note(start + Duration::from_secs(second), QUICK_LIFE, Cause::Killed);
            assert_eq!(deaths.many(), None);
        }
        deaths.note(start + Duration::from_secs(9), QUICK_LIFE, Cause::Killed);
        assert_eq!(deaths.many(), Some((10, Duration::from_secs(9))));
        assert_eq!(deaths.many(), None);
        for minute in 1..30 {
            deaths.note(start + Duration::from_secs(60 * minute), QUICK_LIFE, Cause::Killed);
            assert_eq!(deaths.many(), None);
        }
    }
}
