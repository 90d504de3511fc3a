//! The tables of measured rows: one for each section, and what a request costs beside its time.

use gatherfs_harness::load::{Load, Measure};

use super::plan::{Metric, Section};
use super::rounds::Outcome;
use super::text::{figure, table};

/// The table of a section, with its heading; `None` where nothing of it was measured.
pub fn comparison(section: Section, outcomes: &[Outcome]) -> Option<String> {
    let outcomes: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.row.section == section).collect();
    if outcomes.is_empty() {
        return None;
    }
    let has_goals = outcomes.iter().any(|outcome| outcome.row.goal.is_some());
    let mut head = vec!["case", "gatherfs", "virtiofsd", "its configuration ", "ratio", "range"];
    if has_goals {
        head.extend(["goal", "met "]);
    }
    head.extend(["floor", "gatherfs / floor"]);
    let rows: Vec<_> = outcomes.iter().map(|outcome| comparison_row(outcome, has_goals)).collect();
    let mut text = format!("## {}\n\n{}\n\n{}", section.title(), section.note(), table(&head, &rows));
    if section == Section::Origin {
        text.push_str(&origin_factors(&outcomes));
    }
    Some(text)
}

fn comparison_row(outcome: &Outcome, has_goals: bool) -> Vec<String> {
    let (ratio, least, greatest) = outcome.ratio();
    let (peer, floor) = (outcome.best_peer(), outcome.value(outcome.floor()));
    let own = outcome.value(0);
    let mut cells = vec![outcome.row.name.clone(), figure(own), figure(outcome.value(peer)), outcome.names[peer].clone()];
    cells.push(format!("**{}**", figure(ratio)));
    cells.push(format!("{} to {}", figure(least), figure(greatest)));
    if has_goals {
        cells.push(outcome.row.goal.map_or(String::new(), figure));
        cells.push(outcome.meets_goal().map_or("", |met| if met { "yes" } else { "no" }).to_owned());
    }
    cells.extend([figure(floor), figure(own / floor)]);
    cells
}

/// How many times the bytes of 32 requests one packed request moves in the same time.
fn origin_factors(outcomes: &[&Outcome]) -> String {
    let find = |name: &str| outcomes.iter().find(|outcome| outcome.row.name == name);
    let factor = |kind: &str| {
        let (packed, unpacked) = (find(&format!("{kind} packed"))?, find(&format!("{kind} unpacked"))?);
        let of = |target| figure(packed.value(target) / unpacked.value(target));
        let peer = packed.best_peer();
        Some(vec![kind.to_owned(), of(0), of(peer), packed.names[peer].clone(), of(packed.floor())])
    };
    let rows: Vec<_> = ["readv", "writev"].into_iter().filter_map(factor).collect();
    let head = ["packed / unpacked", "gatherfs", "virtiofsd", "its configuration ", "floor"];
    format!("\n{}", table(&head, &rows))
}

/// Kicks, calls and context switches of each request.
pub fn notifications(outcomes: &[Outcome]) -> String {
    let sections = [Section::OneCpu, Section::Spinning];
    let outcomes = outcomes.iter().filter(|outcome| sections.contains(&outcome.row.section));
    let row = |outcome: &Outcome| {
        let peer = outcome.best_peer();
        let both = |per: fn(&Measure) -> f64| [figure(outcome.median(0, per)), figure(outcome.median(peer, per))];
        let mut cells = vec![outcome.row.name.clone()];
        cells.extend(both(|measure| measure.notifications_per_operation().0));
        cells.extend(both(|measure| measure.notifications_per_operation().1));
        cells.extend(both(Measure::switches_per_operation));
        cells.extend(both(Measure::cpu_per_operation));
        cells
    };
    let rows: Vec<_> = outcomes.map(row).collect();
    let head = ["case", "kicks", "virtiofsd", "calls", "virtiofsd", "switches", "virtiofsd", "CPU us", "virtiofsd"];
    format!(
        "## Kicks, calls, context switches, CPU time\n\nFor an operation, of gatherfs and of the best configuration of virtiofsd in the row. \
         Kicks are those of the request queues. Context switches are those of the daemon's threads, wanted or not; CPU time is the daemon's.\n\n{}",
        table(&head, &rows)
    )
}

/// p50, p99 and p99.9 of the rows with requests kept in flight.
pub fn latencies(outcomes: &[Outcome]) -> String {
    let sections = [Section::OneCpu, Section::Spinning, Section::Depth];
    let has_latency = |outcome: &&Outcome| sections.contains(&outcome.row.section) && matches!(outcome.row.load, Load::Io(_));
    let row = |outcome: &Outcome| {
        let peer = outcome.best_peer_by(Metric::Rate);
        let (own, other) = (outcome.latency(0), outcome.latency(peer));
        let place = if outcome.row.section == Section::OneCpu { ", one CPU" } else { "" };
        let mut cells = vec![format!("{}{place}", outcome.row.name)];
        cells.extend([0.5, 0.99, 0.999].iter().flat_map(|part| [figure(own.quantile(*part)), figure(other.quantile(*part))]));
        cells.push(outcome.names[peer].clone());
        cells
    };
    let rows: Vec<_> = outcomes.iter().filter(has_latency).map(row).collect();
    let head = ["case", "p50", "virtiofsd", "p99", "virtiofsd", "p99.9", "virtiofsd", "its configuration "];
    format!("## Latency\n\nMicroseconds, of all rounds; virtiofsd in the configuration with the highest rate.\n\n{}", table(&head, &rows))
}

/// All configurations, for the file of raw figures: comma-separated values.
pub fn raw(outcomes: &[Outcome]) -> String {
    let head = "section,case,configuration,rounds,operations_per_s,mb_per_s,cpu_us,p50_us,p99_us,p999_us,switches,kicks,calls\n";
    let mut text = head.to_owned();
    for outcome in outcomes {
        for (target, name) in outcome.names.iter().enumerate() {
            let of = |figure: fn(&Measure) -> f64| outcome.median(target, figure);
            let latency = outcome.latency(target);
            let figures = [
                of(Measure::rate),
                of(Measure::mb_per_second),
                of(Measure::cpu_per_operation),
                latency.quantile(0.5),
                latency.quantile(0.99),
                latency.quantile(0.999),
                of(Measure::switches_per_operation),
                of(|measure| measure.notifications_per_operation().0),
                of(|measure| measure.notifications_per_operation().1),
            ];
            let figures = figures.map(|figure| format!("{figure:.3}")).join(",");
            let rounds = outcome.runs[target].len();
            text.push_str(&format!("{:?},\"{}\",{name},{rounds},{figures}\n", outcome.row.section, outcome.row.name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::tests::outcome;

    #[test]
    fn a_row_names_the_best_configuration_its_ratio_and_the_goal() {
        let text = comparison(Section::OneCpu, &[outcome("READ 4 KiB random")]).unwrap();
        let line = text.lines().last().unwrap();
        assert_eq!(line, "| READ 4 KiB random | 5.50 | 11.0 | default | **0.50** | 0.42 to 0.60 | 0.60 | yes | 1.00 | 5.50 |");
        assert!(comparison(Section::Disk, &[outcome("READ 4 KiB random")]).is_none());
    }

    #[test]
    fn a_section_without_goals_has_no_column_for_them() {
        let text = comparison(Section::Depth, &[outcome("guest sleeping, depth 4")]).unwrap();
        assert!(!text.contains("goal") && text.contains("| pool 1 | **1.38** |"), "{text}");
    }

    #[test]
    fn the_origins_factor_is_that_of_packed_by_unpacked() {
        let mut packed = outcome("readv packed");
        packed.runs.iter_mut().flatten().for_each(|run| run.counts.bytes *= 8);
        let text = comparison(Section::Origin, &[packed, outcome("readv unpacked")]).unwrap();
        assert!(text.lines().last().unwrap().starts_with("| readv | 8.00 | 8.00 | pool 1 | 8.00 |"), "{text}");
    }

    #[test]
    fn what_a_request_costs_is_beside_that_of_the_best_configuration() {
        let outcomes = [outcome("READ 4 KiB random"), outcome("cached READ 4 KiB random")];
        let text = notifications(&outcomes);
        assert!(text.ends_with("| READ 4 KiB random | 1.00 | 1.00 | 0.50 | 0.50 | 1.00 | 1.00 | 5.50 | 11.0 |\n"), "{text}");
        assert!(latencies(&outcomes).contains("| READ 4 KiB random, one CPU | 20.1 | 20.1 |"), "{}", latencies(&outcomes));
        assert_eq!(raw(&outcomes).lines().count(), 11);
    }
}
