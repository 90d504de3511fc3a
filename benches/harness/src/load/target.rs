//! What a load runs on, a daemon or the host itself, and one measurement of it.

use std::time::{Duration, Instant};

use super::cpu::{cpu_ns, process_tree, switches};
use super::daemon::Daemon;
use super::figures::{Measure, repeat};
use super::local::Local;
use super::work::Load;
use crate::Failure;

/// What a load runs on.
#[derive(Debug)]
pub enum Target {
    /// A daemon through its guest.
    Daemon(Box<Daemon>),
    /// The host's system calls in this process.
    Local(Local),
}

impl Target {
    /// What it is called in tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Daemon(daemon) => &daemon.name,
            Self::Local(_) => "local",
        }
    }

    /// The daemon, if it is one.
    pub fn daemon(&mut self) -> Option<&mut Daemon> {
        match self {
            Self::Daemon(daemon) => Some(daemon),
            Self::Local(_) => None,
        }
    }

    /// Runs `load` for `seconds`.
    pub fn measure(&mut self, load: Load, seconds: f64) -> Result<Measure, Failure> {
        if let Self::Daemon(daemon) = self {
            daemon.forget_names()?;
        }
        let before = self.used()?;
        let start = Instant::now();
        let end = start + Duration::from_secs_f64(seconds);
        let counts = match (&mut *self, load) {
            (Self::Daemon(daemon), Load::Io(io)) => daemon.io(io, None, end)?,
            (Self::Daemon(daemon), Load::Paced(io, rate)) => daemon.io(io, Some(rate), end)?,
            (Self::Daemon(daemon), Load::Meta(meta)) => repeat(end, || daemon.meta(meta))?,
            (Self::Local(local), Load::Io(io) | Load::Paced(io, _)) => local.io(io, end)?,
            (Self::Local(local), Load::Meta(meta)) => repeat(end, || local.meta(meta))?,
        };
        let seconds = start.elapsed().as_secs_f64();
        let after = self.used()?;
        let notifications = (after.notifications.0 - before.notifications.0, after.notifications.1 - before.notifications.1);
        let switches = after.switches.saturating_sub(before.switches);
        Ok(Measure { counts, seconds, cpu_us: after.cpu_us - before.cpu_us, switches, notifications })
    }

    /// One operation of `load` after the other, each after a `pause` in which the target has nothing to do: their number.
    pub fn lone(&mut self, load: Load, count: u64, pause: Duration) -> Result<u64, Failure> {
        let mut operations = 0;
        for _ in 0..count {
            std::thread::sleep(pause);
            // Requests that are due to end at once are sent once.
            operations += match (&mut *self, load) {
                (Self::Daemon(daemon), Load::Io(io) | Load::Paced(io, _)) => daemon.io(io, None, Instant::now())?.operations,
                (Self::Daemon(daemon), Load::Meta(meta)) => daemon.meta(meta).map(|()| 1)?,
                (Self::Local(_), _) => 0,
            };
        }
        Ok(operations)
    }

    fn used(&self) -> Result<Used, Failure> {
        let (processes, notifications) = match self {
            Self::Daemon(daemon) => (process_tree(daemon.pid), daemon.notifications()),
            Self::Local(_) => (vec![std::process::id()], (0, 0)),
        };
        Ok(Used { switches: switches(&processes), cpu_us: cpu_ns(&processes)? as f64 / 1e3, notifications })
    }
}

/// What a target has used since it started.
struct Used {
    switches: u64,
    cpu_us: f64,
    notifications: (u64, u64),
}
