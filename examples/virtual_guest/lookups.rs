//! What a daemon holds for the files that a guest knows: descriptors and memory, before the guest looks
//! them up, while it knows them, and after it has forgotten them.

use std::fs::{self, File};
use std::ops::AddAssign;
use std::path::Path;
use std::time::{Duration, Instant};

use gatherfs_support::guest::fuse::{self, ForgetOne};

use crate::Failure;
use crate::cpu::process_tree;
use crate::daemon::Daemon;

/// The directory below the share that the files lie in, in directories of this many.
const LOOKED_UP_DIR: &str = "virtual-guest.looked-up";
const DIR_FILES: usize = 1000;
/// Nodes of a BATCH_FORGET.
const FORGET_NODES: usize = 128;

/// What the processes of a daemon hold together; memory in KiB.
#[derive(Default)]
struct Held {
    descriptors: usize,
    resident: u64,
    proportional: u64,
}

impl Held {
    fn by(pid: u32) -> Result<Self, Failure> {
        let mut held = Self::default();
        for process in process_tree(pid) {
            held += Self::by_one(process).map_err(|e| format!("/proc/{process}: {e}; run this as the daemon's user or as root"))?;
        }
        Ok(held)
    }

    fn by_one(process: u32) -> Result<Self, Failure> {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        let kib = |key: &str| -> Result<u64, Failure> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key)).ok_or("smaps_rollup has other lines than expected")?;
            Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
        };
        let descriptors = fs::read_dir(format!("/proc/{process}/fd"))?.count();
        Ok(Self { descriptors, resident: kib("Rss:")?, proportional: kib("Pss:")? })
    }
}

impl AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        self.descriptors += other.descriptors;
        self.resident += other.resident;
        self.proportional += other.proportional;
    }
}

/// Makes `files` files on the host, looks each up once through every daemon in turn, and prints what
/// the daemons hold.
pub fn lookups(daemons: &mut [&mut Daemon], share: &Path, files: usize) -> Result<(), Failure> {
    make_files(&share.join(LOOKED_UP_DIR), files)?;
    println!(
        "{:<10} {:<25} {:>11} {:>9} {:>9} {:>12} {:>9}",
        "daemon", "the guest", "descriptors", "RSS KiB", "PSS KiB", "PSS B/file", "LOOKUP/s"
    );
    for daemon in daemons {
        let before = Held::by(daemon.pid)?;
        print_row(&daemon.name, "knows nothing", &before, None);
        let start = Instant::now();
        let nodes = look_up(daemon, files)?;
        let seconds = start.elapsed().as_secs_f64();
        let knows = Held::by(daemon.pid)?;
        let bytes = knows.proportional.saturating_sub(before.proportional) as f64 * 1024.0 / files as f64;
        print_row("", &format!("knows {files} files"), &knows, Some((bytes, files as f64 / seconds)));
        forget(daemon, &nodes)?;
        print_row("", "has forgotten them", &Held::by(daemon.pid)?, None);
    }
    fs::remove_dir_all(share.join(LOOKED_UP_DIR))?;
    Ok(())
}

fn print_row(daemon: &str, state: &str, held: &Held, per_file: Option<(f64, f64)>) {
    let (bytes, rate) = per_file.map_or(("-".into(), "-".into()), |(bytes, rate)| (format!("{bytes:.0}"), format!("{rate:.0}")));
    println!("{daemon:<10} {state:<25} {:>11} {:>9} {:>9} {bytes:>12} {rate:>9}", held.descriptors, held.resident, held.proportional);
}

fn make_files(dir: &Path, files: usize) -> Result<(), Failure> {
    for i in 0..files {
        let parent = dir.join((i / DIR_FILES).to_string());
        if i % DIR_FILES == 0 {
            fs::create_dir_all(&parent)?;
        }
        File::create(parent.join(i.to_string()))?;
    }
    Ok(())
}

/// The nodes of the files and of their directories, each looked up once.
fn look_up(daemon: &mut Daemon, files: usize) -> Result<Vec<u64>, Failure> {
    let client = &mut daemon.client;
    let top = client.lookup(fuse::ROOT, LOOKED_UP_DIR)?.nodeid;
    let (mut nodes, mut parent) = (vec![top], top);
    for i in 0..files {
        if i % DIR_FILES == 0 {
            parent = client.lookup(top, &(i / DIR_FILES).to_string())?.nodeid;
            nodes.push(parent);
        }
        nodes.push(client.lookup(parent, &i.to_string())?.nodeid);
    }
    Ok(nodes)
}

/// Forgets the nodes and waits until the daemon has taken the last of them.
fn forget(daemon: &mut Daemon, nodes: &[u64]) -> Result<(), Failure> {
    for batch in nodes.chunks(FORGET_NODES) {
        let batch: Vec<_> = batch.iter().map(|nodeid| ForgetOne { nodeid: *nodeid, nlookup: 1 }).collect();
        daemon.client.batch_forget(&batch)?;
    }
    // A FORGET has no answer.
    std::thread::sleep(Duration::from_secs(1));
    daemon.client.getattr(fuse::ROOT, None)?;
    Ok(())
}
