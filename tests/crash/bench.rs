//! A daemon with a guest, and one operation on it, during which workers die.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatherfs::sys::crash_plan::{CrashPlan, now_ns};
use gatherfs_support::daemon::{Daemon, PATIENCE, Scratch, children_of, eventually};
use gatherfs_support::guest::client::{CallError, Client, Result};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{ROOT, init};
use gatherfs_support::operations::Operation;
use gatherfs_support::operations::world::{LEN, Tree, World, tree};

/// A kind of share.
#[derive(Clone, Copy)]
pub struct Way {
    options: &'static [&'static str],
    /// The guest may export the share: forgotten nodes are retained.
    exports: bool,
    /// How long a worker has lived, at least, when it dies.
    life: Duration,
    /// Whether the transfer is short that it dies behind.
    cuts: bool,
}

impl Way {
    /// The same, with workers that have lived for `life` when they die.
    pub fn living(self, life: Duration) -> Way {
        Way { life, ..self }
    }

    /// The same, where a transfer that the death comes behind is cut short, as the kernel does.
    pub fn cutting(self) -> Way {
        Way { cuts: true, ..self }
    }
}

/// Options with which every operation can be sent.
const ALL: [&str; 7] =
    ["--xattr", "--allow-direct-io", "--io-engine=sync", "--birth-times", "--tmpfile=always", "--locks=host", "--security-label=auto"];

pub const BY_HANDLE: Way = Way { options: &[], exports: false, life: Duration::ZERO, cuts: false };
pub const BY_DESCRIPTOR: Way = Way { options: &["--inode-file-handles=never"], ..BY_HANDLE };
pub const EXPORTED: Way = Way { exports: true, ..BY_HANDLE };

/// Before a worker is looked at whether it is at rest: what was sent to it has arrived.
const QUIET: Duration = Duration::from_millis(2);

/// A daemon, its guest and the plan of deaths.
pub struct Bench {
    client: Client,
    plan: CrashPlan,
    worlds: usize,
    life: Duration,
    cuts: bool,
    _guest: Arc<Guest>,
    daemon: Daemon,
}

/// An operation that was carried out.
pub struct Run {
    /// What the guest heard.
    pub answer: std::result::Result<String, i32>,
    /// The points that were passed, up to the last death, or all.
    pub points: Vec<String>,
    /// From the death to the answer, or to that of the next request where the first was answered already.
    pub pause_us: Option<u64>,
    after: Tree,
    /// What the guest hears of its nodes and handles.
    known: Vec<String>,
}

impl Run {
    /// The name of point `number`.
    pub fn point(&self, number: u32) -> &str {
        self.points.get(number as usize).map_or("none", String::as_str)
    }

    /// Holds it against its `twin`. What is not as it must be is added to `wrong`.
    pub fn compare(&self, twin: &Run, wrong: &mut Vec<String>) {
        if self.answer != twin.answer {
            wrong.push(format!("answered {:?}, twin {:?}", self.answer, twin.answer));
        }
        for name in self.after.keys().chain(twin.after.keys()).filter(|name| self.after.get(*name) != twin.after.get(*name)) {
            let told = |tree: &Tree| {
                tree.get(name).map(|(mode, uid, gid, links, set, attributes, contents)| {
                    format!("{mode:o} {uid} {gid} {links} {set:?} {attributes:?} {} bytes", contents.len())
                })
            };
            wrong.push(format!("left {}: {:?}, twin {:?}", name.display(), told(&self.after), told(&twin.after)));
        }
        for (ours, twins) in self.known.iter().zip(&twin.known).filter(|(ours, twins)| ours != twins) {
            wrong.push(format!("afterwards {ours}, twin {twins}"));
        }
    }
}

impl Bench {
    pub fn start(way: Way) -> Bench {
        let scratch = Scratch::on_tmpfs();
        let path = scratch.join("plan");
        let plan = CrashPlan::map(&path).unwrap();
        let daemon = Daemon::start_with(scratch, &[&ALL[..], way.options].concat(), &[("GATHERFS_CRASHES", &path)]);
        let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).unwrap();
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.init_with(if way.exports { init::LINUX } else { init::LINUX & !init::EXPORT_SUPPORT }).unwrap();
        // What the keeper and the worker open at their start is open: both have answered a signal.
        (0..3).for_each(|_| _ = daemon.metrics());
        Bench { client, plan, worlds: 0, life: way.life, cuts: way.cuts, _guest: guest, daemon }
    }

    /// Carries `operation` out in a directory of its own; workers die at the points `dies_at`. What is left behind is added to `wrong`.
    pub fn run(&mut self, operation: &Operation, dies_at: &[u32], wrong: &mut Vec<String>) -> Run {
        let deaths: Vec<_> = dies_at.iter().map(|at| (*at, libc::SIGKILL)).collect();
        self.run_by(operation, &deaths, wrong)
    }

    /// As `run`, with the signals by which workers die.
    pub fn run_by(&mut self, operation: &Operation, deaths: &[(u32, i32)], wrong: &mut Vec<String>) -> Run {
        self.worlds += 1;
        let shared = self.daemon.share().to_owned();
        let before = self.open();
        let mut world = World::begin(&mut self.client, &shared, &format!("world{}", self.worlds), false);
        std::thread::sleep(self.life);
        wait_until_at_rest(&self.daemon);
        self.plan.begin(deaths, self.cuts);
        let answer = operation.1(&mut world);
        let answered_ns = now_ns();
        // A worker may die after it has answered.
        if !within(PATIENCE, || self.plan.deaths() == deaths.len()) {
            wrong.push(format!("{} deaths instead of {}", self.plan.deaths(), deaths.len()));
        }
        wait_until_at_rest(&self.daemon);
        self.plan.end();
        let points = self.plan.passed();
        let _ = world.client.getattr(ROOT, None).inspect_err(|error| wrong.push(format!("GETATTR afterwards: {error}")));
        let died_ns = self.plan.died_ns();
        let answered_ns = if answered_ns > died_ns { answered_ns } else { now_ns() };
        let pause_us = (!deaths.is_empty()).then(|| (answered_ns - died_ns) / 1000);
        let answer = answer.map_err(|error| error.errno().unwrap_or_else(|| panic!("{}: {error}\n{}", operation.0, self.daemon.log())));
        let (after, known) = (tree(world.path()), known(&mut world));
        if let Err(error) = world.end() {
            wrong.push(format!("what it opened cannot be released: {error}"));
        }
        // A FORGET that was begun is not repeated: the node lives until the session ends.
        let is_left = deaths.iter().any(|(at, _)| points.get(*at as usize).is_some_and(|point| point == "forgetting"));
        let is_right = |held: Vec<String>| held == before || is_left && held.len() <= before.len() + 1;
        if !within(PATIENCE, || is_right(self.open())) {
            wrong.push(format!("has {:?} open, before {before:?}", self.open()));
        }
        Run { answer, points, pause_us, after, known }
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// What the daemon has open, without the numbers of sockets and the like.
    fn open(&self) -> Vec<String> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.daemon.keeper())).unwrap();
        let open = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let mut open: Vec<String> = open
            .map(|path| path.to_string_lossy().trim_end_matches([']', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']).to_owned())
            .collect();
        open.sort();
        open
    }
}

/// Whether `condition` comes true within `time`.
fn within(time: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// Waits until there is one worker, and each of its threads sleeps: it passes no more points. One that has answered may still run.
pub fn wait_until_at_rest(daemon: &Daemon) {
    let is_asleep = |task: &Path| fs::read_to_string(task.join("stat")).is_ok_and(|stat| stat.contains(") S "));
    let is_at_rest = || match children_of(daemon.keeper())[..] {
        [worker] => {
            let tasks = fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten().flatten();
            tasks.map(|task| task.path()).all(|task| is_asleep(&task))
        }
        _ => false,
    };
    assert!(
        eventually(|| {
            std::thread::sleep(QUIET);
            is_at_rest()
        }),
        "{}",
        daemon.log()
    );
}

/// What the guest hears of what it knew before the operation.
fn known(world: &mut World<'_>) -> Vec<String> {
    fn told<T: std::fmt::Debug>(what: &str, result: Result<T>) -> String {
        format!("{what}: {:?}", result.map_err(|error: CallError| error.to_string()))
    }
    let mut known = Vec::new();
    for (name, node) in [("file", world.file), ("other", world.other)] {
        let attributes = world.client.getattr(node, None).map(|out| (out.attr.mode, out.attr.size, out.attr.nlink, out.attr.uid));
        known.push(told(name, attributes));
    }
    for (name, node, fh) in [("file", world.file, world.fh), ("other", world.other, world.other_fh)] {
        known.push(told(&format!("handle of {name}"), world.client.read(node, fh, 0, LEN as u32)));
    }
    let names = world.client.readdir(world.sub, world.sub_fh, 0, 4096).map(|entries| entries.len());
    known.push(told("handle of sub", names));
    known
}
