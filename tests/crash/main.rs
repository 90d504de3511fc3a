//! Deaths of the worker: the real daemon, keeper and worker, is killed at each point that an operation of the guest passes, before
//! and behind each system call and between the stores of its records. The guest, which has sent the request once, hears what it hears
//! of a twin that nothing happens to; the tree is the twin's; what it has open still works; and nothing is left open.
//!
//! The points of an operation are found by a run without a death, so that no list of them can be out of date. Built with
//! `--features failpoints` only. With `--nocapture` a table says how long the guest waits after a death.

mod bench;
mod quarantine;
mod table;
mod upgrade;

use std::time::Duration;

use gatherfs_support::operations::{OPERATIONS, Operation};
use gatherfs_support::share::is_root;

use bench::{BY_DESCRIPTOR, BY_HANDLE, Bench, EXPORTED, Run, Way};
use table::Table;

/// Operations of each kind of rule for what is executed again: all of their recovery is tried.
const RECOVERED: &[&str] = &["READ", "WRITE", "WRITE, append", "GETATTR", "LOOKUP, new", "CREATE", "UNLINK", "RENAME"];
/// Where the first worker dies in an operation of which the recovery is tried: what is executed again has begun, or not, and is done.
const FIRST_DEATHS: [&str; 4] = ["pop, after the position", "begun", "made", "publish, before the element"];
/// How the points begin that every request passes.
const EVERYWHERE: [&str; 3] = ["pop, ", "push, ", "publish, "];
/// Calls that transfer data.
const TRANSFERS: [&str; 3] = ["after preadv2", "after pwritev2", "after copy_file_range"];
/// A worker that lives longer is replaced at once when it is killed (src/keeper/deaths.rs).
const LONG_LIFE: Duration = Duration::from_millis(110);

/// What a test has found.
struct Outcome {
    bench: Bench,
    table: Table,
    wrong: Vec<String>,
}

impl Outcome {
    fn begin(way: Way) -> Outcome {
        Outcome { bench: Bench::start(way), table: Table::default(), wrong: Vec::new() }
    }

    /// The operation without a death.
    fn twin(&mut self, operation: &Operation) -> Run {
        let before = self.wrong.len();
        let twin = self.bench.run(operation, &[], &mut self.wrong);
        if let Err(errno) = &twin.answer {
            self.wrong.push(format!("errno {errno}"));
        }
        self.wrong[before..].iter_mut().for_each(|what| *what = format!("{}, where nothing happens: {what}", operation.0));
        twin
    }

    /// The operation with deaths at the points `dies_at`. What it was.
    fn run(&mut self, operation: &Operation, dies_at: &[u32], twin: &Run) -> Run {
        let before = self.wrong.len();
        let run = self.bench.run(operation, dies_at, &mut self.wrong);
        run.compare(twin, &mut self.wrong);
        let points: Vec<&str> = dies_at.iter().map(|at| run.point(*at)).collect();
        let place = points.join(", then ");
        self.wrong[before..].iter_mut().for_each(|what| *what = format!("{}, {place} ({dies_at:?}): {what}", operation.0));
        self.table.add(operation.0, points.last().copied().unwrap_or_default(), run.pause_us);
        run
    }

    fn assert(self, title: &str) {
        println!("{title}\n{}", self.table);
        assert!(self.wrong.is_empty(), "{} failures:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

fn numbers(run: &Run) -> std::ops::Range<u32> {
    0..u32::try_from(run.points.len()).unwrap()
}

fn served(serves: fn(&str) -> bool) -> impl Iterator<Item = &'static Operation> {
    OPERATIONS.iter().filter(move |(name, _)| serves(name))
}

fn is_for_exports(name: &str) -> bool {
    name.starts_with("LOOKUP of .")
}

/// Each of the operations with a death at each of its points.
fn one_death(way: Way, serves: fn(&str) -> bool, title: &str) {
    if !is_root() {
        return;
    }
    let mut outcome = Outcome::begin(way);
    for operation in served(serves) {
        let twin = outcome.twin(operation);
        for at in numbers(&twin) {
            outcome.run(operation, &[at], &twin);
        }
    }
    outcome.assert(title);
}

#[test]
fn a_death_at_any_point_of_any_operation_is_not_noticed() {
    one_death(BY_HANDLE, |name| !is_for_exports(name), "one death");
}

#[test]
fn a_death_is_not_noticed_by_a_guest_that_exports_the_share() {
    one_death(EXPORTED, is_for_exports, "one death, the share is exported");
}

#[test]
fn a_death_is_not_noticed_where_the_worker_has_lived_long_enough_to_be_replaced_at_once() {
    let way = BY_HANDLE.living(LONG_LIFE);
    one_death(way, |name| RECOVERED.contains(&name), "one death, of a worker that has lived for 0.1 s");
}

#[test]
fn a_transfer_that_a_death_cuts_short_is_made_whole() {
    if !is_root() {
        return;
    }
    let mut outcome = Outcome::begin(BY_HANDLE.cutting());
    let mut cut = 0;
    for operation in served(|name| !is_for_exports(name)) {
        let twin = outcome.twin(operation);
        for at in numbers(&twin).filter(|at| TRANSFERS.contains(&twin.point(*at))) {
            outcome.run(operation, &[at], &twin);
            cut += 1;
        }
    }
    assert!(cut >= TRANSFERS.len(), "{cut} transfers");
    outcome.assert("one death, behind a transfer that it has cut short");
}

#[test]
fn a_death_right_after_another_one_is_not_noticed() {
    if !is_root() {
        return;
    }
    let mut outcome = Outcome::begin(BY_DESCRIPTOR);
    for operation in served(|name| !is_for_exports(name)) {
        let twin = outcome.twin(operation);
        // What every request passes is passed by these.
        let is_tried = |point: &str| RECOVERED.contains(&operation.0) || !EVERYWHERE.iter().any(|everywhere| point.starts_with(everywhere));
        for at in numbers(&twin).filter(|at| is_tried(twin.point(*at))) {
            outcome.run(operation, &[at, at + 1], &twin);
        }
    }
    outcome.assert("two deaths, the second at the next worker's first point; inodes as descriptors");
}

#[test]
fn a_death_at_any_point_of_the_recovery_is_not_noticed() {
    if !is_root() {
        return;
    }
    let mut outcome = Outcome::begin(BY_HANDLE);
    for operation in served(|name| RECOVERED.contains(&name)) {
        let twin = outcome.twin(operation);
        for at in numbers(&twin).filter(|at| FIRST_DEATHS.contains(&twin.point(*at))) {
            let recovered = outcome.run(operation, &[at], &twin);
            // The records are looked for with lseek, in the same way for every operation.
            let is_tried = |point: &str| operation.0 == "GETATTR" || !point.ends_with(" lseek");
            for next in numbers(&recovered).filter(|next| *next > at && is_tried(recovered.point(*next))) {
                outcome.run(operation, &[at, next], &twin);
            }
        }
    }
    outcome.assert("two deaths, the second at each point of the recovery");
}
