//! A live upgrade as the outer process sees it: asked for, refused at once or passed on to the keeper, and answered. What the keeper does
//! with the program it does not know.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::channel::OuterEnd;
use super::deadline::Deadline;
use super::program::{self, DefaultProgram, Unfit};

/// After which time an upgrade without an answer counts as refused: more than what the keeper waits for in it, 10 s for the examination,
/// 3 s for the requests in flight and 10 s for the first worker.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// After which time the keeper does not go on to another program any more: soon enough that the first worker of one is ready, or given up
/// for the program before, while the answer is waited for.
const EXECUTE_WITHIN: Duration = Duration::from_secs(45);

pub const NO_KEEPER: &str = "an upgrade needs a keeper, and gatherfsd was started with --no-keeper; restart it";
pub const UNDER_WAY: &str = "another upgrade is under way; wait for its end";
pub const NO_ANSWER: &str =
    "the keeper does not answer; where it waits for the host (gatherfsctl status), ask again when that goes on; else see the log";

/// Who asked for an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Whoever sent SIGUSR2.
    Signal,
    /// A client of the control socket, by its number.
    Client(u64),
}

/// An upgrade that the keeper has been asked for.
#[derive(Debug)]
pub struct Upgrade {
    pub asker: Asker,
    /// The program, if there is one.
    pub program: Option<OwnedFd>,
    until: Instant,
}

impl Upgrade {
    pub fn new(asker: Asker, program: Option<OwnedFd>) -> Upgrade {
        Upgrade { asker, program, until: Instant::now() + ANSWER_WAIT }
    }

    /// How long it may still take.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// What the outer process knows of programs.
#[derive(Debug)]
pub struct Programs {
    /// The one to be upgraded to where none is named.
    pub default: io::Result<DefaultProgram>,
    /// The one that runs.
    pub running: io::Result<OwnedFd>,
    /// The one that ran before it.
    pub before: Option<io::Result<OwnedFd>>,
    /// The keeper's root directory is the share.
    pub is_confined: bool,
}

/// Asks the keeper to go on as `program`, or as the default one, if it can be executed. With `is_forced` the keeper ends a worker that
/// does not finish what is in flight. Returns what it was given. The error is a sentence. Reads the whole program: as long as the host
/// takes for that, nothing else is done.
pub fn ask(channel: &OuterEnd, programs: &Programs, program: Option<BorrowedFd<'_>>, is_forced: bool) -> Result<OwnedFd, String> {
    let Programs { default, running, is_confined, .. } = programs;
    let ask = |program: BorrowedFd<'_>| {
        program::check(program, *is_confined).map_err(|e| e.to_string())?;
        let copied = |program| program::sealed(program).map_err(|e| format!("there is no memory for a copy of the program: {e}"));
        let program = copied(program)?;
        // In the sandbox the keeper must not execute this one either if it has an interpreter.
        let running = running.as_ref().ok().filter(|running| program::check(running.as_fd(), *is_confined).is_ok());
        let before = running.map(|running| copied(running.as_fd())).transpose()?;
        let asked = channel.ask_upgrade(program.as_fd(), before.as_ref().map(AsFd::as_fd), is_forced, Deadline::after(EXECUTE_WITHIN));
        asked.map(|()| program).map_err(|e| format!("the keeper cannot be asked: {e}; see the log"))
    };
    match (program, default) {
        (Some(program), _) => ask(program),
        (None, Ok(default)) => ask(default.open().map_err(|e| e.to_string())?.as_fd()),
        (None, Err(e)) => Err(Unfit::NoDefault(e.kind().into()).to_string()),
    }
}

/// The answer to a client.
pub fn answer(outcome: &Result<String, String>) -> String {
    match outcome {
        Ok(text) => format!("ok {text}"),
        Err(text) => format!("refused {text}"),
    }
}

/// Logs how an upgrade ended.
pub fn log(outcome: &Result<String, String>) {
    match outcome {
        Ok(text) => tracing::info!("upgraded: {text}"),
        Err(text) => tracing::error!("the upgrade is refused: {text}"),
    }
}
