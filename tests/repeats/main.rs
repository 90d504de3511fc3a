//! Requests that are executed again because the process that had begun them died (docs/RECOVERY.md, section 5): each operation dies
//! at each of its points, before and behind each system call and between the stores of its record, and is executed again with what
//! its record has. Result, tree, lookups and handles are those of a twin that did not die. It may die a second time on the way.
//!
//! The points are found by counting, so that no list of them can be out of date. A death is a panic of the thread here: what a dead
//! process would have left to the sweep of descriptors is closed by the unwinding. Built with `--features failpoints` only.

mod foreign;
mod operations;
mod world;

use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use gatherfs::host::FileHandles;
use gatherfs::state::RequestRecord;
use gatherfs::sys::failpoint::{Fault, Moment, set_hook};
use gatherfs::sys::identity;
use gatherfs::types::{Errno, HostGid, HostUid};

use operations::{OPERATIONS, Operation};
use world::{Holds, Tree, World, left_of};

thread_local! {
    /// Points that this thread passes until it dies.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// A point at which it dies, by its name.
    static NAMED: Cell<Option<Point>> = const { Cell::new(None) };
    /// A call that fails, and how.
    static FAILING: Cell<Option<(&'static str, Errno)>> = const { Cell::new(None) };
}

/// A call or a crash point, and whether before or behind it.
type Point = (&'static str, Moment);

/// The panic that is a death.
struct Death;

/// Runs `act`, in which the call `name` fails.
fn failing<R>(name: &'static str, errno: Errno, act: impl FnOnce() -> R) -> R {
    FAILING.set(Some((name, errno)));
    let result = act();
    FAILING.set(None);
    result
}

/// Runs `act`, which dies at its point number `at`, or at the one that is `named`. `None` where it does.
fn dying_at<R>(at: usize, named: Option<Point>, act: impl FnOnce() -> R) -> Option<R> {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        set_hook(Some(Box::new(|name, moment| {
            let left = LEFT.get();
            LEFT.set(left.saturating_sub(1));
            // The unwinding passes points, too.
            if (left == 0 || NAMED.get() == Some((name, moment))) && !std::thread::panicking() {
                resume_unwind(Box::new(Death));
            }
            FAILING.get().filter(|(failing, _)| *failing == name).map(|(_, errno)| Fault::Errno(errno))
        })));
    });
    LEFT.set(at);
    NAMED.set(named);
    let result = catch_unwind(AssertUnwindSafe(act));
    LEFT.set(usize::MAX);
    NAMED.set(None);
    match result {
        Ok(result) => Some(result),
        Err(cause) if cause.is::<Death>() => {
            take_own_credentials();
            None
        }
        Err(cause) => resume_unwind(cause),
    }
}

/// The thread has its own credentials again, where it died with those of a user of the guest: the thread of a process that dies needs
/// none any more.
fn take_own_credentials() {
    let (uid, gid) = (HostUid(rustix::process::getuid().as_raw()), HostGid(rustix::process::getgid().as_raw()));
    if identity::effective() != (uid, gid) {
        identity::set_effective_uid(uid).unwrap();
        identity::set_effective_gid(gid).unwrap();
    }
}

/// The outcome of an operation.
type Outcome = (Result<String, Errno>, Tree, Holds);

/// Executes the operation in a new world: it dies at each point of `deaths`, the second time when it is executed again, and
/// then once more without a death. With whether it came to the last point.
fn execute(operation: &Operation, file_handles: FileHandles, deaths: &[usize]) -> (Outcome, bool) {
    let world = World::new(file_handles);
    let record = RequestRecord::default();
    let mut earlier = None;
    let mut died = true;
    for at in deaths {
        died = dying_at(*at, None, || (operation.act)(&world, &world.request(operation.caller, &record, earlier))).is_none();
        earlier = left_of(&record);
    }
    let result = (operation.act)(&world, &world.request(operation.caller, &record, earlier));
    ((result, world.tree(), world.holds()), died)
}

/// `outcome` without the lookups and nodes that it may have too many, and whether there are no more than that.
fn allowing(outcome: &Outcome, twin: &Outcome, lookups: u64) -> bool {
    let ((result, tree, holds), (twin_result, twin_tree, twin_holds)) = (outcome, twin);
    let too_many = holds.lookups.wrapping_sub(twin_holds.lookups);
    let nodes = holds.nodes.wrapping_sub(twin_holds.nodes);
    result == twin_result && tree == twin_tree && holds.handles == twin_holds.handles && too_many <= lookups && nodes as u64 <= too_many
}

fn every_point_of_every_operation(file_handles: FileHandles) {
    let mut points = 0;
    for operation in OPERATIONS {
        let (twin, _) = execute(operation, file_handles, &[]);
        for at in 0.. {
            let (outcome, died) = execute(operation, file_handles, &[at]);
            assert!(
                allowing(&outcome, &twin, operation.leaves),
                "{}, dead at point {at}: {outcome:#?}\nits twin: {twin:#?}",
                operation.name
            );
            points += 1;
            if !died {
                break;
            }
        }
    }
    println!("{} operations, {points} points", OPERATIONS.len());
    assert!(points > 5 * OPERATIONS.len(), "{points} points");
}

#[test]
fn an_operation_that_dies_at_any_point_is_carried_out_once() {
    every_point_of_every_operation(FileHandles::Prefer);
}

#[test]
fn an_operation_that_dies_is_carried_out_once_where_inodes_are_descriptors() {
    every_point_of_every_operation(FileHandles::Never);
}

#[test]
fn an_operation_that_dies_twice_is_carried_out_once() {
    for operation in OPERATIONS {
        let (twin, _) = execute(operation, FileHandles::Prefer, &[]);
        let points = (0..).take_while(|at| execute(operation, FileHandles::Prefer, &[*at]).1);
        for first in points {
            for second in 0.. {
                let (outcome, died) = execute(operation, FileHandles::Prefer, &[first, second]);
                // A lookup that is being taken back when the process dies again stays.
                assert!(
                    allowing(&outcome, &twin, operation.leaves + 1),
                    "{}, dead at points {first} and {second}: {outcome:#?}\nits twin: {twin:#?}",
                    operation.name
                );
                if !died {
                    break;
                }
            }
        }
    }
}

#[test]
fn the_process_is_killed_where_it_comes_to_the_selected_point_for_the_nth_time() {
    let test = "foreign::a_link_that_another_process_replaced_is_not_the_guests";
    let run = |selected: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test]).env("GATHERFS_FAIL", selected).output().unwrap().status
    };
    assert_eq!(run("begun:1").signal(), Some(libc::SIGKILL));
    // Three times in this test.
    assert_eq!(run("begun:3").signal(), Some(libc::SIGKILL));
    assert!(run("begun:4").success() && run("elsewhere:1").success());
}
