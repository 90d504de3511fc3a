//! What a load runs on, a daemon or the host itself, and the rounds over all of them.

use std::path::Path;
use std::time::{Duration, Instant};

use gatherfs_support::daemon::built_program;

use crate::Failure;
use crate::cpu::{cpu_ns, process_tree};
use crate::daemon::{Daemon, start};
use crate::figures::{Measure, median, repeat};
use crate::load::Load;
use crate::local::Local;
use crate::options::Setup;

/// What a load runs on.
pub enum Target {
    Daemon(Box<Daemon>),
    Local(Local),
}

impl Target {
    pub fn name(&self) -> &str {
        match self {
            Self::Daemon(daemon) => &daemon.name,
            Self::Local(_) => "local",
        }
    }

    pub fn daemon(&mut self) -> Option<&mut Daemon> {
        match self {
            Self::Daemon(daemon) => Some(daemon),
            Self::Local(_) => None,
        }
    }

    /// Makes and opens what the loads work on. Local comes last, when the file is there.
    pub fn prepare(&mut self, setup: &Setup, share: &Path, entries: usize) -> Result<(), Failure> {
        match self {
            Self::Daemon(daemon) => daemon.prepare(setup, entries),
            Self::Local(local) => local.prepare(setup, share),
        }
    }

    fn measure(&mut self, load: Load, setup: &Setup) -> Result<Measure, Failure> {
        let cpu = self.cpu_us()?;
        let start = Instant::now();
        let end = start + Duration::from_secs_f64(setup.seconds);
        let counts = match (&mut *self, load) {
            (Self::Daemon(daemon), Load::Io(io)) => daemon.io(io, end)?,
            (Self::Daemon(daemon), Load::Meta(meta)) => repeat(end, || daemon.meta(meta))?,
            (Self::Local(local), Load::Io(io)) => local.io(io, end)?,
            (Self::Local(local), Load::Meta(meta)) => repeat(end, || local.meta(meta))?,
        };
        let seconds = start.elapsed().as_secs_f64();
        Ok(Measure { counts, seconds, cpu_us: self.cpu_us()? - cpu })
    }

    /// CPU time the target has used so far, in microseconds.
    fn cpu_us(&self) -> Result<f64, Failure> {
        let processes = match self {
            Self::Daemon(daemon) => process_tree(daemon.pid),
            Self::Local(_) => vec![std::process::id()],
        };
        Ok(cpu_ns(&processes)? as f64 / 1e3)
    }
}

/// How the gatherfsd beside this program is started.
const BUILT_OPTIONS: &str = "--shared-dir {dir} --socket-path {sock} --sandbox none --log-level warn";

/// The gatherfsd of the same build: target/release/gatherfsd for target/release/examples/virtual_guest.
fn built_daemon() -> Result<String, Failure> {
    let path = built_program();
    if !path.exists() {
        return Err(format!("{} is missing; run cargo build --release, or give --daemon, --vs, --socket or --local", path.display()).into());
    }
    if path.to_string_lossy().contains(char::is_whitespace) {
        return Err(format!("{} has a space in its path; give --daemon, --vs, --socket or --local", path.display()).into());
    }
    eprintln!("virtual_guest: measuring {}", path.display());
    Ok(path.to_string_lossy().into_owned())
}

/// Connects to the daemon of `--socket` and starts those of `--daemon` and `--vs`; without any of them, the gatherfsd that was just
/// built.
pub fn connect_all(setup: &Setup, share: &Path, sockets: &Path) -> Result<Vec<Target>, Failure> {
    let mut targets = Vec::new();
    let mut add = |daemon| targets.push(Target::Daemon(Box::new(daemon)));
    if let Some(path) = &setup.socket {
        add(Daemon::connect("daemon".into(), path, None, setup)?);
    }
    let named = setup.vs.iter().map(|vs| vs.split_once('=').ok_or("--vs wants NAME=CMD"));
    let mut commands = named.collect::<Result<Vec<_>, _>>()?;
    if let Some(command) = &setup.daemon {
        commands.insert(0, ("daemon", command));
    }
    let built;
    if commands.is_empty() && setup.socket.is_none() && !setup.local {
        built = format!("{} {BUILT_OPTIONS}", built_daemon()?);
        commands.push(("gatherfsd", &built));
    }
    for (i, (name, command)) in commands.into_iter().enumerate() {
        let socket = sockets.join(format!("{i}.sock"));
        let child = start(command, &socket, share)?;
        add(Daemon::connect(name.into(), &socket, Some(child), setup)?);
    }
    if setup.local {
        targets.push(Target::Local(Local::new()?));
    }
    Ok(targets)
}

/// Runs every row on every target, round by round, and returns the medians by row and target.
pub fn measure_all(setup: &Setup, rows: &[(String, Load)], targets: &mut [Target]) -> Result<Vec<Vec<Measure>>, Failure> {
    let mut table = Vec::new();
    for (_, load) in rows {
        let mut runs = vec![Vec::new(); targets.len()];
        for _ in 0..setup.rounds.max(1) {
            for (target, runs) in targets.iter_mut().zip(&mut runs) {
                runs.push(target.measure(*load, setup)?);
            }
        }
        table.push(runs.iter_mut().map(|runs| median(runs)).collect());
    }
    Ok(table)
}
