//! Measures gatherfs beside virtiofsd and writes Markdown tables and SVG plots; `benches/compare` builds and runs it.

mod calls;
mod daemons;
mod drawings;
mod idle;
mod machine;
mod memory;
mod paced;
mod plan;
mod plots;
mod report;
mod rounds;
mod sections;
mod text;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use gatherfs_harness::Failure;
use gatherfs_harness::load::Target;
use gatherfs_harness::load::leftovers::{self, Scratch};

use daemons::{GATHERFS, PEERS, Programs};
use machine::CpuPlan;
use plan::{Cpus, Row};
use report::Report;
use rounds::{Effort, Outcome, measure_row};

/// Measure gatherfs in its default configuration beside virtiofsd 1.14 in several.
#[derive(Debug, Parser)]
#[command(name = "benches/compare", disable_version_flag = true)]
struct Cli {
    /// Three minutes instead of fifteen: fewer rows, shorter rounds, fewer files and idle daemons
    #[arg(long)]
    quick: bool,
    /// Only the rows and parts whose section or name contains this text; the parts beside the rows are "latency against load", "system
    /// calls", "memory" and "idle". May be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Print the rows and parts, and measure nothing
    #[arg(long)]
    list: bool,
    /// Where the report goes [default: docs/benchmarks; with --quick or --only target/benchmarks]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Directory on the disk to measure [default: /var/tmp]
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    disk: PathBuf,
    /// Sandbox of both daemons: namespace, chroot or none
    #[arg(long, value_name = "MODE", default_value = "namespace")]
    sandbox: String,
    /// Seconds of a measurement [default: 0.2; with --quick 0.1]
    #[arg(long)]
    seconds: Option<f64>,
    /// Rounds [default: 7; with --quick 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// Files to look up [default: 1000000; with --quick 100000]
    #[arg(long)]
    files: Option<usize>,
    /// Idle daemons of each kind [default: 1000; with --quick 50]
    #[arg(long)]
    idle_daemons: Option<usize>,
    /// The gatherfsd to measure
    #[arg(long, value_name = "PATH", default_value = "target/release/gatherfsd")]
    gatherfsd: PathBuf,
    /// The virtiofsd to measure
    #[arg(long, value_name = "PATH", default_value = "target/peers/bin/virtiofsd")]
    virtiofsd: PathBuf,
}

/// A part of the run beside the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    LatencyAgainstLoad,
    SystemCalls,
    Memory,
    Idle,
}

impl Part {
    const ALL: [Self; 4] = [Self::LatencyAgainstLoad, Self::SystemCalls, Self::Memory, Self::Idle];

    fn name(self) -> &'static str {
        match self {
            Self::LatencyAgainstLoad => "latency against load",
            Self::SystemCalls => "system calls",
            Self::Memory => "memory",
            Self::Idle => "idle",
        }
    }
}

impl Cli {
    fn is_chosen(&self, names: &[&str]) -> bool {
        let contains = |text: &String| names.iter().any(|name| name.to_lowercase().contains(&text.to_lowercase()));
        self.only.is_empty() || self.only.iter().any(contains)
    }

    fn rows(&self) -> Vec<Row> {
        let section = |row: &Row| format!("{:?}: {}", row.section, row.section.title());
        let listed = |row: &Row| format!("{:?}: {}", row.section, row.name);
        plan::rows(self.quick).into_iter().filter(|row| self.is_chosen(&[&section(row), &listed(row)])).collect()
    }

    fn parts(&self) -> Vec<Part> {
        Part::ALL.into_iter().filter(|part| self.is_chosen(&[part.name()])).collect()
    }

    fn effort(&self) -> Result<Effort, Failure> {
        let (seconds, rounds, contenders) = if self.quick { (0.1, 3, 2) } else { (0.2, 7, 3) };
        let (seconds, rounds) = (self.seconds.unwrap_or(seconds), self.rounds.unwrap_or(rounds).max(1));
        Ok(Effort { seconds, rounds, contenders, cpus: CpuPlan::new()? })
    }

    fn out(&self) -> PathBuf {
        let short = self.quick || !self.only.is_empty();
        self.out.clone().unwrap_or_else(|| if short { "target/benchmarks" } else { "docs/benchmarks" }.into())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        cli.rows().iter().for_each(|row| println!("{:?}: {}", row.section, row.name));
        cli.parts().iter().for_each(|part| println!("{}", part.name()));
        return ExitCode::SUCCESS;
    }
    let result = leftovers::watch().map_err(Failure::from).and_then(|()| run(&cli));
    leftovers::leave_to_signal();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What `program` says that it is.
fn version(program: &Path) -> Result<String, Failure> {
    let said = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|e| format!("{}: {e}; run benches/compare, which builds it", program.display()))?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

fn programs(cli: &Cli) -> Result<Programs, Failure> {
    for program in [&cli.gatherfsd, &cli.virtiofsd] {
        if program.to_string_lossy().contains(char::is_whitespace) {
            return Err(format!("{} has a space in its path: measure from another directory", program.display()).into());
        }
    }
    let tmpfs = Path::new("/dev/shm");
    if machine::file_system(tmpfs) != "tmpfs" {
        return Err("/dev/shm is no tmpfs: mount one there".into());
    }
    let name = "gatherfs-compare";
    Ok(Programs {
        gatherfsd: std::path::absolute(&cli.gatherfsd)?,
        virtiofsd: std::path::absolute(&cli.virtiofsd)?,
        sandbox: cli.sandbox.clone(),
        sockets: Scratch::new(&std::env::temp_dir(), name)?,
        tmpfs: Scratch::new(tmpfs, name)?,
        disk: Scratch::new(&cli.disk, name).map_err(|e| format!("--disk {}: {e}", cli.disk.display()))?,
    })
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let start = Instant::now();
    let effort = cli.effort()?;
    let versions = [version(&cli.gatherfsd)?, version(&cli.virtiofsd)?];
    let programs = programs(cli)?;
    let mut report = Report::new(&cli.out(), &programs, &effort, &versions)?;
    let mut rows = cli.rows();
    if !effort.cpus.has_two() {
        rows.retain(|row| row.cpus == Cpus::One);
        report.skip("the rows with guest and daemon on a CPU each: there is one CPU");
    }
    let outcomes = measure_rows(&rows, &programs, &effort, start)?;
    for part in cli.parts() {
        progress(start, part.name());
        // The other figures are worth a report without this one.
        match measure_part(cli, part, &programs, &effort, &report.dir) {
            Ok(text) => report.add(text),
            Err(error) => report.skip(&format!("{}: {error}", part.name())),
        }
    }
    report.write(&outcomes, start.elapsed())
}

fn progress(start: Instant, what: &str) {
    let seconds = start.elapsed().as_secs();
    eprintln!("[{:2}:{:02}] {what}", seconds / 60, seconds % 60);
}

/// Measures all rows, starting the daemons anew for each place.
fn measure_rows(rows: &[Row], programs: &Programs, effort: &Effort, start: Instant) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = Vec::new();
    let mut targets: Vec<Target> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if index == 0 || rows[index - 1].place != row.place {
            targets.clear();
            targets = programs.targets(row.place)?;
        }
        let outcome = measure_row(row, &mut targets, programs, effort).map_err(|e| format!("{}: {e}", row.name))?;
        let (ratio, ..) = outcome.ratio();
        let peer = &outcome.names[outcome.best_peer()];
        progress(start, &format!("{}/{} {:?}: {}: {ratio:.2} of virtiofsd, {peer}", index + 1, rows.len(), row.section, row.name));
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn measure_part(cli: &Cli, part: Part, programs: &Programs, effort: &Effort, out: &Path) -> Result<String, Failure> {
    let tmpfs = plan::Place { disk: false, direct: false, queues: 1 };
    let (default, _) = PEERS[0];
    match part {
        Part::LatencyAgainstLoad if !effort.cpus.has_two() => Err("there is one CPU".into()),
        Part::LatencyAgainstLoad => {
            paced::latency_against_load(&mut programs.targets(tmpfs)?, &[GATHERFS, default, "pool 1", "pool 4"], effort, out)
        }
        Part::SystemCalls => calls::system_calls(&mut programs.targets(tmpfs)?, &[GATHERFS, default], effort, &programs.sockets.path),
        Part::Memory => memory::looked_up_files(programs, cli.files.unwrap_or(if cli.quick { 100_000 } else { 1_000_000 })),
        Part::Idle => {
            let count = cli.idle_daemons.unwrap_or(if cli.quick { 50 } else { 1000 });
            let (settle, idle) = if cli.quick { (2, 5) } else { (5, 10) };
            idle::idle_daemons(programs, count, Duration::from_secs(settle), Duration::from_secs(idle))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chooses_rows_and_parts_by_section_and_name() {
        let chosen = |only: &[&str]| {
            let cli = Cli::parse_from([&["compare"][..], &only.iter().flat_map(|text| ["--only", text]).collect::<Vec<_>>()].concat());
            (cli.rows().len(), cli.parts().len(), cli.out())
        };
        assert_eq!(chosen(&["idle", "MEMORY"]), (0, 2, "target/benchmarks".into()));
        assert_eq!(chosen(&["origin:"]).0, 4);
        assert_eq!((chosen(&["READDIRPLUS"]).0, chosen(&["OneCpu: GETATTR"]).0), (1, 1));
        let all = chosen(&[]);
        assert!(all.0 > 70 && all.1 == 4 && all.2 == Path::new("docs/benchmarks"), "{all:?}");
    }
}
