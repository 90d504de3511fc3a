//! Deaths of the worker: the real daemon, keeper and worker, is killed at each point that an operation of the guest passes, before
//! and behind each system call and between the stores of its records. The guest, which has sent the request once, hears what it hears
//! of a twin that nothing happens to; the tree is the twin's; what it has open still works; and nothing is left open.
//!
//! The points of an operation are found by a run without a death, so that no list of them can be out of date. Built with
//! `--features failpoints` only. With `--nocapture` a table says how long the guest waits after a death.

mod bench;
mod table;

use gatherfs_support::operations::OPERATIONS;
use gatherfs_support::operations::Operation;
use gatherfs_support::share::is_root;

use bench::{BY_DESCRIPTOR, BY_HANDLE, Bench, EXPORTED, Way};
use table::Table;

/// Operations that are executed in a way of their own, or not in full, before the next worker is killed too: of these every point of
/// the recovery is tried.
const RECOVERED: &[&str] = &["READ", "WRITE", "GETATTR", "LOOKUP, new", "CREATE", "UNLINK", "RENAME"];

/// Runs each of `operations` with a death at each of its points; `then` says at which further points the next worker dies.
fn run(way: Way, operations: &[&Operation], then: impl Fn(&str) -> Option<u32>, title: &str) {
    if !is_root() {
        return;
    }
    let mut bench = Bench::start(way);
    let (mut table, mut failed) = (Table::default(), Vec::new());
    for operation in operations {
        let name = operation.0;
        let mut wrong = Vec::new();
        let twin = bench.run(operation, &[], &mut wrong);
        if let Err(errno) = &twin.answer {
            wrong.push(format!("fails with {errno} where nothing happens"));
        }
        for at in 0..u32::try_from(twin.points.len()).unwrap() {
            let mut dies_at = vec![at];
            dies_at.extend(then(name).map(|then| at + then));
            let before = wrong.len();
            let run = bench.run(operation, &dies_at, &mut wrong);
            let point = run.points.get(at as usize).map_or("?", String::as_str).to_owned();
            run.compare(&twin, &mut wrong);
            wrong[before..].iter_mut().for_each(|what| *what = format!("{at}, {point}: {what}"));
            table.add(name, &point, run.pause_us);
        }
        failed.extend(wrong.into_iter().map(|what| format!("{name}: {what}")));
    }
    println!("{title}\n{table}");
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
}

fn served(serves: fn(&str) -> bool) -> Vec<&'static Operation> {
    OPERATIONS.iter().filter(|(name, _)| serves(name)).collect()
}

fn is_for_exports(name: &str) -> bool {
    name.starts_with("LOOKUP of .")
}

#[test]
fn a_death_at_any_point_of_any_operation_is_not_noticed() {
    run(BY_HANDLE, &served(|name| !is_for_exports(name)), |_| None, "one death, inodes as file handles");
}

#[test]
fn a_death_is_not_noticed_by_a_guest_that_exports_the_share() {
    run(EXPORTED, &served(is_for_exports), |_| None, "one death, the share is exported");
}

#[test]
fn a_death_is_not_noticed_where_inodes_are_descriptors() {
    let serves = |name: &str| RECOVERED.contains(&name);
    run(BY_DESCRIPTOR, &served(serves), |_| None, "one death, inodes as descriptors");
}

#[test]
fn the_next_worker_dies_as_well() {
    let serves = |name: &str| !is_for_exports(name);
    run(BY_HANDLE, &served(serves), |_| Some(1), "two deaths, the second at the next worker's first point");
}
