//! The course of an upgrade: a program is examined while the worker serves, then the worker drains, then the program is executed. Does
//! not know who asks for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::handover::Cause;
use super::program::{Examined, Finding, Program};
use crate::sys::process::Child;

/// How long the worker may take to finish the requests in flight, while the guest waits with others. One that is still not finished is
/// one for which the host takes long, or for ever: a process with such a thread cannot be ended, so the worker serves on.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How much later the worker has said so, or has ended.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// Why an upgrade is given up.
const BUSY: &str = "the host has not finished requests of the guest within 1 s, and the worker serves on; try again later";
/// A program whose worker has served so long is not given up for the one before.
const PROVEN_AFTER: Duration = Duration::from_secs(10);

/// A program to be executed, and what it is told about the reason.
#[derive(Debug)]
pub struct Next {
    /// The program.
    pub program: Program,
    /// Why it takes over.
    pub cause: Cause,
}

/// How far an upgrade is.
#[derive(Debug, Default)]
pub enum Upgrade {
    /// There is none.
    #[default]
    None,
    /// The program is examined. The one that runs, to go back to.
    Examined(Examined, Option<OwnedFd>),
    /// The worker drains, and has ended at that time.
    Draining(Next, Instant),
}

impl Upgrade {
    /// What to wait for before the next [`Upgrade::advance`].
    pub fn awaited(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Upgrade::Examined(examined, _) => examined.awaited().to_vec(),
            _ => Vec::new(),
        }
    }

    /// The time until it is to be advanced in any case.
    pub fn left(&self) -> Option<Duration> {
        match self {
            Upgrade::None => None,
            Upgrade::Examined(examined, _) => Some(examined.left()),
            Upgrade::Draining(_, until) => Some(until.saturating_duration_since(Instant::now())),
        }
    }

    /// Goes on, as far as it is time; `is_busy`: the worker has said that it serves on. Adds to `examined` a process that is still to be
    /// waited for. An error ends the upgrade; it says why.
    pub fn advance(self, worker: &Child, is_busy: bool, examined: &mut Vec<Child>) -> Result<Upgrade, String> {
        match self {
            Upgrade::Examined(examination, before) => match examination.finding() {
                Finding::None(examination) => Ok(Upgrade::Examined(examination, before)),
                Finding::Unable(why, child) => {
                    examined.push(child);
                    Err(why)
                }
                Finding::Able(program, version, child) => {
                    examined.push(child);
                    tracing::info!("gatherfsd {version} takes over; the requests in flight are finished first");
                    // It may just have ended, and another one is asked when it is time.
                    let _ = worker.send(Signal::USR2);
                    Ok(Upgrade::Draining(Next { program, cause: Cause::Upgrade(before) }, Instant::now() + DRAIN_MAX + DRAIN_GRACE))
                }
            },
            Upgrade::Draining(_, until) if is_busy || until <= Instant::now() => Err(BUSY.to_owned()),
            other => Ok(other),
        }
    }

    /// Adds the numbers of its descriptors to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        match self {
            Upgrade::None => {}
            Upgrade::Examined(examined, before) => {
                examined.name_descriptors(named);
                named.extend(before.iter().map(AsRawFd::as_raw_fd));
            }
            Upgrade::Draining(Next { program, cause }, _) => {
                named.push(program.as_fd().as_raw_fd());
                if let Cause::Upgrade(Some(before)) = cause {
                    named.push(before.as_raw_fd());
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
    /// It has served since then.
    since: Option<Instant>,
}

impl Arrival {
    /// For `cause`.
    pub fn new(cause: Cause) -> Arrival {
        let (outcome, before) = match cause {
            Cause::Upgrade(before) => (Ok(()), before.and_then(|before| Program::new(before).ok())),
            Cause::GoingBack(why) => (Err(why), None),
        };
        Arrival { outcome: Some(outcome), before, since: None }
    }

    /// A worker of this program's serves.
    pub fn note_ready(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// The time until there is no going back any more, where there is one.
    pub fn left(&self) -> Option<Duration> {
        let since = self.since.filter(|_| self.before.is_some())?;
        Some(PROVEN_AFTER.saturating_sub(since.elapsed()))
    }

    /// Closes the program before, once this one has proven that it can serve: its copy takes memory.
    pub fn forget_proven(&mut self) {
        if self.left().is_some_and(|left| left.is_zero()) {
            self.before = None;
        }
    }

    /// The program to go back to, where this one has not proven that it can serve: a worker has ended by a fault, or in any way before
    /// one was ready.
    pub fn take_before(&mut self, is_fault: bool) -> Option<Program> {
        if !is_fault && self.since.is_some() {
            return None;
        }
        self.forget_proven();
        self.before.take()
    }

    /// Adds the numbers of its descriptors to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.extend(self.before.iter().map(|program| program.as_fd().as_raw_fd()));
    }
}
