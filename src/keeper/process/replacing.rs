//! The keeper's part in a live upgrade: another program takes its place in this process (docs/RECOVERY.md, section 9).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{Keeper, Link, Verdict};
use crate::keeper::handover::{self, Given};
use crate::keeper::life::Life;
use crate::keeper::upgrade::{Next, Terms, Upgrade};
use crate::keeper::worker_end::Beginning;
use crate::outer::Said;
use crate::sys::process::Child;

impl Keeper {
    /// Begins to replace this program by `file`, a sealed memfd; `before` is this program's, to go back to.
    pub(super) fn upgrade(&mut self, file: OwnedFd, before: Option<OwnedFd>, terms: Terms) {
        let begun = || -> Result<Upgrade, String> {
            let Upgrade::None = self.upgrade else { return Err("another upgrade is under way; try again when it has ended".to_owned()) };
            let cause = handover::Cause::Upgrade(None);
            let given =
                self.given(&cause).ok_or("this process has records without a file (RLIMIT_FSIZE is too low); restart it instead")?;
            Upgrade::begin(file, before, &given, terms)
        };
        match begun() {
            Ok(upgrade) => self.upgrade = upgrade,
            Err(why) => self.report(Err(why)),
        }
    }

    pub(super) fn advance_upgrade(&mut self, life: &mut Life) {
        match std::mem::take(&mut self.upgrade).advance(&life.worker, std::mem::take(&mut life.is_busy), &mut self.examined) {
            Ok(upgrade) => self.upgrade = upgrade,
            Err(why) => self.report(Err(why)),
        }
    }

    /// The worker has ended. An upgrade for which that took too long is none.
    pub(super) fn end_late_upgrade(&mut self) {
        if let Err(why) = self.upgrade.check() {
            self.upgrade = Upgrade::None;
            self.report(Err(why));
        }
    }

    /// The worker has ended for the other program.
    pub(super) fn follow_drained(&mut self) -> Verdict {
        let otherwise = self.going_on();
        match std::mem::take(&mut self.upgrade) {
            Upgrade::Draining { next, .. } => Verdict::Execute(next, otherwise),
            _ => Verdict::Next(otherwise),
        }
    }

    /// What a worker begins with that another one has prepared.
    pub(super) fn going_on(&self) -> Beginning {
        self.in_this_table(if self.has_session() { Beginning::Recovery } else { Beginning::Idle })
    }

    /// What a worker of this program's begins with where it has taken the place of another one, or of the one before where it is gone back
    /// to. Then the request may be to blame that the worker of the other one was executing.
    pub(super) fn going_on_after(&self, is_going_back: bool) -> Beginning {
        match self.going_on() {
            Beginning::Recovery if is_going_back => Beginning::OneByOne,
            beginning => beginning,
        }
    }

    /// What another program gets. `None` where it could not go on with it.
    fn given<'k>(&'k self, cause: &'k handover::Cause) -> Option<Given<'k>> {
        let given = Given::new(self.start.as_ref()?, cause, (self.listener.as_raw_fd(), self.channel.as_fd().as_raw_fd()), &self.deaths);
        let connection = match &self.link {
            Link::Connected(relay) => Some(&**relay),
            _ => None,
        };
        let examined = self.examined.iter().map(Child::pid).collect();
        let (retained, is_visible) = (self.retention.retained.as_ref(), self.is_visible);
        Some(Given { examined, keep_listening: self.keep_listening, connection, retained, rings: &self.rings, is_visible, ..given })
    }

    /// Executes `next`. Returns where that fails.
    pub(super) fn execute(&mut self, next: &Next) -> io::Error {
        // The other program keeps it anew, or does not know how.
        self.forget_session();
        self.records.note_change();
        for worker in self.ending.drain(..) {
            // Its table of descriptors is the one that the other program gets.
            let _ = worker.wait();
        }
        self.given(&next.cause).map_or_else(|| io::Error::from_raw_os_error(libc::EINVAL), |given| next.program.execute(&given))
    }

    /// A worker serves: what was to be taken over is.
    pub(super) fn note_arrival(&mut self) {
        let Some(arrival) = &mut self.arrival else { return };
        arrival.note_ready();
        if let Some(outcome) = arrival.outcome.take() {
            let version = env!("CARGO_PKG_VERSION");
            self.channel.say(&Said::Version(version.to_owned()));
            self.report(outcome.map(|()| format!("gatherfsd {version} serves now")));
        }
    }

    /// Says what has become of an upgrade.
    pub(super) fn report(&self, outcome: Result<String, String>) {
        self.channel.say(&outcome.map_or_else(Said::Refused, Said::Upgraded));
    }
}
