//! The keeper's process: starts a worker, hands it the frontends that connect, passes signals on, and starts another one when it has
//! died. One thread, one wait for everything.

mod keeping;
mod reconnecting;
mod replacing;
mod signals;
mod telling;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::connection;
use super::deaths::{Cause, Deaths, SHORT_LIFE, SHORTAGE};
use super::handover::{Start, Taken};
use super::keeping::Keeping;
use super::life::{self, Life, Side, described, is_ready};
use super::relay::Relay;
use super::retention::Retention;
use super::upgrade::{Arrival, Next, Upgrade};
use super::worker_end::{Beginning, Inheritance, WorkerEnd};
use crate::outer::{KeeperEnd, Said};
use crate::state::RequestRecords;
use crate::sys::process::{self, Child, End};
use crate::sys::signal::Signals;
use crate::sys::{descriptor, fault, thread};

/// How long no connection is accepted after one could not be: what was missing, descriptors for example, will still be missing at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// In which process [`Keeper::run`] has returned, and why.
#[derive(Debug)]
pub enum Turn {
    /// In the keeper: the last worker has ended like this.
    Ended(End),
    /// In a worker, which is to serve.
    Worker(WorkerEnd),
}

/// The keeper.
#[derive(Debug)]
pub struct Keeper {
    listener: UnixListener,
    keep_listening: bool,
    signals: Signals,
    /// To the outer process.
    channel: KeeperEnd,
    /// The outer process has its end of the channel open.
    has_outer: bool,
    /// What the outer process was told of the daemon.
    told: String,
    /// What was open before there was a worker. Nobody closes it.
    first: Vec<RawFd>,
    /// What another program that takes over needs as well. `None` where none can.
    start: Option<Start>,
    /// Processes of the same user may look into a worker.
    is_visible: bool,
    upgrade: Upgrade,
    /// Where this program has taken the place of another one.
    arrival: Option<Arrival>,
    link: Link,
    /// The session of a frontend that may connect again.
    retention: Retention,
    accept_at: Option<Instant>,
    /// By which a worker names the request that it executes alone.
    records: Arc<RequestRecords>,
    deaths: Deaths,
    /// How long was waited after a worker could not be started, and when that is worth a line in the log again.
    failed_starts: Option<(Duration, Instant)>,
    /// The io_uring rings of workers that died, until another one has waited for them.
    rings: Vec<RawFd>,
    /// Workers of which every thread has ended, until the kernel has taken down their memory.
    ending: Vec<Child>,
    /// Processes that have examined a program, and end.
    examined: Vec<Child>,
    is_stopping: bool,
    /// The session as another process would get it.
    keeping: Keeping,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    /// The worker's process has ended.
    Ended,
    /// A thread of it has.
    ThreadEnded,
    /// Something else.
    Other,
}

/// What follows a worker's end.
#[derive(Debug)]
enum Verdict {
    /// Another worker.
    Next(Beginning),
    /// Another program; a worker that begins like this, where it cannot be executed.
    Execute(Next, Beginning),
    /// gatherfsd ends.
    End(End),
}

/// The frontend's connection.
#[derive(Debug)]
enum Link {
    /// None yet, or the next one is awaited.
    Awaited,
    /// One.
    Connected(Box<Relay>),
    /// There was one, and no other is wanted.
    Over,
}

impl Keeper {
    /// A keeper that accepts frontends on `listener`, one after the other with `keep_listening`, else only one. The workers have
    /// `records`. What is open now has to stay open in every process. `channel` leads to the outer process; `start` is for a program
    /// that takes over.
    pub fn new(
        listener: UnixListener,
        keep_listening: bool,
        records: Arc<RequestRecords>,
        channel: KeeperEnd,
        start: Option<Start>,
    ) -> io::Result<Keeper> {
        let is_visible = process::is_visible()?;
        let signals = Signals::new()?;
        thread::record_threads()?;
        fault::share_note()?;
        let keeping = Keeping::new(&records)?;
        Ok(Keeper {
            listener,
            keep_listening,
            signals,
            channel,
            has_outer: true,
            told: String::new(),
            first: descriptor::open_ones(),
            start,
            is_visible,
            upgrade: Upgrade::None,
            arrival: None,
            link: Link::Awaited,
            retention: Retention::default(),
            accept_at: None,
            records,
            deaths: Deaths::default(),
            failed_starts: None,
            rings: Vec::new(),
            ending: Vec::new(),
            examined: Vec::new(),
            is_stopping: false,
            keeping,
        })
    }

    /// The keeper that goes on where another program in this process has stopped. `first` as what is open now in [`Keeper::new`].
    ///
    /// An error as of [`Keeper::new`].
    pub fn taking_over(taken: Taken, records: Arc<RequestRecords>, mut first: Vec<RawFd>) -> io::Result<Keeper> {
        first.sort_unstable();
        first.dedup();
        let Taken { start, cause, listener, keep_listening, connection, retained, rings, is_visible, channel, examined, deaths } = taken;
        // What is no child any more was waited for.
        let examined = examined.into_iter().filter_map(|pid| Child::of(pid).ok()).collect();
        let mut keeper = Keeper::new(listener.into(), keep_listening, records, KeeperEnd::of(channel), Some(start))?;
        let link = connection.map_or(Link::Awaited, Link::Connected);
        keeper.retention.retained = retained;
        Ok(Keeper { first, is_visible, rings, link, examined, deaths, arrival: Some(Arrival::new(cause)), ..keeper })
    }

    /// Starts workers, one after the other, until the last one has ended. Returns in each of them.
    ///
    /// An error where the keeper cannot wait, accept or start a worker; a worker then has to end with this process.
    pub fn run(mut self) -> io::Result<Turn> {
        let mut beginning = match &self.arrival {
            Some(arrival) => self.going_on_after(arrival.is_going_back()),
            None if self.keeping.taken_over.is_some() => self.going_on(),
            None => Beginning::First,
        };
        loop {
            let mut life = match life::start(self.inheritance(beginning), self.is_visible) {
                Ok(Side::Keeper(life)) => life,
                Err(e) if beginning != Beginning::First => {
                    let wait = self.note_failed_start(&e);
                    if self.rest(wait)? {
                        continue;
                    }
                    self.forget_session();
                    return Ok(Turn::Ended(End::Exit(0)));
                }
                Err(e) => return Err(e),
                Ok(Side::Worker(end)) => {
                    // The keeper's.
                    std::mem::forget(self);
                    return Ok(Turn::Worker(end));
                }
            };
            self.failed_starts = None;
            self.channel.say(&Said::Begun);
            let end = self.attend(&mut life)?;
            match self.follow(life, end)? {
                Verdict::Next(next) => beginning = next,
                Verdict::Execute(next, otherwise) => {
                    let e = self.execute(&next);
                    self.report(Err(format!("it cannot be executed: {e}")));
                    beginning = otherwise;
                }
                Verdict::End(end) => {
                    self.forget_session();
                    return Ok(Turn::Ended(end));
                }
            }
            thread::note_all_ended();
        }
    }

    fn inheritance(&self, beginning: Beginning) -> Inheritance {
        let mut descriptors = self.first.clone();
        descriptors.extend([self.listener.as_raw_fd(), self.signals.as_fd().as_raw_fd(), self.channel.as_fd().as_raw_fd()]);
        descriptors.extend(self.ending.iter().chain(&self.examined).map(|child| child.end().as_raw_fd()));
        descriptors.extend(self.start.iter().flat_map(|start| [&start.listing].into_iter().chain(&start.store)).map(AsRawFd::as_raw_fd));
        self.keeping.name_descriptors(&self.records, &mut descriptors);
        self.upgrade.name_descriptors(&mut descriptors);
        self.arrival.iter().for_each(|arrival| arrival.name_descriptors(&mut descriptors));
        self.retention.name_descriptors(&mut descriptors);
        if let Link::Connected(relay) = &self.link {
            relay.name_descriptors(&mut descriptors);
        }
        let queues = self.queues();
        Inheritance { beginning, descriptors, queues, rings: self.rings.clone(), quarantined: self.deaths.quarantined }
    }

    /// Attends to the worker until it has ended. `None` where every thread has, and it is not known yet how.
    fn attend(&mut self, life: &mut Life) -> io::Result<Option<End>> {
        loop {
            match self.wait(life)? {
                Wake::Ended => {
                    self.pass_signals(life)?;
                    return life.worker.wait().map(Some);
                }
                Wake::ThreadEnded => life.note_thread_end()?,
                Wake::Other => {}
            }
            self.reap()?;
            self.pass_signals(life)?;
            if life.have_threads_ended() {
                return Ok(None);
            }
            let was_ready = life.is_ready;
            life.hear()?;
            self.advance_upgrade(life);
            self.arrival.iter_mut().for_each(|arrival| arrival.attend(&life.worker, life.is_ready));
            if std::mem::take(&mut life.is_alive) {
                self.channel.say(&Said::Alive);
            }
            if !life.serves() {
                self.tell_delay(life);
                continue;
            }
            self.hear_outer()?;
            // Also where the first worker has died before it was ready. Until then nothing is told.
            if !was_ready && self.arrival.is_none() && self.told.is_empty() {
                self.channel.say(&Said::Ready);
            }
            if !was_ready {
                self.keeping.taken_over = None;
                if let Err(e) = self.resume(life) {
                    tracing::error!("a worker cannot be given the VMM's connection: {e}; it is tried with another one");
                    // It may just have ended.
                    let _ = life.worker.send(Signal::KILL);
                }
                self.note_arrival();
            }
            self.end_overdue(life);
            match &mut self.link {
                Link::Awaited if self.accept_at.is_none_or(|at| at <= Instant::now()) && is_ready(self.listener.as_fd(), None)? => {
                    self.connect(life)?;
                }
                Link::Connected(relay) => {
                    let reads = relay.brings_more()?;
                    if reads {
                        self.records.note_change();
                    }
                    let passed = relay.pass(&mut self.retention.retained, reads);
                    self.follow_frontend(life, passed);
                }
                _ => {}
            }
            self.tell_status();
            self.keep_session(life);
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self, life: &Life) -> io::Result<Wake> {
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut watched = vec![watch(life.worker.end()), PollFd::new(&self.signals, PollFlags::IN)];
        let thread_end = life.thread_end();
        watched.extend(thread_end.into_iter().chain(life.control()).map(watch));
        watched.extend(self.ending.iter().chain(&self.examined).map(|child| watch(child.end())));
        watched.extend(self.upgrade.awaited().into_iter().map(watch));
        // It may bring descriptors, which the sweep of a worker that begins would close.
        watched.extend((self.has_outer && life.serves()).then(|| watch(self.channel.as_fd())));
        watched.extend(life.serves().then(|| watch(self.keeping.awaited())));
        let settled = self.retention.left().into_iter().chain(self.keeping.left()).min().filter(|_| life.serves());
        let times = [self.upgrade.left(), self.arrival.as_ref().and_then(Arrival::left), life.look_again(), settled];
        let mut timeout = times.into_iter().flatten().min();
        match &self.link {
            _ if !life.serves() => {}
            Link::Awaited => match self.accept_at.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(left) if !left.is_zero() => timeout = Some(timeout.map_or(left, |time| time.min(left))),
                _ => watched.push(PollFd::new(&self.listener, PollFlags::IN)),
            },
            Link::Connected(relay) => watched.extend(relay.awaited().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))),
            Link::Over => {}
        }
        match poll(&mut watched, timeout.and_then(|time| Timespec::try_from(time).ok()).as_ref()) {
            Ok(_) if !watched[0].revents().is_empty() => Ok(Wake::Ended),
            Ok(_) if thread_end.is_some() && !watched[2].revents().is_empty() => Ok(Wake::ThreadEnded),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Wake::Other),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the workers of which only the end of their threads was known, as far as they have ended.
    fn reap(&mut self) -> io::Result<()> {
        let has_ended = |child: &mut Child| is_ready(child.end(), None).unwrap_or(true);
        for worker in self.ending.extract_if(.., has_ended) {
            let (is_expected, end) = (self.retention.has_expected(worker.pid()), worker.wait()?);
            if !is_expected {
                tracing::error!("the worker that died was ended by {}", described(end));
            }
        }
        // One that ended by itself was waited for.
        self.examined.extract_if(.., has_ended).for_each(|child| _ = child.wait());
        Ok(())
    }

    /// Accepts the frontend that waits, and gives the worker its end of a connection to it.
    fn connect(&mut self, life: &Life) -> io::Result<()> {
        let connected = || -> io::Result<Relay> {
            let (frontend, _) = self.listener.accept()?;
            frontend.set_nonblocking(false)?;
            let (worker, acceptable) = connection::acceptable()?;
            life.hand_over(acceptable.as_fd())?;
            Ok(Relay::new(frontend.into(), worker, self.retention.is_offered()))
        };
        match connected() {
            Ok(relay) => {
                self.link = Link::Connected(Box::new(relay));
                Ok(())
            }
            // It has gone, or another process that has this socket as well took it.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) if self.keep_listening => {
                tracing::error!("cannot take a connection: {e}");
                self.accept_at = Some(Instant::now() + ACCEPT_AGAIN);
                Ok(())
            }
            Err(e) => Err(io::Error::new(e.kind(), format!("cannot take a connection: {e}"))),
        }
    }

    /// The worker is ready: it goes on with the session, if there is one.
    fn resume(&mut self, life: &Life) -> io::Result<()> {
        let Link::Connected(relay) = &mut self.link else { return Ok(()) };
        let (worker, acceptable) = connection::acceptable()?;
        life.hand_over(acceptable.as_fd())?;
        relay.join_worker(worker)
    }

    fn hang_up(&mut self) {
        self.link = if self.keep_listening { Link::Awaited } else { Link::Over };
    }

    /// What the next worker begins with, when it is time to start it.
    fn follow(&mut self, mut life: Life, end: Option<End>) -> io::Result<Verdict> {
        life.hear()?;
        self.end_late_upgrade();
        if let Link::Connected(relay) = &mut self.link {
            relay.leave_worker()?;
            if !relay.is_under_way() {
                self.hang_up();
            }
        }
        let (lived, was_ready, is_later, is_leaving) = (life.since.elapsed(), life.is_ready, life.is_later, life.is_leaving());
        if was_ready {
            // It has waited for those of earlier ones.
            self.rings.clear();
        }
        self.rings.extend(&life.rings);
        let is_over = self.is_stopping || matches!(self.link, Link::Over);
        let (named, noted) = (self.records.take_alone(), fault::take_note().map(End::Signal));
        if let Some(next) = self.retention.take_dismissed() {
            let verdict = self.follow_dismissed(life, end, next)?;
            let is_drained = matches!((&verdict, &self.upgrade), (Verdict::Next(_), Upgrade::Draining { .. }));
            return Ok(if is_drained { self.follow_drained() } else { verdict });
        }
        // One that was ended for the upgrade has no order of its own.
        if let Upgrade::Draining { .. } = self.upgrade
            && !is_over
            && (!is_leaving || matches!(end, Some(End::Signal(_))))
        {
            if end.is_none() {
                self.ending.push(life.worker);
            }
            return Ok(self.follow_drained());
        }
        let was_held_up = life.is_held_up();
        let end = match end {
            // What follows a short life depends on how it has ended.
            None if is_over || lived < SHORT_LIFE && noted.is_none() => Some(life.worker.wait()?),
            None => {
                self.ending.push(life.worker);
                noted
            }
            end => end,
        };
        let cause = match end {
            Some(End::Exit(status)) if status == i32::from(SHORTAGE) && (is_later || was_ready) && !is_over => Cause::Shortage,
            // It has said itself what was wrong, which may be another thing the next time.
            Some(End::Exit(status)) if status != 0 && !was_ready && !is_over && is_later => Cause::Fault { is_named: false },
            // The guest had not got it yet.
            Some(_) if self.is_stopping && is_later && !was_ready => return Ok(Verdict::End(End::Exit(0))),
            // Somebody had it drain for a program that does not come.
            Some(End::Exit(0)) if !is_leaving && !is_over => Cause::Killed,
            // What it says to the keeper is nothing to whoever started the daemon.
            Some(End::Exit(status)) => return Ok(Verdict::End(End::Exit(if status == i32::from(SHORTAGE) { 1 } else { status }))),
            // It had died before that was asked for, by whatever.
            None | Some(End::Signal(libc::SIGKILL)) if self.is_stopping && was_held_up => return Ok(Verdict::End(End::Exit(0))),
            Some(end) if is_over => {
                tracing::error!("the worker was ended by {} while it stopped; gatherfsd ends too", described(end));
                return Ok(Verdict::End(end));
            }
            None | Some(End::Signal(libc::SIGKILL)) => Cause::Killed,
            Some(End::Signal(_)) => Cause::Fault { is_named: named.is_some() },
        };
        let mut how = end.map_or_else(|| "died".to_owned(), |end| format!("was ended by {}", described(end)));
        if cause == (Cause::Fault { is_named: true }) {
            self.deaths.quarantined = named;
            how += " while it executed one request alone, which is answered with an error";
        }
        let is_fault = matches!(cause, Cause::Fault { .. });
        if let Some(next) = self.arrival.as_mut().and_then(|arrival| arrival.go_back(is_fault, &how)) {
            return Ok(Verdict::Execute(next, self.going_on_after(true)));
        }
        let next = self.deaths.note(Instant::now(), lived, cause);
        if let Some((count, time)) = self.deaths.many() {
            tracing::error!("{count} workers died within {} seconds", time.as_secs() + 1);
        }
        let Some((wait, trust)) = next else {
            tracing::error!("the worker {how}, soon after it began, as those before it; gatherfsd ends");
            return Ok(Verdict::End(end.unwrap_or(End::Exit(1))));
        };
        let (beginning, what) = if self.has_session() { trust.beginning() } else { (Beginning::Idle, "another one is started") };
        let beginning = self.in_this_table(beginning);
        tracing::error!("the worker {how}; {what}");
        self.deaths.restarts = self.deaths.restarts.saturating_add(1);
        Ok(if self.rest(wait)? { Verdict::Next(beginning) } else { Verdict::End(End::Exit(0)) })
    }
}
