//! The wait of the outer process: for the end of the process inside, for signals, for what the keeper says, for clients of the control
//! socket. One thread, one wait for everything; without anything to do there is no time after which it wakes up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::channel::{Heard, KeeperEnd, OuterEnd, Said, channel};
use super::control::{self, Control, ControlSocket, Request};
use super::notify::Notify;
use super::program::{self, DefaultProgram};
use super::report::Report;
use super::store::{Store, store};
use super::upgrade::{self, Asker, Programs, Upgrade};
use crate::sys::oom::Proc;
use crate::sys::process;
use crate::sys::signal::{self, Signals};

/// Messages of the keeper that are taken before signals and the end of the process inside are looked at again: a worker that a guest has
/// taken over can speak without a pause.
const MESSAGES_AT_ONCE: usize = 16;

/// What the outer process needs to know.
#[derive(Debug)]
pub struct Options {
    /// Whether the process inside is a keeper.
    pub has_keeper: bool,
    /// Whether its root directory is the share.
    pub is_confined: bool,
    /// Whether this process is to be in a user namespace of its own.
    pub in_user_namespace: bool,
    /// The mount tag, for `gatherfsctl status`.
    pub tag: String,
    /// The control socket, if there is one.
    pub control: Option<ControlSocket>,
    /// The service manager, if there is one.
    pub notify: Option<Notify>,
    /// Descriptors of an earlier process that the manager keeps.
    pub kept: usize,
}

/// What the outer process opens before the sandbox. The process inside drops it.
#[derive(Debug)]
pub struct Outer {
    options: Options,
    channel: OuterEnd,
    programs: Programs,
    store: Option<Store>,
    overflow_id: u32,
    /// `None` where workers are not to be found there.
    proc: Option<Proc>,
}

impl Outer {
    /// Opens what is out of reach later, and a channel whose other end is for the process inside; where the service manager keeps
    /// descriptors, another one for these. EMFILE or ENFILE where there are too many descriptors.
    pub fn prepare(options: Options) -> io::Result<(Outer, KeeperEnd, Option<OwnedFd>)> {
        let (channel, keeper) = channel()?;
        let keeps = options.notify.as_ref().map_or(0, |notify| notify.keeps);
        // Also where there is only something to be forgotten.
        let (store, of_keeper) = if keeps > 0 || options.kept > 0 {
            let (store, of_keeper) = store(keeps, options.kept)?;
            (Some(store), Some(of_keeper))
        } else {
            (None, None)
        };
        let programs =
            Programs { default: DefaultProgram::find(), running: program::running(), before: None, is_confined: options.is_confined };
        let proc = if options.has_keeper { Proc::open().ok() } else { None };
        Ok((Outer { options, channel, programs, store, overflow_id: control::overflow_id(), proc }, keeper, of_keeper))
    }

    /// Has the service manager forget what it has kept of an earlier process. To be called before this one closes its own descriptors of
    /// that, for which the host may take long.
    pub fn forget_kept(&mut self) {
        if let (Some(store), Some(notify)) = (&mut self.store, &mut self.options.notify) {
            store.forget(notify);
        }
    }

    /// Waits for the end of `inside`, a child of this process: its exit status as a shell reports it. The watched signals must be blocked
    /// (`sys/signal.rs`). Where the kernel spares `inside` when memory is short, its children get `oom_score`, so that it does not spare
    /// them.
    ///
    /// An error where the kernel refuses to watch signals or the process.
    pub fn wait_for(self, inside: Pid, oom_score: Option<i16>) -> io::Result<i32> {
        let Outer { options, channel, programs, store, overflow_id, proc } = self;
        let overflow_id = options.in_user_namespace.then_some(overflow_id);
        let mut waiting = Waiting {
            inside,
            oom_score: proc.zip(oom_score),
            is_unrated_told: false,
            end: rustix::process::pidfd_open(inside, PidfdFlags::empty())?,
            signals: Signals::new()?,
            channel: Some(channel),
            control: options.control.map(|socket| Control::new(socket, overflow_id)),
            report: Report::new(options.notify, options.tag),
            programs,
            has_keeper: options.has_keeper,
            upgrade: None,
            late: None,
            store,
        };
        // The process inside has it, or cannot go on with it: what ends it is not to meet it again.
        if let (Some(store), Some(notify)) = (&mut waiting.store, waiting.report.notify()) {
            store.forget(notify);
        }
        waiting.run()
    }
}

/// The wait.
struct Waiting {
    inside: Pid,
    /// That of workers, and where it is set.
    oom_score: Option<(Proc, i16)>,
    /// The log has that it cannot be set.
    is_unrated_told: bool,
    /// Readable when the process inside has ended.
    end: OwnedFd,
    signals: Signals,
    /// `None` once the keeper has closed its end.
    channel: Option<OuterEnd>,
    control: Option<Control>,
    report: Report,
    programs: Programs,
    has_keeper: bool,
    /// The one that is under way.
    upgrade: Option<Upgrade>,
    /// The program of the last one, to which the keeper has not answered in time.
    late: Option<OwnedFd>,
    store: Option<Store>,
}

impl Waiting {
    fn run(mut self) -> io::Result<i32> {
        loop {
            let tell_in = self.report.tell_status();
            self.sleep(tell_in)?;
            if let Some(status) = process::ended(self.inside)? {
                if status == 128 + libc::SIGSYS {
                    tracing::error!(
                        "a system call that is not on the list ended the serving process; --seccomp log writes it to the kernel's log"
                    );
                }
                self.report.stopping();
                if let (Some(store), Some(notify)) = (&mut self.store, self.report.notify()) {
                    store.hear_rest(notify);
                }
                return Ok(status);
            }
            self.take_signals()?;
            self.hear()?;
            if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.left().is_zero()) {
                self.late = upgrade.program.take();
                self.finish(&Err(upgrade::NO_ANSWER.to_owned()));
            }
            self.take_requests();
            self.store_on();
            if let Some(notify) = self.report.notify() {
                notify.send_on();
            }
        }
    }

    /// Passes on what the keeper wants to be kept, as fast as the manager reads.
    fn store_on(&mut self) {
        let (Some(store), Some(notify)) = (&mut self.store, self.report.notify()) else { return };
        let mut left = MESSAGES_AT_ONCE;
        while left > 0 && notify.awaited().is_none() && store.hear(notify) {
            left -= 1;
        }
    }

    /// Sleeps until there is something to do, or for `time`.
    fn sleep(&self, time: Option<Duration>) -> io::Result<()> {
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut watched = vec![watch(self.end.as_fd()), watch(self.signals.as_fd())];
        watched.extend(self.channel.iter().map(|channel| watch(channel.as_fd())));
        watched.extend(self.control.iter().flat_map(Control::awaited).map(watch));
        let manager = self.report.awaited().and_then(Notify::awaited);
        watched.extend(self.store.as_ref().filter(|_| manager.is_none()).and_then(Store::awaited).map(watch));
        watched.extend(manager.map(|manager| PollFd::from_borrowed_fd(manager, PollFlags::OUT)));
        let times = [
            time,
            self.upgrade.as_ref().map(Upgrade::left),
            self.control.as_ref().and_then(Control::left),
            self.store.as_ref().and_then(Store::left),
        ];
        let left = times.into_iter().flatten().min();
        match poll(&mut watched, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(arrived) = self.signals.next()? {
            if arrived.signal == libc::SIGUSR2 {
                self.begin(Asker::Signal, None, false);
                continue;
            }
            if signal::is_end(arrived.signal) {
                self.report.stopping();
            }
            // ^C: the kernel has sent it to every process in the foreground.
            let is_sent = arrived.signal == libc::SIGINT && arrived.by_kernel;
            if !is_sent && let Some(signal) = Signal::from_named_raw(arrived.signal) {
                // It may just have ended.
                let _ = rustix::process::kill_process(self.inside, signal);
            }
        }
        Ok(())
    }

    /// Takes what the keeper has said.
    fn hear(&mut self) -> io::Result<()> {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(channel) = &self.channel else { break };
            let heard = channel.hear()?;
            if let Heard::Message(Said::Begun | Said::Ready | Said::Status(_) | Said::Version(_)) = heard {
                self.rate_workers();
            }
            match heard {
                Heard::Message(Said::Begun) => {}
                Heard::Message(Said::Ready) => self.report.ready(),
                Heard::Message(Said::Status(text)) => self.report.status(text),
                Heard::Message(Said::Alive) => self.report.alive(),
                Heard::Message(Said::Upgraded(text)) => self.finish(&Ok(text)),
                Heard::Message(Said::Refused(text)) => self.finish(&Err(text)),
                Heard::Message(Said::Version(text)) => self.report.version(text),
                Heard::Nothing => break,
                Heard::Closed => self.channel = None,
            }
        }
        Ok(())
    }

    /// Has the kernel end a worker and not this process or the keeper when memory is short. Not only where one begins, for a keeper of an
    /// earlier version does not say so.
    fn rate_workers(&mut self) {
        let Some((proc, oom_score)) = &self.oom_score else { return };
        match proc.set_of_children(self.inside, *oom_score) {
            Ok(()) => self.is_unrated_told = false,
            // A worker that ends meanwhile is none.
            Err(e) if !self.is_unrated_told => {
                self.is_unrated_told = true;
                tracing::warn!("when memory is short the kernel does not end the worker, as its oom_score_adj cannot be set: {e}");
            }
            Err(_) => {}
        }
    }

    fn take_requests(&mut self) {
        let requests = self.control.as_mut().map_or_else(Vec::new, Control::requests);
        for (number, request) in requests {
            match request {
                Request::Upgrade { program, is_forced } => self.begin(Asker::Client(number), program.as_ref().map(AsFd::as_fd), is_forced),
                Request::Status => self.answer(number, &format!("ok {}", self.report.lines())),
            }
        }
    }

    /// Has the keeper execute `program`, or the default one; `is_forced` as in [`upgrade::ask`].
    fn begin(&mut self, asker: Asker, program: Option<BorrowedFd<'_>>, is_forced: bool) {
        match (self.try_to_begin(program, is_forced), asker) {
            (Ok(program), asker) => {
                self.report.upgrading();
                self.upgrade = Some(Upgrade::new(asker, Some(program)));
            }
            // The manager, which may have sent the signal, waits for a beginning that follows it, and for an end.
            (Err(why), Asker::Signal) if self.upgrade.is_some() => {
                tracing::error!("the upgrade is refused: {why}");
                self.report.upgrading();
            }
            (Err(why), Asker::Signal) => {
                self.report.upgrading();
                self.upgrade = Some(Upgrade::new(asker, None));
                self.finish(&Err(why));
            }
            (Err(why), Asker::Client(number)) => {
                let outcome = Err(why);
                upgrade::log(&outcome);
                self.answer(number, &upgrade::answer(&outcome));
            }
        }
    }

    fn try_to_begin(&self, program: Option<BorrowedFd<'_>>, is_forced: bool) -> Result<OwnedFd, String> {
        match &self.channel {
            _ if !self.has_keeper => Err(upgrade::NO_KEEPER.to_owned()),
            _ if self.upgrade.is_some() => Err(upgrade::UNDER_WAY.to_owned()),
            Some(channel) => upgrade::ask(channel, &self.programs, program, is_forced),
            None => Err(upgrade::NO_ANSWER.to_owned()),
        }
    }

    /// The upgrade that is under way has ended. What comes when none is counts for nothing.
    fn finish(&mut self, outcome: &Result<String, String>) {
        let Some(upgrade) = self.upgrade.take() else { return self.amend(outcome) };
        upgrade::log(outcome);
        self.report.upgraded(outcome);
        if let (Ok(_), Some(program)) = (outcome, upgrade.program) {
            self.programs.before = Some(std::mem::replace(&mut self.programs.running, Ok(program)));
        }
        if let Asker::Client(number) = upgrade.asker {
            self.answer(number, &upgrade::answer(outcome));
        }
    }

    /// The keeper has said how an upgrade ended that was answered before: it was made after all, when the keeper could go on, or it has
    /// gone back to the other program. Anything else counts for nothing.
    fn amend(&mut self, outcome: &Result<String, String>) {
        match (outcome, self.late.take()) {
            (Ok(_), Some(program)) => self.programs.before = Some(std::mem::replace(&mut self.programs.running, Ok(program))),
            (Err(_), None) => match self.programs.before.take() {
                Some(before) => self.programs.running = before,
                None => return,
            },
            _ => return,
        }
        upgrade::log(outcome);
        self.report.upgraded(outcome);
    }

    fn answer(&mut self, number: u64, text: &str) {
        if let Some(control) = &mut self.control {
            control.answer(number, text);
        }
    }
}
