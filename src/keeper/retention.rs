//! A session that outlives its frontend's connection: what the keeper has of it while the frontend is away, and how long. The rest of it
//! is in the records, of which this does not know.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::inflight::Region;
use super::worker_end::Beginning;

/// The session of a frontend that has hung up.
#[derive(Debug, Serialize, Deserialize)]
pub struct Retained {
    /// By which the frontend is known again.
    pub region: Region,
    /// The queues that ran.
    pub queues: Vec<u16>,
    #[serde(with = "time_left")]
    until: Instant,
}

/// A moment to come, as the milliseconds until then.
mod time_left {
    use std::time::{Duration, Instant};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(until: &Instant, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX).serialize(to)
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Instant, D::Error> {
        let (left, now) = (Duration::from_millis(u64::deserialize(from)?), Instant::now());
        Ok(now.checked_add(left).unwrap_or(now))
    }
}

/// How long sessions are kept, and the one that is.
#[derive(Debug, Default)]
pub struct Retention {
    time: Duration,
    /// The session of a frontend that is away; also while one is connected that has not shown yet whether it is the same.
    pub retained: Option<Retained>,
    /// The keeper has ended the worker. What the next one begins with.
    dismissed: Option<Beginning>,
    /// The processes of workers that it has ended, until the kernel has taken down their memory.
    ending: Vec<i32>,
}

impl Retention {
    /// Sessions are kept for `time`, a day at most. Zero is never.
    pub fn set_time(&mut self, time: Duration) {
        self.time = time;
    }

    /// The session is kept whose frontend has `region`; `queues` run in it.
    pub fn keep(&mut self, region: Region, queues: Vec<u16>) {
        self.retained = Some(Retained { region, queues, until: Instant::now() + self.time });
    }

    /// Whether sessions are kept.
    pub fn is_offered(&self) -> bool {
        !self.time.is_zero()
    }

    /// How long.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// The time that is left of the present one.
    pub fn left(&self) -> Option<Duration> {
        Some(self.retained.as_ref()?.until.saturating_duration_since(Instant::now()))
    }

    /// The keeper has ended the worker; the next one is to begin with `beginning`.
    pub fn dismiss(&mut self, beginning: Beginning) {
        self.dismissed = Some(beginning);
    }

    /// What follows the worker's end where the keeper has ended it.
    pub fn take_dismissed(&mut self) -> Option<Beginning> {
        self.dismissed.take()
    }

    /// Process `worker` was ended by the keeper, and is still to be waited for.
    pub fn expect_end(&mut self, worker: i32) {
        self.ending.push(worker);
    }

    /// Process `worker` has ended: whether that was expected.
    pub fn has_expected(&mut self, worker: i32) -> bool {
        let before = self.ending.len();
        self.ending.retain(|pid| *pid != worker);
        self.ending.len() < before
    }

    /// Adds the numbers of its descriptors to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        self.retained.iter().for_each(|retained| retained.region.name_descriptors(named));
    }
}
