//! Which plots are made of the measured rows.

use std::path::Path;

use gatherfs_harness::Failure;
use gatherfs_harness::load::{Io, Load, Measure, Op, Pattern};

use super::plan::{Metric, Place, Section};
use super::plots::{Labels, Series, bars, lines};
use super::rounds::Outcome;

/// A row's point on the x axis, where it belongs to a line.
type Point<'a> = &'a dyn Fn(&Outcome) -> Option<f64>;

/// Draws all plots for which there are figures; the names of their files and what they show.
pub fn draw(dir: &Path, outcomes: &[Outcome]) -> Result<Vec<(String, &'static str)>, Failure> {
    let mut drawn = Vec::new();
    let mut add = |name: &str, title, drew: Result<bool, Failure>| {
        if drew? {
            drawn.push((name.to_owned(), title));
        }
        Ok::<_, Failure>(())
    };
    let path = |name: &str| dir.join(name);

    let title = "READ 4 KiB at random offsets against requests in flight";
    let labels = Labels { title, x: "requests in flight", y: "thousand requests per second" };
    let mut series = pair(outcomes, &|o| depth(o, true), ", guest spinning", |m| m.rate() / 1e3);
    series.extend(pair(outcomes, &|o| depth(o, false), ", guest sleeping", |m| m.rate() / 1e3));
    add("depth.svg", title, lines(&path("depth.svg"), &labels, true, false, &series))?;

    let title = "READ against its 4 KiB segments, one READ at a time";
    let labels = Labels { title, x: "segments of a READ", y: "GB/s" };
    let series = pair(outcomes, &segments, "", |m| m.mb_per_second() / 1e3);
    add("segments.svg", title, lines(&path("segments.svg"), &labels, true, false, &series))?;

    let title = "CPU time of the daemon for an operation, guest and daemon on one CPU";
    let labels = Labels { title, x: "microseconds", y: "" };
    let is_single = |o: &&Outcome| o.row.section == Section::OneCpu && !o.row.name.contains("READDIR");
    let all = |o: &Outcome| [0, o.best_peer(), o.floor()].map(|target| o.value(target)).to_vec();
    let groups: Vec<_> = outcomes.iter().filter(is_single).map(|o| (o.row.name.clone(), all(o))).collect();
    add("cpu.svg", title, bars(&path("cpu.svg"), &labels, &["gatherfs", "virtiofsd, its best", "floor: the system calls alone"], &groups))?;

    let title = "Metadata operations per second, guest and daemon on one CPU";
    let labels = Labels { title, x: "operations per second", y: "" };
    let is_metadata = |o: &&Outcome| is_single(o) && matches!(o.row.load, Load::Meta(_));
    let rates = |o: &Outcome| [0, o.best_peer_by(Metric::Rate)].map(|target| o.median(target, Measure::rate)).to_vec();
    let groups: Vec<_> = outcomes.iter().filter(is_metadata).map(|o| (o.row.name.clone(), rates(o))).collect();
    add("metadata.svg", title, bars(&path("metadata.svg"), &labels, &["gatherfs", "virtiofsd, its best"], &groups))?;
    Ok(drawn)
}

/// The lines of gatherfs and of the best virtiofsd at each point.
fn pair(outcomes: &[Outcome], point: Point, what: &str, figure: fn(&Measure) -> f64) -> Vec<Series> {
    let line = |target: fn(&Outcome) -> usize| {
        let mut points: Vec<_> = outcomes.iter().filter_map(|o| Some((point(o)?, o.median(target(o), figure)))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let series = [(format!("gatherfs{what}"), line(|_| 0)), (format!("virtiofsd, its best{what}"), line(Outcome::best_peer))];
    series.into_iter().filter(|(_, points)| !points.is_empty()).collect()
}

fn depth(outcome: &Outcome, spinning: bool) -> Option<f64> {
    const TMPFS: Place = Place { disk: false, direct: false, queues: 1 };
    let here = outcome.row.place == TMPFS && [Section::Spinning, Section::Depth].contains(&outcome.row.section);
    match outcome.row.load {
        Load::Io(Io { op: Op::Read, pattern: Pattern::Random, block_size: 4096, depth, .. })
            if here && outcome.row.spinning == spinning =>
        {
            Some(depth as f64)
        }
        _ => None,
    }
}

fn segments(outcome: &Outcome) -> Option<f64> {
    match outcome.row.load {
        Load::Io(io) if outcome.row.section == Section::Segments => Some(io.segments() as f64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::tests::outcome;

    #[test]
    fn depth_takes_its_points_from_both_tables() {
        let names = ["READ 4 KiB random, depth 4", "guest spinning, depth 8", "guest sleeping, depth 4", "READ 32 x 4 KiB, depth 4"];
        let outcomes = names.map(outcome);
        let points = outcomes.iter().map(|o| (depth(o, true), depth(o, false)));
        assert_eq!(points.collect::<Vec<_>>(), [(Some(4.0), None), (Some(8.0), None), (None, Some(4.0)), (None, None)]);
        assert_eq!(segments(&outcome("READ 64 x 4 KiB = 256 KiB")), Some(64.0));
        let series = pair(&outcomes, &|o| depth(o, true), ", guest spinning", Measure::rate);
        assert_eq!(series[1], ("virtiofsd, its best, guest spinning".to_owned(), vec![(4.0, 80.0), (8.0, 80.0)]));
    }
}
