//! What the keeper and the outer process tell each other.

use std::io;

use super::{Keeper, Link};
use crate::keeper::life::Life;
use crate::outer::{Asked, Said};

impl Keeper {
    /// Takes what the outer process asks for.
    pub(super) fn hear_outer(&mut self) -> io::Result<()> {
        match self.channel.asked()? {
            Asked::Upgrade { program, before, is_forced } => self.upgrade(program, before, is_forced),
            Asked::Closed => self.has_outer = false,
            Asked::Nothing => {}
        }
        Ok(())
    }

    /// Tells the outer process what the daemon does, where that has changed.
    pub(super) fn tell_status(&mut self) {
        self.tell(self.status());
    }

    /// The same, where the worker has died and the host holds one of its threads up. Not before a worker was ready.
    pub(super) fn tell_delay(&mut self, life: &Life) {
        if life.is_held_up() && !self.told.is_empty() {
            self.tell(self.status() + "; the worker has died, and the host has not finished what a thread of it does");
        }
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
