//! What the outer process knows of the daemon, and when it tells the service manager: that it is ready, what it does, that it lives, that
//! it ends. Where there is no manager this costs nothing.

use std::time::{Duration, Instant};

use super::notify::{self, Notify};
use crate::sys::clock::monotonic_us;

/// Between two changes of STATUS= at least: a worker that a guest has taken over can change it all the time, and the manager has other
/// services.
const STATUS_EVERY: Duration = Duration::from_millis(100);

/// The state of the daemon, as it is told.
#[derive(Debug)]
pub struct Report {
    notify: Option<Notify>,
    tag: String,
    since: Instant,
    /// Of the program that serves.
    version: String,
    /// What the keeper said last.
    status: String,
    /// How the last upgrade ended.
    upgrade: Option<String>,
    /// The STATUS= that the manager has.
    told: String,
    tell_at: Instant,
    is_stopping: bool,
    alive_every: Option<Duration>,
    alive_at: Option<Instant>,
}

impl Report {
    /// Of a daemon that begins now, to `notify`.
    pub fn new(notify: Option<Notify>, tag: String) -> Report {
        let now = Instant::now();
        Report {
            notify,
            tag,
            since: now,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            status: String::new(),
            upgrade: None,
            told: String::new(),
            tell_at: now,
            is_stopping: false,
            alive_every: notify::alive_every(),
            alive_at: None,
        }
    }

    /// The manager, where it is to be written to when it reads again.
    pub fn notify(&mut self) -> Option<&mut Notify> {
        self.notify.as_mut()
    }

    /// As [`Report::notify`].
    pub fn awaited(&self) -> Option<&Notify> {
        self.notify.as_ref()
    }

    /// It is ready to serve.
    pub fn ready(&mut self) {
        self.say("READY=1");
    }

    /// The keeper said what it does.
    pub fn status(&mut self, text: String) {
        self.status = text;
    }

    /// The keeper said which version it is now.
    pub fn version(&mut self, text: String) {
        self.version = text;
    }

    /// The process that serves has shown that it lives. What comes more often than it is to come is not passed on.
    pub fn alive(&mut self) {
        let now = Instant::now();
        let Some(every) = self.alive_every else { return };
        if self.alive_at.is_none_or(|at| now.duration_since(at) >= every / 2) {
            self.alive_at = Some(now);
            self.say("WATCHDOG=1");
        }
    }

    /// An upgrade begins.
    pub fn upgrading(&mut self) {
        // By the time the manager knows that it is about its own request.
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_us()));
        self.upgrade = Some("an upgrade is under way".to_owned());
    }

    /// An upgrade has ended like this.
    pub fn upgraded(&mut self, outcome: &Result<String, String>) {
        self.upgrade = Some(match outcome {
            Ok(text) => format!("upgraded: {text}"),
            Err(text) => format!("the last upgrade was refused: {text}"),
        });
        self.say("READY=1");
    }

    /// It is about to end.
    pub fn stopping(&mut self) {
        if !self.is_stopping {
            self.is_stopping = true;
            self.say("STOPPING=1");
        }
    }

    /// Tells the manager what the daemon does, where that has changed. Returns after which time there is something to tell.
    pub fn tell_status(&mut self) -> Option<Duration> {
        self.notify.as_ref()?;
        let status = self.line();
        if status == self.told {
            return None;
        }
        let left = self.tell_at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        self.tell_at = Instant::now() + STATUS_EVERY;
        self.say(&format!("STATUS={status}"));
        self.told = status;
        None
    }

    /// The daemon in lines, for a person or a program.
    pub fn lines(&self) -> String {
        let (pid, own, Report { version, tag, .. }) = (std::process::id(), env!("CARGO_PKG_VERSION"), self);
        // This process goes on as the program that was started.
        let outer = if version == own { String::new() } else { format!("outer_version: {own}\n") };
        format!("pid: {pid}\nversion: {version}\n{outer}tag: {tag}\nuptime_s: {}\nstatus: {}", self.since.elapsed().as_secs(), self.line())
    }

    fn line(&self) -> String {
        let parts = [Some(self.status.as_str()), self.upgrade.as_deref(), self.is_stopping.then_some("shutting down")];
        parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }

    fn say(&mut self, lines: &str) {
        if let Some(notify) = &mut self.notify {
            notify.say(lines.to_owned());
        }
    }
}
