//! Latency against load: requests that are due at random times, whether or not earlier ones are answered.

use std::path::Path;

use gatherfs_harness::Failure;
use gatherfs_harness::load::figures::median;
use gatherfs_harness::load::{Io, Load, Measure, Op, Pattern, Target};

use super::plan::Cpus;
use super::plots::{Labels, lines};
use super::rounds::{Effort, settle};
use super::text::{figure, table};

/// Requests in flight at most, and of the closed loop that finds the peak.
const DEPTH: usize = 64;
const IO: Io = Io { op: Op::Read, pattern: Pattern::Random, block_size: 4096, segment_size: 4096, depth: DEPTH, contiguous: false };
/// Loads as parts of the higher peak of the two daemons.
const PARTS: [f64; 6] = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85];
/// A daemon that completes less than this part of a load does not keep up with it.
const KEPT_UP: f64 = 0.95;
const LATENCY_TITLE: &str = "Latency against load: READ 4 KiB at random offsets, guest spinning";

/// A load and what came of it in each round.
#[derive(Debug)]
struct Step {
    offered: f64,
    runs: Vec<Measure>,
}

impl Step {
    fn completed(&self) -> f64 {
        median(self.runs.iter().map(Measure::rate).collect())
    }

    /// The median of the rounds: one in which something else had the CPU does not hide the others.
    fn latency(&self, part: f64) -> f64 {
        median(self.runs.iter().map(|run| run.counts.latency.quantile(part)).collect())
    }
}

/// Measures gatherfs and every configuration of virtiofsd's default and pools; the table, and the plot in `dir`.
pub fn latency_against_load(targets: &mut [Target], peers: &[&str], effort: &Effort, dir: &Path) -> Result<String, Failure> {
    let mut chosen: Vec<&mut Target> = targets.iter_mut().filter(|target| peers.contains(&target.name())).collect();
    let mut peak: f64 = 0.0;
    for target in &mut chosen {
        settle(target, Cpus::Two, true, effort)?;
        peak = peak.max(target.measure(Load::Io(IO), effort.seconds)?.rate());
    }
    let mut steps: Vec<Vec<Step>> = chosen.iter().map(|_| Vec::new()).collect();
    for part in PARTS {
        let offered = peak * part;
        let mut runs: Vec<Vec<_>> = chosen.iter().map(|_| Vec::new()).collect();
        for _ in 0..effort.rounds {
            for (target, runs) in chosen.iter_mut().zip(&mut runs) {
                runs.push(target.measure(Load::Paced(IO, offered), effort.seconds)?);
            }
        }
        for (steps, runs) in steps.iter_mut().zip(runs) {
            steps.push(Step { offered, runs });
        }
    }
    let names: Vec<String> = chosen.iter().map(|target| target.name().to_owned()).collect();
    let labels = Labels { title: LATENCY_TITLE, x: "offered load, thousand requests per second", y: "p99 latency, us" };
    let line = |steps: &[Step]| steps.iter().map(|step| (step.offered / 1e3, step.latency(0.99))).collect();
    let series: Vec<_> = names.iter().zip(&steps).map(|(name, steps)| (called(name), line(steps))).collect();
    let drew = lines(&dir.join("latency.svg"), &labels, false, true, &series)?;
    Ok(text(&names, &steps, drew))
}

fn called(name: &str) -> String {
    if name == super::daemons::GATHERFS { name.to_owned() } else { format!("virtiofsd, {name}") }
}

fn text(names: &[String], steps: &[Vec<Step>], drew: bool) -> String {
    let mut rows = Vec::new();
    for step in 0..steps.first().map_or(0, Vec::len) {
        for (name, steps) in names.iter().zip(steps) {
            let step = &steps[step];
            let keeps_up = if step.completed() >= step.offered * KEPT_UP { "yes" } else { "no" };
            let mut row = vec![figure(step.offered), called(name), figure(step.completed()), keeps_up.to_owned()];
            row.extend([0.5, 0.99, 0.999].map(|part| figure(step.latency(part))));
            rows.push(row);
        }
    }
    let head = ["offered /s", "daemon ", "completed /s", "keeps up ", "p50 us", "p99 us", "p99.9 us"];
    let plot = if drew { format!("\n![{LATENCY_TITLE}](latency.svg)\n") } else { String::new() };
    format!(
        "## Latency against load\n\nREAD 4 KiB at random offsets, tmpfs, guest spinning on another CPU. Requests are due at random times (exponential \
         intervals), at most {DEPTH} in flight; the latency of a request counts from when it was due. \
         Medians of the rounds.\n{plot}\n{}",
        table(&head, &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::tests::run;

    #[test]
    fn a_daemon_that_completes_too_little_does_not_keep_up() {
        let step = |completed| vec![Step { offered: 1000.0, runs: vec![run(completed, 1.0), run(completed - 10, 1.0), run(5, 1.0)] }];
        let text = text(&["gatherfs".into(), "pool 1".into()], &[step(999), step(700)], true);
        assert!(text.contains("| 1,000 | gatherfs | 989 | yes | 20.1 |"), "{text}");
        assert!(text.contains("| 1,000 | virtiofsd, pool 1 | 690 | no | 20.1 |"), "{text}");
    }
}
