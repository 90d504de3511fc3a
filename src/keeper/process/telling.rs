//! What the keeper and the outer process tell each other.

use std::io;
use std::time::{Duration, Instant};

use super::{Keeper, Link};
use crate::keeper::life::Life;
use crate::keeper::upgrade::Terms;
use crate::outer::{Asked, Said};

/// How long after one could not be started another worker is: at first, and at most.
const START_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Between two lines of the log about that.
const TELL_AGAIN: Duration = Duration::from_secs(10);

impl Keeper {
    /// Takes what the outer process asks for.
    pub(super) fn hear_outer(&mut self) -> io::Result<()> {
        match self.channel.asked()? {
            Asked::Upgrade { program, before, is_forced, deadline } => self.upgrade(program, before, Terms { is_forced, deadline }),
            Asked::Closed => self.has_outer = false,
            Asked::Nothing => {}
        }
        Ok(())
    }

    /// Tells the outer process what the daemon does, where that has changed.
    pub(super) fn tell_status(&mut self) {
        self.tell(self.status());
    }

    /// The same, where the worker does not serve and the host holds it up. Not before a worker was ready. The service manager hears that
    /// this process lives: it is not to end it for what the host does.
    pub(super) fn tell_delay(&mut self, life: &mut Life) {
        let Some(what) = life.tell_delay() else { return };
        self.channel.say(&Said::Alive);
        if !self.told.is_empty() {
            self.tell(format!("{}; {what}", self.status()));
        }
    }

    /// A worker could not be started: how long to wait until it is tried again.
    pub(super) fn note_failed_start(&mut self, e: &io::Error) -> Duration {
        let now = Instant::now();
        let (wait, tell_at) = self.failed_starts.map_or((START_AGAIN.0, now), |(wait, tell_at)| ((wait * 2).min(START_AGAIN.1), tell_at));
        self.failed_starts = Some((wait, if tell_at <= now { now + TELL_AGAIN } else { tell_at }));
        if tell_at <= now {
            tracing::error!("cannot start another worker: {e}; the guest waits, and it is tried again");
        }
        self.channel.say(&Said::Alive);
        if !self.told.is_empty() {
            self.tell(format!("{}; no worker can be started: {e}", self.status()));
        }
        wait
    }

    fn tell(&mut self, status: String) {
        if status != self.told {
            self.channel.say(&Said::Status(status.clone()));
            self.told = status;
        }
    }

    fn status(&self) -> String {
        let link = match &self.link {
            Link::Awaited if self.retention.retained.is_some() => &format!(
                "the VMM has disconnected, and may connect again within {} s of the disconnection",
                self.retention.time().as_secs_f64()
            ),
            Link::Awaited => "waiting for a VMM",
            Link::Connected(_) => "a VMM is connected",
            Link::Over => "the VMM has disconnected",
        };
        let restarted = match self.deaths.restarts {
            0 => String::new(),
            1 => "; the worker was restarted once".to_owned(),
            restarts => format!("; the worker was restarted {restarts} times"),
        };
        format!("{link}{restarted}{}", self.keeping.status())
    }
}
