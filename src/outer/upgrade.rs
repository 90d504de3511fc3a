//! A live upgrade as the outer process sees it: asked for, refused at once or passed on to the keeper, and answered. What the keeper does
//! with the program it does not know.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::channel::OuterEnd;
use super::program::{self, DefaultProgram, Unfit};

/// After which time an upgrade without an answer counts as refused: more than what the keeper waits for in it, 10 s for the new program and
/// 5 s for the requests in flight.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

pub const NO_KEEPER: &str = "an upgrade needs a keeper, and gatherfsd was started with --no-keeper; restart it";
pub const UNDER_WAY: &str = "another upgrade is under way; wait for its end";
pub const NO_ANSWER: &str = "the keeper does not answer; see the log, and restart gatherfsd";

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
    until: Instant,
}

impl Upgrade {
    pub fn new(asker: Asker) -> Upgrade {
        Upgrade { asker, until: Instant::now() + ANSWER_WAIT }
    }

    /// How long it may still take.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// Asks the keeper to go on as `program`, or as the default one, if it can be executed. The error is a sentence.
pub fn ask(
    channel: &OuterEnd,
    default: &io::Result<DefaultProgram>,
    program: Option<BorrowedFd<'_>>,
    is_confined: bool,
) -> Result<(), String> {
    let ask = |program: BorrowedFd<'_>| {
        program::check(program, is_confined).map_err(|e| e.to_string())?;
        channel.ask_upgrade(program).map_err(|e| format!("the keeper cannot be asked: {e}; see the log"))
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
