//! Load generator for vhost-user-fs daemons: a synthetic guest measures one or several of them.
//!
//! `cargo run --release --example virtual_guest -- --help`

mod kills;
mod lookups;
mod options;
mod report;
mod targets;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use gatherfs_harness::load::leftovers::{self, Scratch};
use gatherfs_harness::load::{Target, cpu};
use gatherfs_harness::{Failure, MIB};

use options::{Cli, Workload};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = leftovers::watch().map_err(Failure::from).and_then(|()| run(&cli));
    leftovers::leave_to_signal();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtual_guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    if let Some(cpu) = cli.setup.pin.first() {
        cpu::pin(0, &[*cpu])?;
    }
    let sockets = Scratch::new(&std::env::temp_dir(), "virtual-guest")?;
    let share = match &cli.setup.dir {
        Some(dir) => Scratch::keep(dir)?,
        None => Scratch::new(Path::new("/dev/shm"), "virtual-guest")?,
    };
    run_in(cli, &share.path, &sockets.path)
}

fn run_in(cli: &Cli, share: &Path, sockets: &Path) -> Result<(), Failure> {
    let mut targets = targets::connect_all(&cli.setup, share, sockets)?;
    if let Workload::Verify { .. } = cli.mode {
        if cli.setup.socket.is_some() && cli.setup.dir.is_none() {
            return Err("verify needs --dir, the directory the daemon shares".into());
        }
        let daemons = targets.iter_mut().filter_map(Target::daemon);
        return daemons.into_iter().try_for_each(|daemon| verify::verify(daemon, share, &cli.mode));
    }
    if let Workload::Lookups { files } = cli.mode {
        if cli.setup.socket.is_some() && cli.setup.dir.is_none() {
            return Err("lookups needs --dir, the directory the daemon shares".into());
        }
        let mut daemons: Vec<_> = targets.iter_mut().filter_map(Target::daemon).collect();
        return lookups::lookups(&mut daemons, share, files.max(1));
    }
    if let Workload::Kills(options) = &cli.mode {
        if cli.setup.socket.is_some() && cli.setup.dir.is_none() {
            return Err("kills needs --dir, the directory the daemon shares".into());
        }
        let mut daemons = targets.iter_mut().filter_map(Target::daemon);
        return daemons.try_for_each(|daemon| kills::kills(daemon, share, &cli.setup, options));
    }
    let rows = options::rows(&cli.mode, cli.setup.contiguous);
    let entries = if let Workload::Meta { entries } = cli.mode { entries } else { 0 };
    for daemon in targets.iter_mut().filter_map(Target::daemon) {
        daemon.prepare(cli.setup.file_size.max(1) * MIB, entries, cli.setup.direct)?;
    }
    targets::add_local(&cli.setup, share, &mut targets)?;
    let table = targets::measure_all(&cli.setup, share, &rows, &mut targets)?;
    report::print_table(&rows, &targets, &table);
    if let Workload::Origin { .. } = cli.mode {
        report::print_origin(&targets, &table);
    }
    Ok(())
}
