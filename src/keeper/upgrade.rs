//! The course of an upgrade: a program is examined while the worker serves, then the worker drains, then the program is executed. Does
//! not know who asks for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::handover::{Cause, Given};
use super::held::Held;
use super::program::{Examined, Finding, Program};
use crate::outer::Deadline;
use crate::sys::process::Child;

/// How long the worker may take to finish the requests in flight, while the guest waits with others. One that is still not finished is
/// one for which the host takes long, or for ever: a process with such a thread cannot be ended, so the worker serves on.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How much later the worker has said so, or has ended.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// Why an upgrade is given up.
const BUSY: &str = "the host has not finished requests of the guest within 1 s, and the worker serves on; try again later, or have it ended: \
                    gatherfsctl upgrade --force";
/// The same, where whoever asked has been told meanwhile that it is not made.
const TOO_LATE: &str = "the host has held the worker up for so long that nobody waits for the upgrade any more; ask again";
/// A program whose worker has served so long is not given up for the one before.
const PROVEN_AFTER: Duration = Duration::from_secs(10);
/// How long the first worker of a program may take until it is ready, while the guest waits. 1,000,000 inodes take 0.2 s; the rest is for
/// a host that is slow to close a file, as NFS is where it writes the file back then.
const BEGIN_MAX: Duration = Duration::from_secs(10);

/// A program to be executed, and what it is told about the reason.
#[derive(Debug)]
pub struct Next {
    /// The program.
    pub program: Program,
    /// Why it takes over.
    pub cause: Cause,
}

/// How an upgrade is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// A worker that does not finish what is in flight is ended.
    pub is_forced: bool,
    /// When nobody waits for it any more. `None`: whoever asked does not say.
    pub deadline: Option<Deadline>,
}

impl Terms {
    fn check(self) -> Result<(), String> {
        if self.deadline.is_some_and(Deadline::has_passed) { Err(TOO_LATE.to_owned()) } else { Ok(()) }
    }
}

/// How far an upgrade is.
#[derive(Debug, Default)]
pub enum Upgrade {
    /// There is none.
    #[default]
    None,
    /// The program is examined.
    Examined {
        /// It.
        examined: Examined,
        /// The one that runs, to go back to.
        before: Option<Held>,
        /// How it is to be made.
        terms: Terms,
    },
    /// The worker drains.
    Draining {
        /// What follows.
        next: Next,
        /// When it has ended. `None` where it is being ended.
        until: Option<Instant>,
        /// As above.
        terms: Terms,
    },
}

impl Upgrade {
    /// Examines `program`, which gets `given`; `before` is the program that runs. The error says why it cannot be examined.
    pub fn begin(program: OwnedFd, before: Option<OwnedFd>, given: &Given<'_>, terms: Terms) -> Result<Upgrade, String> {
        terms.check()?;
        let examined = || -> io::Result<Upgrade> {
            let (program, before) = (Held::new(program)?, before.map(Held::new).transpose()?);
            Ok(Upgrade::Examined { examined: Program::new(program)?.examine(given)?, before, terms })
        };
        examined().map_err(|e| format!("it cannot be examined: {e}"))
    }

    /// What to wait for before the next [`Upgrade::advance`].
    pub fn awaited(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Upgrade::Examined { examined, .. } => examined.awaited().to_vec(),
            _ => Vec::new(),
        }
    }

    /// The time until it is to be advanced in any case.
    pub fn left(&self) -> Option<Duration> {
        match self {
            Upgrade::None => None,
            Upgrade::Examined { examined, .. } => Some(examined.left()),
            Upgrade::Draining { until, .. } => until.map(|until| until.saturating_duration_since(Instant::now())),
        }
    }

    /// Goes on, as far as it is time; `is_busy`: the worker has said that it serves on. Adds to `examined` a process that is still to be
    /// waited for. An error ends the upgrade; it says why.
    pub fn advance(self, worker: &Child, is_busy: bool, examined: &mut Vec<Child>) -> Result<Upgrade, String> {
        match self {
            Upgrade::Examined { examined: examination, before, terms } => match examination.finding() {
                Finding::None(examined) => Ok(Upgrade::Examined { examined, before, terms }),
                Finding::Unable(why, child) => {
                    examined.push(child);
                    Err(why)
                }
                Finding::Able(program, version, child) => {
                    examined.push(child);
                    terms.check()?;
                    tracing::info!("gatherfsd {version} takes over; the requests in flight are finished first");
                    // It may just have ended, and another one is asked when it is time.
                    let _ = worker.send(Signal::USR2);
                    let next = Next { program, cause: Cause::Upgrade(before) };
                    Ok(Upgrade::Draining { next, until: Some(Instant::now() + DRAIN_MAX + DRAIN_GRACE), terms })
                }
            },
            Upgrade::Draining { next, until: Some(until), terms } if is_busy || until <= Instant::now() => {
                if !terms.is_forced {
                    return Err(BUSY.to_owned());
                }
                tracing::warn!("the worker is ended for the upgrade, before it has finished the requests in flight");
                // As above.
                let _ = worker.send(Signal::KILL);
                Ok(Upgrade::Draining { next, until: None, terms })
            }
            other => Ok(other),
        }
    }

    /// The worker has ended, after whatever time: an error, which says why, ends the upgrade.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Upgrade::Draining { terms, .. } => terms.check(),
            _ => Ok(()),
        }
    }

    /// Adds the numbers of its descriptors to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        match self {
            Upgrade::None => {}
            Upgrade::Examined { examined, before, .. } => {
                examined.name_descriptors(named);
                named.extend(before.iter().map(|before| before.as_fd().as_raw_fd()));
            }
            Upgrade::Draining { next: Next { program, cause }, .. } => {
                named.push(program.as_fd().as_raw_fd());
                if let Cause::Upgrade(Some(before)) = cause {
                    named.push(before.as_fd().as_raw_fd());
                }
            }
        }
    }
}

/// How this program came to take the place of another one.
#[derive(Debug)]
pub struct Arrival {
    /// Not reported yet: that it has, or why the other one could not.
    pub outcome: Option<Result<(), String>>,
    /// The program before.
    before: Option<Program>,
    /// When this one began.
    began: Instant,
    /// It has served since then.
    since: Option<Instant>,
    /// Its worker was ended because it was not ready in time.
    is_overdue: bool,
}

impl Arrival {
    /// For `cause`.
    pub fn new(cause: Cause) -> Arrival {
        let (outcome, before) = match cause {
            Cause::Upgrade(before) => (Ok(()), before.and_then(|before| Program::new(before).ok())),
            Cause::GoingBack(why) => (Err(why), None),
        };
        Arrival { outcome: Some(outcome), before, began: Instant::now(), since: None, is_overdue: false }
    }

    /// The other program could not serve. Until its outcome is reported.
    pub fn is_going_back(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
    }

    /// A worker of this program's serves.
    pub fn note_ready(&mut self) {
        self.since.get_or_insert_with(Instant::now);
        // It was ended a moment too late: another one of this program's follows it.
        self.is_overdue = false;
    }

    /// The time until [`Arrival::attend`] has something to do, where it will have.
    pub fn left(&self) -> Option<Duration> {
        let (since, most) = match self.since {
            _ if self.before.is_none() || self.is_overdue => return None,
            Some(since) => (since, PROVEN_AFTER),
            None => (self.began, BEGIN_MAX),
        };
        Some(most.saturating_sub(since.elapsed()))
    }

    /// Ends a worker that is not ready in time; closes the program before, once this one has proven that it can serve: its copy takes
    /// memory.
    pub fn attend(&mut self, worker: &Child, is_ready: bool) {
        if !self.left().is_some_and(|left| left.is_zero()) {
            return;
        }
        if self.since.is_some() {
            self.before = None;
        } else if !is_ready {
            tracing::error!("the worker of the new program is not ready after {} s, and is ended", BEGIN_MAX.as_secs());
            self.is_overdue = true;
            // It may just have ended.
            let _ = worker.send(Signal::KILL);
        }
    }

    /// The program to go back to, where this one has not proven that it can serve: a worker has ended by a fault, or in any way before
    /// one was ready. `how` it has ended.
    pub fn go_back(&mut self, is_fault: bool, how: &str) -> Option<Next> {
        let has_failed = if self.since.is_some() { is_fault && !self.left()?.is_zero() } else { true };
        let program = self.before.take_if(|_| has_failed)?;
        tracing::error!("the worker {how}; the program before takes over again");
        let late = if self.is_overdue { format!(", for it was not ready after {} s", BEGIN_MAX.as_secs()) } else { String::new() };
        Some(Next { program, cause: Cause::GoingBack(format!("its worker {how}{late}; the program before serves on")) })
    }

    /// Adds the numbers of its descriptors to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.extend(self.before.iter().map(|program| program.as_fd().as_raw_fd()));
    }
}
