//! The daemon against the host's own system calls: random sequences of operations go through the daemon to one
//! directory and straight to the kernel in a twin of it. Results, errnos, attributes and, at the end, the trees
//! must agree.
//!
//! What the guest's kernel checks before it sends a request is no concern of the daemon's, so the twin acts as
//! root too, but for what makes a name: that is done as the caller.
//!
//! `GATHERFS_SEED` repeats a run, `GATHERFS_CASES` sets the number of sequences.

mod twin;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use gatherfs_support::daemon::Killer;
use gatherfs_support::reference::number_from_env;
use gatherfs_support::reference::operation::{Operation, sequence};
use gatherfs_support::reference::through_daemon::ThroughDaemon;
use gatherfs_support::share::{self, Scratch, Share};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use twin::Twin;

const CASES: u32 = 1500;
/// Between two kills: a worker begins and serves some hundred requests.
const KILL_PAUSE_MAX: Duration = Duration::from_millis(40);
/// Half of this on average; short ones are what a failure shrinks to.
const SEQUENCE_LEN_MAX: usize = 80;

/// Every file below `directory`: type and mode, owner, group, links, and contents or target.
fn tree(directory: &Path) -> BTreeMap<String, (u32, u32, u32, u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut below = vec![directory.to_owned()];
    while let Some(dir) = below.pop() {
        for path in std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()) {
            let st = std::fs::symlink_metadata(&path).unwrap();
            let contents = match st.mode() & libc::S_IFMT {
                libc::S_IFREG => std::fs::read(&path).unwrap(),
                libc::S_IFLNK => std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                _ => Vec::new(),
            };
            if st.is_dir() {
                below.push(path.clone());
            }
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            found.insert(name, (st.mode(), st.uid(), st.gid(), st.nlink(), contents));
        }
    }
    found
}

/// Runs `operations` on both sides, in the guest with or without workers that are killed.
fn compare(share: &mut Share, case: u32, operations: &[&Operation], under_kills: bool) -> Result<(), TestCaseError> {
    let name = format!("case{case}");
    let (ours, theirs) = (share.path(&name), share.outside(&name));
    for directory in [&ours, &theirs] {
        std::fs::create_dir(directory).unwrap();
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o1777)).unwrap();
    }
    let mut daemon = ThroughDaemon::begin(share.client(), &name);
    daemon.looks_first = under_kills;
    let mut twin = Twin::begin(&theirs);
    let mut agreed = Ok(());
    for (number, operation) in operations.iter().enumerate() {
        let (got, expected) = (daemon.apply(operation), twin.apply(operation));
        if got != expected {
            agreed = Err(format!("operation {number}, {operation:?}: {got:?} through the daemon, {expected:?} on the host"));
            break;
        }
    }
    // Also where they differ: what one sequence leaves open must not fail the next.
    daemon.end();
    let (our_tree, their_tree) = (tree(&ours), tree(&theirs));
    for directory in [&ours, &theirs] {
        std::fs::remove_dir_all(directory).unwrap();
    }
    agreed.map_err(TestCaseError::fail)?;
    prop_assert_eq!(our_tree, their_tree, "the trees at the end");
    Ok(())
}

fn run(mut share: Share, default_cases: u32, compares: fn(&Operation) -> bool) {
    run_with(&mut share, default_cases, compares, false);
}

fn run_with(share: &mut Share, default_cases: u32, compares: fn(&Operation) -> bool, under_kills: bool) {
    if !share::is_root() {
        return;
    }
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number_from_env("GATHERFS_SEED").unwrap_or(time.as_nanos() as u64);
    let cases = number_from_env("GATHERFS_CASES").map_or(default_cases, |n| n as u32);
    let config = Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, max_shrink_iters: 5000, ..Config::default() };
    let number = std::cell::Cell::new(0);
    let share = std::cell::RefCell::new(share);

    let outcome = TestRunner::new(config).run(&sequence(SEQUENCE_LEN_MAX), |operations| {
        number.set(number.get() + 1);
        let operations: Vec<_> = operations.iter().filter(|o| compares(o)).collect();
        compare(&mut share.borrow_mut(), number.get(), &operations, under_kills)
    });

    println!("{} sequences compared", number.get());
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, operations)) => {
            let operations: Vec<String> = operations.iter().map(|o| format!("{o:?}")).collect();
            panic!("{reason}\nrepeat with GATHERFS_SEED={seed} GATHERFS_CASES={cases}; in short:\n{}", operations.join("\n"));
        }
        Err(error) => panic!("{error}"),
    }
}

/// As [`run`], while the worker is killed again and again.
fn run_under_kills(mut share: Share) {
    if !share::is_root() {
        return;
    }
    let killer = Killer::start(share.keeper(), number_from_env("GATHERFS_SEED").unwrap_or(1), KILL_PAUSE_MAX);
    run_with(&mut share, CASES / 3, |_| true, true);
    let killed = killer.stop();
    println!("{killed} workers killed");
    assert!(killed > 20, "{killed}");
}

#[test]
fn the_daemon_does_what_the_host_does_while_its_workers_are_killed() {
    run_under_kills(Share::new());
}

#[test]
fn the_daemon_does_what_the_host_does_with_inodes_as_descriptors_while_its_workers_are_killed() {
    run_under_kills(Share::with(&["--inode-file-handles", "never"]));
}

#[test]
fn the_daemon_does_what_the_host_does_in_memory() {
    run(Share::new(), CASES, |_| true);
}

#[test]
fn the_daemon_does_what_the_host_does_on_disk() {
    // Few kept descriptors, so that nodes are opened again and again.
    let directory = Scratch::on_disk();
    let share = Share::start(share::Setup { directory, options: &["--rlimit-nofile", "256"], ..share::Setup::default() });
    // Whether ext4 calls preallocated space data or a hole depends on what it has written back.
    run(share, CASES / 3, |operation| !matches!(operation, Operation::Seek { .. }));
}

#[test]
fn the_daemon_does_what_the_host_does_with_inodes_as_descriptors() {
    run(Share::with(&["--inode-file-handles", "never"]), CASES / 3, |_| true);
}
