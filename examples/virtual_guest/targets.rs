//! The daemons and the floor that a run compares, and the rounds over all of them.

use std::path::Path;
use std::process::Stdio;

use gatherfs_harness::load::daemon::{LAYOUT, start};
use gatherfs_harness::load::figures::{median_run, quartiles};
use gatherfs_harness::load::{Daemon, Load, Local, Measure, Target, cpu, tree};
use gatherfs_harness::{Failure, MIB};
use gatherfs_support::daemon::built_program;
use gatherfs_support::guest::frontend::GuestOptions;

use crate::options::Setup;

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
    let options = GuestOptions {
        layout: LAYOUT.to_vec(),
        queue_size: setup.queue_size,
        request_queues: setup.queues,
        event_idx: !setup.no_event_idx,
        indirect: !setup.no_indirect,
        busy_poll: setup.busy_poll,
        ..GuestOptions::default()
    };
    let mut targets = Vec::new();
    let mut add = |daemon: Result<Daemon, Failure>| {
        let daemon = daemon?;
        if let Some(cpu) = setup.pin.get(1) {
            cpu::pin_tree(daemon.pid, &[*cpu])?;
        }
        targets.push(Target::Daemon(Box::new(daemon)));
        Ok::<_, Failure>(())
    };
    if let Some(path) = &setup.socket {
        add(Daemon::connect("daemon".into(), path, None, &options))?;
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
        let child = start(command, &socket, share, Stdio::inherit())?;
        add(Daemon::connect(name.into(), &socket, Some(child), &options))?;
    }
    Ok(targets)
}

/// Adds the floor, when `--local` asks for it.
pub fn add_local(setup: &Setup, share: &Path, targets: &mut Vec<Target>) -> Result<(), Failure> {
    if setup.local {
        targets.push(Target::Local(Local::open(share, setup.file_size.max(1) * MIB, setup.direct)?));
    }
    Ok(())
}

/// A row of one target.
pub struct Measured {
    /// The round with the median rate.
    pub median: Measure,
    /// CPU time of an operation as a multiple of the first target's in the same round: the quartiles of all rounds.
    pub cpu_ratio: [f64; 3],
}

/// Runs every row on every target, round by round, and returns what was measured by row and target.
pub fn measure_all(setup: &Setup, share: &Path, rows: &[(String, Load)], targets: &mut [Target]) -> Result<Vec<Vec<Measured>>, Failure> {
    let mut table = Vec::new();
    for (_, load) in rows {
        let mut runs = vec![Vec::new(); targets.len()];
        for _ in 0..setup.rounds.max(1) {
            for (target, runs) in targets.iter_mut().zip(&mut runs) {
                if setup.cold {
                    tree::drop_cache(share)?;
                }
                runs.push(target.measure(*load, setup.seconds)?);
            }
        }
        let first: Vec<f64> = runs[0].iter().map(Measure::cpu_per_operation).collect();
        let ratio = |(run, first): (&Measure, &f64)| run.cpu_per_operation() / first;
        let measured = |runs: &mut Vec<Measure>| {
            let cpu_ratio = quartiles(runs.iter().zip(&first).map(ratio).collect());
            Measured { median: median_run(runs), cpu_ratio }
        };
        table.push(runs.iter_mut().map(measured).collect());
    }
    Ok(table)
}
