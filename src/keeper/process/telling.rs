//! What the keeper tells the outer process of what the daemon does.

use super::{Keeper, Link};
use crate::outer::Said;

impl Keeper {
    /// Tells the outer process what the daemon does, where that has changed.
    pub(super) fn tell_status(&mut self) {
        let link = match &self.link {
            Link::Awaited if self.retention.retained.is_some() => &format!(
                "the VMM has disconnected, and may connect again within {} s of the disconnection",
                self.retention.time().as_secs_f64()
            ),
            Link::Awaited => "waiting for a VMM",
            Link::Connected(_) => "a VMM is connected",
            Link::Over => "the VMM has disconnected",
        };
        let status = match self.deaths.restarts {
            0 => link.to_owned(),
            1 => format!("{link}; the worker was restarted once"),
            restarts => format!("{link}; the worker was restarted {restarts} times"),
        } + &self.keeping.status();
        if status != self.told {
            self.channel.say(&Said::Status(status.clone()));
            self.told = status;
        }
    }
}
