//! What the processes of a daemon hold together: descriptors and memory; and looking up many files, for which they hold it.

use std::fs::{self, File};
use std::ops::AddAssign;
use std::path::Path;
use std::time::Duration;

use gatherfs_support::guest::fuse::{self, ForgetOne};

use super::cpu::process_tree;
use super::daemon::Daemon;
use crate::Failure;

/// The directory below the share that the files lie in, in directories of `DIR_FILES`.
pub const LOOKED_UP_DIR: &str = "virtual-guest.looked-up";
const DIR_FILES: usize = 1000;
/// Nodes of a BATCH_FORGET.
const FORGET_NODES: usize = 128;

/// Descriptors, and memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: usize,
    /// Resident memory.
    pub resident: u64,
    /// Resident memory with shared pages divided by those who share them.
    pub proportional: u64,
}

impl Held {
    /// What process `pid` and its descendants hold.
    pub fn by(pid: u32) -> Result<Self, Failure> {
        let mut held = Self::default();
        for process in process_tree(pid) {
            held += Self::by_one(process).map_err(|e| format!("/proc/{process}: {e}; run this as the daemon's user or as root"))?;
        }
        Ok(held)
    }

    fn by_one(process: u32) -> Result<Self, Failure> {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        let descriptors = fs::read_dir(format!("/proc/{process}/fd"))?.count();
        let (resident, proportional) = rollup_kib(&rollup).ok_or("smaps_rollup has other lines than expected")?;
        Ok(Self { descriptors, resident, proportional })
    }
}

/// Rss and Pss of a smaps_rollup, in KiB.
fn rollup_kib(rollup: &str) -> Option<(u64, u64)> {
    let kib = |key: &str| rollup.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok();
    Some((kib("Rss:")?, kib("Pss:")?))
}

impl AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        self.descriptors += other.descriptors;
        self.resident += other.resident;
        self.proportional += other.proportional;
    }
}

/// Makes `files` files below `share`, to be looked up.
pub fn make_files(share: &Path, files: usize) -> Result<(), Failure> {
    for i in 0..files {
        let parent = share.join(LOOKED_UP_DIR).join((i / DIR_FILES).to_string());
        if i % DIR_FILES == 0 {
            fs::create_dir_all(&parent)?;
        }
        File::create(parent.join(i.to_string()))?;
    }
    Ok(())
}

/// Looks each file of `make_files` up once: the nodes of the files and of their directories.
pub fn look_up(daemon: &mut Daemon, files: usize) -> Result<Vec<u64>, Failure> {
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

/// Forgets the nodes, each looked up once, and waits until the daemon has taken the last of them.
pub fn forget(daemon: &mut Daemon, nodes: &[u64]) -> Result<(), Failure> {
    let one = |nodeid: &u64| ForgetOne { nodeid: *nodeid, nlookup: 1 };
    for batch in nodes.chunks(FORGET_NODES) {
        daemon.client.batch_forget(&batch.iter().map(one).collect::<Vec<_>>())?;
    }
    // A FORGET has no answer.
    std::thread::sleep(Duration::from_secs(1));
    daemon.client.getattr(fuse::ROOT, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_has_resident_and_proportional_memory() {
        let rollup = "5581d0a00000-7ffe0f1f2000 ---p 00000000 00:00 0    [rollup]\nRss:                3420 kB\nPss:                1217 kB\nPss_Dirty: 9 kB\n";
        assert_eq!(rollup_kib(rollup), Some((3420, 1217)));
        assert_eq!(rollup_kib("Rss: 1 kB\n"), None);
    }

    #[test]
    fn this_process_holds_memory_and_descriptors() {
        let held = Held::by(std::process::id()).unwrap();
        assert!(held.descriptors >= 3 && held.resident >= held.proportional && held.proportional > 0, "{held:?}");
    }
}
