//! Measuring a row: all daemons in turn, round by round, and which configuration of virtiofsd is its best.

use gatherfs_harness::Failure;
use gatherfs_harness::load::figures::{Latency, median};
use gatherfs_harness::load::{Io, Load, Measure, Target, cpu, tree};

use super::daemons::Programs;
use super::machine::CpuPlan;
use super::plan::{Cpus, Metric, Row};

/// How long and how often.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Seconds of a measurement.
    pub seconds: f64,
    /// Rounds; the first one runs every configuration of virtiofsd, the others those that were best in it.
    pub rounds: usize,
    /// Configurations of virtiofsd in all rounds.
    pub contenders: usize,
    /// The CPUs to run on.
    pub cpus: CpuPlan,
}

/// What a row came to: runs by target, gatherfs first and the floor last.
#[derive(Debug)]
pub struct Outcome {
    pub row: Row,
    pub names: Vec<String>,
    pub runs: Vec<Vec<Measure>>,
}

/// Whether `a` is better than `b`.
fn is_better(metric: Metric, a: f64, b: f64) -> bool {
    if metric == Metric::CpuUs { a < b } else { a > b }
}

fn value(metric: Metric, measure: &Measure) -> f64 {
    match metric {
        Metric::CpuUs => measure.cpu_per_operation(),
        Metric::Rate => measure.rate(),
        Metric::MbPerSecond => measure.mb_per_second(),
    }
}

impl Outcome {
    /// What the row is measured in.
    pub fn metric(&self) -> Metric {
        self.row.section.metric()
    }

    /// The floor's place among the targets.
    pub fn floor(&self) -> usize {
        self.runs.len() - 1
    }

    /// The median over the rounds of anything that a run has.
    pub fn median(&self, target: usize, figure: impl Fn(&Measure) -> f64) -> f64 {
        median(self.runs[target].iter().map(figure).collect())
    }

    /// The median in the row's metric.
    pub fn value(&self, target: usize) -> f64 {
        self.median(target, |measure| value(self.metric(), measure))
    }

    /// The configuration of virtiofsd that is best in the row's metric.
    pub fn best_peer(&self) -> usize {
        self.best_peer_by(self.metric())
    }

    /// The configuration of virtiofsd that is best in `metric`, among those that ran in all rounds.
    pub fn best_peer_by(&self, metric: Metric) -> usize {
        let rounds = self.runs[0].len();
        let figure = |target| self.median(target, |measure| value(metric, measure));
        let mut peers = (1..self.floor()).filter(|target| self.runs[*target].len() == rounds);
        let first = peers.next().unwrap_or(1);
        peers.fold(first, |best, peer| if is_better(metric, figure(peer), figure(best)) { peer } else { best })
    }

    /// gatherfs divided by the best virtiofsd: of the medians, and the least and the greatest of a round.
    pub fn ratio(&self) -> (f64, f64, f64) {
        let peer = self.best_peer();
        let by_round = self.runs[0].iter().zip(&self.runs[peer]);
        let by_round = by_round.map(|(own, peer)| value(self.metric(), own) / value(self.metric(), peer));
        let (least, greatest) = by_round.fold((f64::MAX, f64::MIN), |(least, greatest), ratio| (least.min(ratio), greatest.max(ratio)));
        (self.value(0) / self.value(peer), least, greatest)
    }

    /// Whether the goal is met, if there is one.
    pub fn meets_goal(&self) -> Option<bool> {
        let goal = self.row.goal?;
        let (ratio, ..) = self.ratio();
        Some(if self.metric() == Metric::CpuUs { ratio <= goal } else { ratio >= goal })
    }

    /// The latencies of all rounds.
    pub fn latency(&self, target: usize) -> Latency {
        let mut runs = self.runs[target].iter().map(|measure| &measure.counts.latency);
        let mut sum = runs.next().expect("there is a round").clone();
        runs.for_each(|latency| sum.add(latency));
        sum
    }
}

/// The load of one queue of `queues`: `Io::depth` of a row is that of all.
fn on_queues(load: Load, queues: usize) -> Load {
    let share = |io: Io| Io { depth: (io.depth / queues).max(1), ..io };
    match load {
        Load::Io(io) => Load::Io(share(io)),
        Load::Paced(io, rate) => Load::Paced(share(io), rate),
        meta @ Load::Meta(_) => meta,
    }
}

/// Puts the guest and the daemon of `target` on their CPUs and has the guest spin or sleep.
pub fn settle(target: &mut Target, cpus: Cpus, spinning: bool, effort: &Effort) -> Result<(), Failure> {
    let (guest, daemon) = effort.cpus.of(cpus);
    cpu::pin(0, &guest)?;
    if let Some(running) = target.daemon() {
        cpu::pin_tree(running.pid, &daemon)?;
        running.set_busy_poll(spinning);
    }
    Ok(())
}

/// One measurement of `target`.
fn measure(target: &mut Target, row: &Row, programs: &Programs, seconds: f64) -> Result<Measure, Failure> {
    if row.cold {
        tree::drop_cache(programs.share(row.place))?;
    }
    let queues = target.daemon().map_or(1, |daemon| daemon.guest.request_queues());
    target.measure(on_queues(row.load, queues), seconds)
}

/// Measures `row` on all targets.
pub fn measure_row(row: &Row, targets: &mut [Target], programs: &Programs, effort: &Effort) -> Result<Outcome, Failure> {
    if row.place.disk && !row.place.direct && !row.cold {
        tree::fill_cache(programs.share(row.place))?;
    }
    let names = targets.iter().map(|target| target.name().to_owned()).collect();
    let mut outcome = Outcome { row: row.clone(), names, runs: vec![Vec::new(); targets.len()] };
    let mut chosen: Vec<usize> = (0..targets.len()).collect();
    for target in targets.iter_mut() {
        settle(target, row.cpus, row.spinning, effort)?;
    }
    for round in 0..effort.rounds {
        for &target in &chosen {
            outcome.runs[target].push(measure(&mut targets[target], row, programs, effort.seconds)?);
        }
        if round == 0 {
            chosen = contenders(&outcome, effort.contenders);
        }
    }
    Ok(outcome)
}

/// gatherfs, the best `count` configurations of virtiofsd in the first round, and the floor.
fn contenders(outcome: &Outcome, count: usize) -> Vec<usize> {
    let mut peers: Vec<usize> = (1..outcome.floor()).collect();
    let ascending = |a: &usize, b: &usize| outcome.value(*a).total_cmp(&outcome.value(*b));
    peers.sort_by(ascending);
    if outcome.metric() != Metric::CpuUs {
        peers.reverse();
    }
    peers.truncate(count.max(1));
    peers.sort_unstable();
    [&[0], &peers[..], &[outcome.floor()]].concat()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::plan;
    use gatherfs_harness::load::Counts;
    use std::time::Duration;

    /// A run of a second at `rate` with `cpu_us` for an operation.
    pub fn run(rate: u64, cpu_us: f64) -> Measure {
        let mut counts = Counts::new();
        (0..rate).for_each(|_| counts.record(4096, Duration::from_micros(20)));
        Measure { counts, seconds: 1.0, cpu_us: cpu_us * rate as f64, switches: rate, notifications: (rate, rate / 2) }
    }

    /// A row with gatherfs, two configurations of virtiofsd that ran in all rounds, one that ran once, and the floor.
    pub fn outcome(name: &str) -> Outcome {
        let row = plan::rows(false).into_iter().find(|row| row.name == name).expect("the row is planned");
        let names = ["gatherfs", "default", "pool 1", "pool 4", "local"].map(str::to_owned).into();
        let runs = vec![
            vec![run(100, 6.0), run(120, 5.0), run(110, 5.5)],
            vec![run(50, 10.0), run(60, 12.0), run(40, 11.0)],
            vec![run(80, 13.0), run(90, 14.0), run(70, 15.0)],
            vec![run(900, 1.0)],
            vec![run(1000, 1.0), run(1000, 1.0), run(1000, 1.0)],
        ];
        Outcome { row, names, runs }
    }

    #[test]
    fn the_best_configuration_is_by_the_rows_metric_and_ran_in_all_rounds() {
        let cpu = outcome("READ 4 KiB random");
        assert_eq!((cpu.best_peer(), cpu.best_peer_by(Metric::Rate)), (1, 2));
        let (ratio, least, greatest) = cpu.ratio();
        assert!((ratio - 0.5).abs() < 1e-9 && (least - 5.0 / 12.0).abs() < 1e-9 && (greatest - 0.6).abs() < 1e-9);
        assert_eq!(cpu.meets_goal(), Some(true));
        let rate = outcome("READ 4 KiB random, depth 4");
        assert_eq!(rate.best_peer(), 2);
        assert!((rate.ratio().0 - 110.0 / 80.0).abs() < 1e-9);
        assert_eq!(rate.meets_goal(), Some(false));
    }

    #[test]
    fn the_first_round_chooses_who_runs_in_the_others() {
        let mut first = outcome("READ 4 KiB random, depth 4");
        first.runs.iter_mut().for_each(|runs| runs.truncate(1));
        assert_eq!(contenders(&first, 2), [0, 2, 3, 4]);
        first.row = outcome("READ 4 KiB random").row;
        assert_eq!(contenders(&first, 1), [0, 3, 4]);
    }

    #[test]
    fn the_depth_of_a_row_is_shared_by_the_queues() {
        let load = plan::pages(gatherfs_harness::load::Op::Read, gatherfs_harness::load::Pattern::Seq, 1, 16);
        let depth = |queues| match on_queues(load, queues) {
            Load::Io(io) => io.depth,
            _ => 0,
        };
        assert_eq!((depth(1), depth(4), depth(64)), (16, 4, 1));
    }
}
