//! The wait of the outer process: for the end of the process inside, for signals, for what the keeper says. One thread, one wait for
//! everything; without anything to do there is no time after which it wakes up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::channel::{Heard, KeeperEnd, OuterEnd, Said, channel};
use super::program::DefaultProgram;
use super::upgrade::{self, Asker, Upgrade};
use crate::sys::process;
use crate::sys::signal::Signals;

/// Messages of the keeper that are taken before signals and the end of the process inside are looked at again: a worker that a guest has
/// taken over can speak without a pause.
const MESSAGES_AT_ONCE: usize = 16;

/// What the outer process needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether the process inside is a keeper.
    pub has_keeper: bool,
    /// Whether its root directory is the share.
    pub is_confined: bool,
}

/// What the outer process opens before the sandbox. The process inside drops it.
#[derive(Debug)]
pub struct Outer {
    options: Options,
    channel: OuterEnd,
    program: io::Result<DefaultProgram>,
}

impl Outer {
    /// Opens what is out of reach later, and a channel whose other end is for the process inside. EMFILE or ENFILE where there are too
    /// many descriptors.
    pub fn prepare(options: Options) -> io::Result<(Outer, KeeperEnd)> {
        let (channel, keeper) = channel()?;
        Ok((Outer { options, channel, program: DefaultProgram::find() }, keeper))
    }

    /// Waits for the end of `inside`, a child of this process: its exit status as a shell reports it. The watched signals must be blocked
    /// (`sys/signal.rs`).
    ///
    /// An error where the kernel refuses to watch signals or the process.
    pub fn wait_for(self, inside: Pid) -> io::Result<i32> {
        let end = rustix::process::pidfd_open(inside, PidfdFlags::empty())?;
        Waiting { outer: self, inside, end, signals: Signals::new()?, is_connected: true, upgrade: None }.run()
    }
}

/// The wait.
struct Waiting {
    outer: Outer,
    inside: Pid,
    /// Readable when the process inside has ended.
    end: OwnedFd,
    signals: Signals,
    /// The keeper has its end of the channel open.
    is_connected: bool,
    /// The one that is under way.
    upgrade: Option<Upgrade>,
}

impl Waiting {
    fn run(mut self) -> io::Result<i32> {
        loop {
            self.sleep()?;
            if let Some(status) = process::ended(self.inside)? {
                if status == 128 + libc::SIGSYS {
                    tracing::error!(
                        "a system call that is not on the list ended the serving process; --seccomp log writes it to the kernel's log"
                    );
                }
                return Ok(status);
            }
            self.take_signals()?;
            self.hear()?;
            if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.left().is_zero()) {
                self.answer(Err(upgrade::NO_ANSWER.to_owned()));
            }
        }
    }

    /// Sleeps until there is something to do.
    fn sleep(&self) -> io::Result<()> {
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut watched = vec![watch(self.end.as_fd()), watch(self.signals.as_fd())];
        watched.extend(self.is_connected.then(|| watch(self.outer.channel.as_fd())));
        let left = self.upgrade.as_ref().map(Upgrade::left);
        match poll(&mut watched, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(arrived) = self.signals.next()? {
            match arrived.signal {
                libc::SIGUSR2 => self.begin(Asker::Signal, None),
                // ^C: the kernel has sent it to every process in the foreground.
                libc::SIGINT if arrived.by_kernel => {}
                signal => {
                    if let Some(signal) = Signal::from_named_raw(signal) {
                        // It may just have ended.
                        let _ = rustix::process::kill_process(self.inside, signal);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes what the keeper has said.
    fn hear(&mut self) -> io::Result<()> {
        for _ in 0..MESSAGES_AT_ONCE {
            match self.outer.channel.hear()? {
                Heard::Message(Said::Upgraded(text)) => self.answer(Ok(text)),
                Heard::Message(Said::Refused(text)) => self.answer(Err(text)),
                Heard::Message(Said::Ready | Said::Alive | Said::Status(_)) => {}
                Heard::Nothing => break,
                Heard::Closed => {
                    self.is_connected = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Has the keeper execute `program`, or the default one.
    fn begin(&mut self, asker: Asker, program: Option<OwnedFd>) {
        let begun = self.try_to_begin(program.as_ref().map(AsFd::as_fd));
        match begun {
            Ok(()) => self.upgrade = Some(Upgrade::new(asker)),
            Err(why) => upgrade::log(&Err(why)),
        }
    }

    fn try_to_begin(&self, program: Option<BorrowedFd<'_>>) -> Result<(), String> {
        let Options { has_keeper, is_confined } = self.outer.options;
        if !has_keeper {
            return Err(upgrade::NO_KEEPER.to_owned());
        }
        if self.upgrade.is_some() {
            return Err(upgrade::UNDER_WAY.to_owned());
        }
        upgrade::ask(&self.outer.channel, &self.outer.program, program, is_confined)
    }

    /// The upgrade that is under way has ended.
    fn answer(&mut self, outcome: Result<String, String>) {
        if self.upgrade.take().is_some() {
            upgrade::log(&outcome);
        }
    }
}
