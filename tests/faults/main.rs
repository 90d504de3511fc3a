//! Faults of the host: each system call that an operation of the guest makes fails once, with each errno, or moves half of the
//! data. The guest gets that errno; nothing leaks; the same operation succeeds afterwards; and the tree is the one that the
//! operation had before that call, on a twin on which nothing failed.
//!
//! The calls of an operation are found by a run without a fault, so that no list of them can be out of date. Built with
//! `--features failpoints` only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gatherfs::device::Service;
use gatherfs::host::{CachePolicy, Descriptors, FileHandles, Holdings, Options, Rights, Share, Support, TmpfilePolicy};
use gatherfs::io::{Rings, Which};
use gatherfs::sys::failpoint::{Fault, Moment, set_hook};
use gatherfs::types::Errno;
use gatherfs_support::guest::fuse::init;
use gatherfs_support::in_process::{Device, share_options};
use gatherfs_support::operations::world::{Tree, World, tree};
use gatherfs_support::operations::{OPERATIONS, Operation};
use gatherfs_support::share::is_root;

/// What a host's file system or a full table of descriptors answers.
const ERRNOS: [i32; 6] = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::ESTALE, libc::EMFILE, libc::ENOMEM];
/// Calls that may move less than asked.
const MOVING: [&str; 5] = ["preadv2", "pwritev2", "copy_file_range", "uring_read", "uring_write"];
/// Calls that take a user's credentials, and each a second time give them back. Where that fails, the worker ends, which
/// `tests/crash` is about.
const CREDENTIALS: [&str; 3] = ["setgroups", "setresgid", "setresuid"];
/// What is submitted to io_uring.
const ON_RING: [&str; 3] = ["uring_read", "uring_write", "uring_fsync"];

/// Faults that the guest does not hear of: the beginning of the operation's name, the call, the only errno or 0, and how.
const MASKED: &[(&str, &str, i32, Masked)] = &[
    // Of a file that is open, the descriptor is opened again.
    ("OPEN", "open_by_handle_at", libc::ESTALE, Masked::Helped),
    ("LOOKUP of .", "open_by_handle_at", libc::ESTALE, Masked::Helped),
    ("RENAME", "open_by_handle_at", libc::ESTALE, Masked::Helped),
    ("SETLK", "open_by_handle_at", libc::ESTALE, Masked::Helped),
    ("SYNCFS", "open_by_handle_at", libc::ESTALE, Masked::Helped),
    // Only whether the file's transfers wait for a disk.
    ("OPEN, direct", "fstatfs", 0, Masked::Helped),
    ("CREATE, direct", "fstatfs", 0, Masked::Helped),
    // The rename is done, and a whiteout of the daemon's is one, too.
    ("RENAME2, whiteout", "statx", 0, Masked::Differs),
    ("RENAME2, whiteout", "fchownat", 0, Masked::Differs),
    // An entry that cannot be looked up is listed without attributes.
    ("READDIRPLUS", "statx", 0, Masked::Differs),
    ("READDIRPLUS", "openat2", 0, Masked::Differs),
    ("READDIRPLUS", "name_to_handle_at", 0, Masked::Differs),
    // Without OPENDIR, a directory that was removed has no entries.
    ("READDIR", "open_by_handle_at", libc::ESTALE, Masked::DiffersWithoutOpen),
    ("READDIR", "getdents64", libc::ESTALE, Masked::DiffersWithoutOpen),
    // Behind the first entries: the guest asks for those that follow, and hears it then.
    ("READDIR", "getdents64", 0, Masked::Helped),
];
/// Operations that make a name, by the beginnings of theirs: where they fail, they have made none.
const MAKING: &[&str] = &["SYMLINK", "MKNOD", "MKDIR", "CREATE", "TMPFILE", "LINK"];

/// Failpoints that no operation passes here: chmod(2) by a name, on kernels before Linux 6.6, and what is asked at start.
const NOT_PASSED: [&str; 2] = ["fchmodat", "fgetxattr"];

/// How a fault was masked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Masked {
    /// Answer and tree are those of the twin.
    Helped,
    /// The answer or the tree differs.
    Differs,
    /// The same, for a guest that sends no OPEN.
    DiffersWithoutOpen,
}

/// A kind of share.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    file_handles: FileHandles,
    /// Descriptors of inodes that are kept.
    recent: usize,
    /// The guest may export the share: forgotten nodes are retained.
    exports: bool,
    /// The guest sends no OPEN.
    no_open: bool,
    /// Transfers go through io_uring.
    on_ring: bool,
    /// Whether the guest sends the operation.
    serves: fn(&str) -> bool,
}

/// A guest that exports the share looks "." and ".." up, others do not.
fn is_for_exports(operation: &str) -> bool {
    operation.starts_with("LOOKUP of .")
}

/// What reads.
fn is_for_no_open(operation: &str) -> bool {
    const READING: [&str; 10] = ["LOOKUP, ", "FORGET", "GETATTR", "STATX", "ACCESS", "READ", "STATFS", "GETXATTR", "LISTXATTR", "LSEEK"];
    READING.iter().any(|reading| operation.starts_with(reading)) && operation != "GETATTR, handle"
}

/// What an I/O engine moves or syncs.
fn is_for_ring(operation: &str) -> bool {
    matches!(operation, "READ" | "FSYNC") || operation.starts_with("FSYNC, ") || operation.starts_with("WRITE")
}

const BY_HANDLE: Way = Way {
    name: "by handle",
    file_handles: FileHandles::Prefer,
    recent: 64,
    exports: false,
    no_open: false,
    on_ring: false,
    serves: |operation| !is_for_exports(operation),
};

const WAYS: [Way; 6] = [
    BY_HANDLE,
    Way { name: "by handle, none kept", recent: 0, ..BY_HANDLE },
    Way { name: "by descriptor", file_handles: FileHandles::Never, ..BY_HANDLE },
    Way { name: "exported", exports: true, serves: is_for_exports, ..BY_HANDLE },
    Way { name: "without OPEN", no_open: true, serves: is_for_no_open, ..BY_HANDLE },
    Way { name: "on io_uring", on_ring: true, serves: is_for_ring, ..BY_HANDLE },
];

/// A guest with a share, and what it held before the first operation.
struct Bench {
    device: Device,
    holdings: Box<dyn Fn() -> Holdings>,
    end_holding: Box<dyn Fn()>,
    way: Way,
    worlds: usize,
}

/// An operation that was carried out.
struct Run {
    answer: Result<String, i32>,
    before: Tree,
    after: Tree,
    /// The calls that it made, with the tree before each.
    calls: Vec<(&'static str, Tree)>,
}

/// How an operation was disturbed.
#[derive(Clone, Copy)]
struct Disturbance {
    /// The number of the call.
    at: usize,
    fault: Fault,
    /// What the call after it does.
    then: Option<Fault>,
}

impl Bench {
    /// `None` where the way needs io_uring and the kernel forbids it.
    fn start(way: Way) -> Option<Bench> {
        let rings = if way.on_ring { Some(Arc::new(Rings::new(1, false).ok()?)) } else { None };
        let engine = move |service: Service| match &rings {
            Some(rings) => service.with_rings(Arc::clone(rings), Which::All),
            None => service,
        };
        let rights = Rights { security_label: Support::Auto, ..Rights::default() };
        let options = Options {
            file_handles: way.file_handles,
            cache: if way.no_open { CachePolicy::Always } else { CachePolicy::Auto },
            readonly: way.no_open,
            allow_direct_io: !way.no_open,
            rights,
            birth_times: true,
            xattr: true,
            // Locks on the host take open files.
            host_locks: !way.no_open,
            tmpfile: TmpfilePolicy::Always,
            ..share_options()
        };
        let descriptors = Descriptors { all: 2000, recent: way.recent };
        let see = |share: &Share| (Box::new(share.holdings()), Box::new(share.end_holding()));
        let (mut device, (holdings, end_holding)) = Device::start_unmounted((options, descriptors), see, engine);
        // The nodes of a guest that exports nothing are gone with the last lookup.
        device.client().init_with(if way.exports { init::LINUX } else { init::LINUX & !init::EXPORT_SUPPORT }).unwrap();
        Some(Bench { device, holdings, end_holding, way, worlds: 0 })
    }

    fn held(&self) -> Holdings {
        let held = (self.holdings)();
        Holdings { nodes: if self.way.exports { 0 } else { held.nodes }, ..held }
    }

    /// Descriptors of files in the share that this process has open.
    fn open_files(&self) -> Vec<PathBuf> {
        let shared = self.device.path("");
        let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        open.filter(|path| path.starts_with(&shared)).collect()
    }

    /// Carries `operation` out in a directory of its own, disturbed by `disturbance`, and once more without. What was not as it
    /// must be is added to `wrong`.
    fn run(&mut self, operation: &Operation, disturbance: Option<Disturbance>, wrong: &mut Vec<String>) -> (Run, Option<Run>) {
        let (held, open) = (self.held(), self.open_files());
        self.worlds += 1;
        (self.end_holding)();
        let shared = self.device.path("");
        let mut world = World::begin(self.device.client(), &shared, &format!("world{}", self.worlds), self.way.no_open);
        let known = (self.holdings)();
        let run = carry_out(&mut world, operation, disturbance);
        let mut again = None;
        if run.answer.is_err() {
            let now = (self.holdings)();
            if (now.nodes, now.lookups, now.handles) != (known.nodes, known.lookups, known.handles) {
                wrong.push(format!("held {known:?} before and {now:?} after it failed"));
            }
            (self.end_holding)();
            again = Some(carry_out(&mut world, operation, None));
        }
        if let Err(error) = world.end() {
            wrong.push(format!("what it opened cannot be released: {error}"));
        }
        let now = (self.held(), self.open_files());
        if now != (held, open.clone()) {
            wrong.push(format!("leaves {now:?} of {:?}", (held, open)));
        }
        (run, again)
    }
}

fn carry_out(world: &mut World<'_>, (_, operation): &Operation, disturbance: Option<Disturbance>) -> Run {
    let before = tree(world.path());
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (seen, path) = (Arc::clone(&calls), world.path().to_owned());
    set_hook(Some(Box::new(move |name, moment| {
        if moment != Moment::Before {
            return None;
        }
        let mut calls = seen.lock().unwrap();
        let fault = match disturbance {
            Some(Disturbance { at, fault, .. }) if at == calls.len() => Some(fault),
            Some(Disturbance { at, then, .. }) if at + 1 == calls.len() => then,
            _ => None,
        };
        // The trees are those of the twin, on which nothing fails.
        calls.push((name, if disturbance.is_none() { tree(&path) } else { Tree::new() }));
        fault
    })));
    let answer = operation(world).map_err(|error| error.errno().unwrap_or_else(|| panic!("{error}")));
    set_hook(None);
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    Run { answer, before, after: tree(world.path()), calls }
}

/// Holds `run`, which was disturbed, against its `twin`. What was not as it must be is added to `wrong`.
fn compare(way: &Way, name: &str, twin: &Run, (run, again): &(Run, Option<Run>), disturbance: Disturbance, wrong: &mut Vec<String>) {
    let (call, there) = &twin.calls[disturbance.at];
    // A LOOKUP of a file that is younger than a tick of the host's clock makes a call more, which the disturbed one may not have made.
    if run.calls.len() <= disturbance.at {
        if (&run.answer, &run.after) != (&twin.answer, &twin.after) {
            wrong.push(format!("answered {:?}, or left another tree, without the call", run.answer));
        }
        return;
    }
    let passed: Vec<&str> = run.calls[..=disturbance.at].iter().map(|(name, _)| *name).collect();
    if passed != twin.calls[..=disturbance.at].iter().map(|(name, _)| *name).collect::<Vec<_>>() {
        return wrong.push(format!("took another way: {passed:?}"));
    }
    let full = |answer: &String| answer.parse::<usize>().unwrap();
    match (&run.answer, disturbance.fault) {
        // A program's WRITE and COPY_FILE_RANGE may be short. To the guest's page cache a READ that is short is the end of the
        // file, and a WRITE that is short is done.
        (answer, Fault::Short) => {
            let is_whole = name == "READ" || name == "WRITE of the page cache";
            let twins = full(twin.answer.as_ref().unwrap());
            let expected = match disturbance.then {
                Some(Fault::Errno(errno)) if is_whole => Err(errno.raw()),
                _ => Ok(if is_whole { twins } else { twins / 2 }),
            };
            if answer.as_ref().map(full).map_err(|errno| *errno) != expected {
                wrong.push(format!("answered {answer:?} instead of {expected:?}"));
            }
        }
        (Ok(answer), Fault::Errno(errno)) => {
            let is_known = |(operation, masked, only, _): &&(&str, &str, i32, Masked)| {
                name.starts_with(operation) && call == masked && (*only == 0 || *only == errno.raw())
            };
            let is_right = |(_, _, _, masked): &(&str, &str, i32, Masked)| match masked {
                Masked::Helped => (&run.answer, &run.after) == (&twin.answer, &twin.after),
                Masked::Differs => true,
                Masked::DiffersWithoutOpen => way.no_open,
            };
            if !MASKED.iter().filter(is_known).any(is_right) {
                wrong.push(format!("answered {answer:?}, or left another tree"));
            }
        }
        (Err(errno), fault) => {
            if fault != Fault::Errno(Errno::from_raw(*errno)) {
                wrong.push(format!("answered errno {errno}"));
            }
            let expected = if MAKING.iter().any(|making| name.starts_with(making)) { &twin.before } else { there };
            if run.after != *expected {
                wrong.push(format!("left another tree: {:#?}", difference(&run.after, expected)));
            }
        }
    }
    if let Some(again) = again {
        if again.answer != twin.answer {
            wrong.push(format!("answered {:?} the second time", again.answer));
        } else if again.after != twin.after {
            wrong.push(format!("left another tree the second time: {:#?}", difference(&again.after, &twin.after)));
        }
    }
}

/// The names of all failpoints in the source.
fn failpoints() -> BTreeSet<String> {
    let sys = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sys");
    let files = [sys.clone(), sys.join("uring")].into_iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let paths = files.map(|file| file.unwrap().path()).filter(|path| path.is_file());
    let text: String = paths.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let begins = ["fail_call!(\"", "fail_transfer(\""].into_iter().flat_map(|call| text.split(call).skip(1));
    begins.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
}

fn difference(ours: &Tree, twins: &Tree) -> Vec<String> {
    let names: BTreeSet<&PathBuf> = ours.keys().chain(twins.keys()).collect();
    let differs = names.into_iter().filter(|name| ours.get(*name) != twins.get(*name));
    let told = |tree: &Tree, name: &Path| {
        tree.get(name).map(|(mode, uid, gid, links, set, attributes, contents)| {
            format!("{mode:o} {uid} {gid} {links} {set:?} {attributes:?} {} bytes", contents.len())
        })
    };
    differs.map(|name| format!("{}: {:?}, twin {:?}", name.display(), told(ours, name), told(twins, name))).collect()
}

#[test]
fn each_fault_of_the_host_is_the_guests_to_hear_and_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    let (mut passed, mut pairs, mut failed) = (BTreeSet::new(), 0, Vec::new());
    for way in WAYS {
        let Some(mut bench) = Bench::start(way) else {
            println!("skipped: {}: no io_uring", way.name);
            passed.extend(ON_RING.map(str::to_owned));
            continue;
        };
        for operation in OPERATIONS.iter().filter(|(name, _)| (way.serves)(name)) {
            let name = operation.0;
            let mut wrong = Vec::new();
            let (twin, _) = bench.run(operation, None, &mut wrong);
            failed.extend(wrong.into_iter().map(|what| format!("{}: {name}: {what}", way.name)));
            if let Err(errno) = twin.answer {
                failed.push(format!("{}: {name} fails with errno {errno}", way.name));
                continue;
            }
            let names: Vec<&str> = twin.calls.iter().map(|(call, _)| *call).collect();
            println!("{}: {name}: {}", way.name, names.join(", "));
            for (at, (call, _)) in twin.calls.iter().enumerate() {
                passed.insert((*call).to_owned());
                let before = names[..at].iter().filter(|name| *name == call).count();
                if CREDENTIALS.contains(call) && before % 2 == 1 {
                    continue;
                }
                let errnos = ERRNOS.map(|errno| (Fault::Errno(Errno::from_raw(errno)), None));
                let short = [(Fault::Short, None), (Fault::Short, Some(Fault::Errno(Errno::from_raw(libc::EIO))))];
                let short = short.into_iter().filter(|_| MOVING.contains(call));
                for (fault, then) in errnos.into_iter().chain(short) {
                    let (disturbance, mut wrong) = (Disturbance { at, fault, then }, Vec::new());
                    let runs = bench.run(operation, Some(disturbance), &mut wrong);
                    compare(&way, name, &twin, &runs, disturbance, &mut wrong);
                    failed.extend(
                        wrong.into_iter().map(|what| format!("{}: {name}, {fault:?} then {then:?} at {at}, {call}: {what}", way.name)),
                    );
                    pairs += 1;
                }
            }
        }
    }
    println!("{} system calls, {pairs} faults at the calls of {} operations", passed.len(), OPERATIONS.len());
    passed.extend(NOT_PASSED.map(str::to_owned));
    assert_eq!(passed, failpoints(), "failpoints that no operation passes");
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
}
