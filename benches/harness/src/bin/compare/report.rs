//! The report: what was measured on what, the tables, the plots.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gatherfs_harness::Failure;

use super::daemons::{GATHERFS, PEERS, Programs};
use super::plan::Section;
use super::rounds::{Effort, Outcome};
use super::{drawings, machine, sections, text};

/// A report in the making.
#[derive(Debug)]
pub struct Report {
    /// Where it goes.
    pub dir: PathBuf,
    head: String,
    parts: Vec<String>,
    skipped: Vec<String>,
}

impl Report {
    /// A report in `dir`, with the machine as it is before the measurements.
    pub fn new(dir: &Path, programs: &Programs, effort: &Effort, versions: &[String; 2]) -> Result<Self, Failure> {
        fs::create_dir_all(dir).map_err(|e| format!("--out {}: {e}", dir.display()))?;
        let user = if rustix::process::geteuid().is_root() { "root" } else { "another user than root" };
        let configurations: Vec<String> = PEERS.iter().map(|(name, options)| configuration(name, options)).collect();
        let head = format!(
            "# gatherfs beside virtiofsd\n\nWritten by `{}`. Run it to make these figures on another machine.\n\n{}\
             - {}{} ({GATHERFS}), its default configuration; {}, in these configurations: {}. Both with `--sandbox {}`, `--log-level error` and \
             otherwise default options, run as {user}.\n\
             - The guest is synthetic (`benches/harness`): a vhost-user frontend that lays out virtqueues as Linux does. Each row runs all daemons in \
             turn, {} rounds of {} s; figures are medians over the rounds. The first round runs every configuration of virtiofsd, the other rounds the \
             {} that were best in it. \"virtiofsd\" in a table is the best configuration in that row, which the table names.\n\
             - ratio: gatherfs / virtiofsd. range: the least and the greatest ratio of a round. floor: the host's system calls of the operation in one \
             process, one at a time.\n",
            command(std::env::args().skip(1)),
            machine::description(&programs.disk.path),
            versions[0],
            machine::commit().map(|commit| format!(" at {commit}")).unwrap_or_default(),
            versions[1],
            configurations.join(", "),
            programs.sandbox,
            effort.rounds,
            effort.seconds,
            effort.contenders,
        );
        Ok(Self { dir: dir.to_owned(), head, parts: Vec::new(), skipped: Vec::new() })
    }

    /// Adds a section.
    pub fn add(&mut self, text: String) {
        self.parts.push(text);
    }

    /// Says that something was not measured, and why.
    pub fn skip(&mut self, what: &str) {
        eprintln!("benches/compare: skipped: {what}");
        self.skipped.push(what.to_owned());
    }

    /// Writes README.md, the plots and the raw figures, and prints where.
    pub fn write(self, outcomes: &[Outcome], took: Duration) -> Result<(), Failure> {
        let mut text = self.head;
        text.push_str(&format!("- The run took {} min {} s.\n", took.as_secs() / 60, took.as_secs() % 60));
        self.skipped.iter().for_each(|what| text.push_str(&format!("- Skipped: {what}\n")));
        for (file, title) in drawings::draw(&self.dir, outcomes)? {
            text.push_str(&format!("\n![{title}]({file})\n"));
        }
        if let Some(summary) = summary(outcomes) {
            text.push_str(&format!("\n{summary}"));
        }
        let sections = Section::ALL.into_iter().filter_map(|section| sections::comparison(section, outcomes));
        let mut parts: Vec<String> = sections.collect();
        if !outcomes.is_empty() {
            parts.extend([sections::latencies(outcomes), sections::notifications(outcomes)]);
            fs::write(self.dir.join("figures.csv"), sections::raw(outcomes))?;
        }
        parts.extend(self.parts);
        parts.iter().for_each(|part| text.push_str(&format!("\n{part}")));
        let file = self.dir.join("README.md");
        fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
        println!("{}", file.display());
        Ok(())
    }
}

/// The command that made the report, without the programs that benches/compare names.
fn command(mut arguments: impl Iterator<Item = String>) -> String {
    let mut words = vec!["benches/compare".to_owned()];
    while let Some(word) = arguments.next() {
        if ["--gatherfsd", "--virtiofsd"].contains(&word.as_str()) {
            arguments.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

fn configuration(name: &str, options: &str) -> String {
    if options.is_empty() { name.to_owned() } else { format!("{name} (`{options}`)") }
}

/// The rows with goals that are met and missed, and the rows in which virtiofsd is ahead.
fn summary(outcomes: &[Outcome]) -> Option<String> {
    let goals: Vec<bool> = outcomes.iter().filter_map(Outcome::meets_goal).collect();
    let behind = |outcome: &&Outcome| {
        let (ratio, ..) = outcome.ratio();
        if outcome.metric() == super::plan::Metric::CpuUs { ratio > 1.0 } else { ratio < 1.0 }
    };
    let behind: Vec<String> = outcomes.iter().filter(behind).map(|o| format!("{} ({})", o.row.name, text::figure(o.ratio().0))).collect();
    let ahead = if behind.is_empty() { "none".to_owned() } else { behind.join("; ") };
    let met = goals.iter().filter(|met| **met).count();
    (!outcomes.is_empty()).then(|| {
        format!(
            "Goals met: {met} of {}. Rows in which the best virtiofsd is ahead, {} of {}: {ahead}.\n",
            goals.len(),
            behind.len(),
            outcomes.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::tests::outcome;

    #[test]
    fn the_command_is_that_of_the_user() {
        let words = ["--gatherfsd", "/x", "--quick", "--virtiofsd", "/y", "--only", "GETATTR"];
        assert_eq!(command(words.into_iter().map(str::to_owned)), "benches/compare --quick --only GETATTR");
    }

    #[test]
    fn the_summary_names_the_rows_in_which_the_peer_is_ahead() {
        let mut behind = outcome("READ 4 KiB random, depth 16");
        behind.runs.swap(0, 2);
        let text = summary(&[outcome("READ 4 KiB random"), behind]).unwrap();
        assert_eq!(text, "Goals met: 1 of 2. Rows in which the best virtiofsd is ahead, 1 of 2: READ 4 KiB random, depth 16 (0.73).\n");
        assert!(summary(&[]).is_none());
    }
}
