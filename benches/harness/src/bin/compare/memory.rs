//! Memory for files that the guest has looked up, and after it has forgotten them.

use std::fs;
use std::time::Instant;

use gatherfs_harness::Failure;
use gatherfs_harness::load::held::{self, Held};

use super::daemons::{GATHERFS, Programs};
use super::text::{table, whole};

/// How many files a daemon of this user can hold: without CAP_DAC_READ_SEARCH each needs a descriptor.
fn files_max(files: usize) -> usize {
    if rustix::process::geteuid().is_root() {
        return files;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    // The daemons keep a part for open files.
    files.min(usize::try_from(limit / 2).unwrap_or(files))
}

/// Looks `files` files up through each daemon, and has them forgotten.
pub fn looked_up_files(programs: &Programs, files: usize) -> Result<String, Failure> {
    let files = files_max(files);
    let share = &programs.tmpfs.path;
    held::make_files(share, files)?;
    let mut rows = Vec::new();
    for (name, command) in [(GATHERFS, programs.gatherfs(false)), ("virtiofsd", programs.peer("", false))] {
        let mut daemon = programs.connect(name, &command, share, 1)?;
        daemon.set_busy_poll(true);
        let before = Held::by(daemon.pid)?;
        let start = Instant::now();
        let nodes = held::look_up(&mut daemon, files)?;
        let rate = nodes.len() as f64 / start.elapsed().as_secs_f64();
        let knows = Held::by(daemon.pid)?;
        held::forget(&mut daemon, &nodes)?;
        let after = Held::by(daemon.pid)?;
        rows.push(row(name, nodes.len(), &[before, knows, after], rate));
    }
    fs::remove_dir_all(share.join(held::LOOKED_UP_DIR))?;
    let head = [
        "daemon",
        "Pss before, KiB",
        "with the files",
        "after FORGET",
        "Pss bytes per file",
        "Rss bytes per file",
        "after FORGET",
        "descriptors",
        "LOOKUP/s",
    ];
    Ok(format!(
        "## Memory for {} looked-up files\n\nFrom smaps_rollup of all processes of the daemon, default configuration, files in directories of \
         1,000 on tmpfs. Pss counts shared memory by its share; guest memory that the daemon has touched is in it before and after.\n\n{}",
        whole(files as f64),
        table(&head, &rows)
    ))
}

fn row(name: &str, nodes: usize, [before, knows, after]: &[Held; 3], rate: f64) -> Vec<String> {
    let per_file = |with: u64, without: u64| with.saturating_sub(without) as f64 * 1024.0 / nodes as f64;
    let figures = [
        before.proportional as f64,
        knows.proportional as f64,
        after.proportional as f64,
        per_file(knows.proportional, before.proportional),
        per_file(knows.resident, before.resident),
        per_file(after.proportional, before.proportional),
        knows.descriptors as f64,
        rate,
    ];
    [name.to_owned()].into_iter().chain(figures.map(whole)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_file_are_the_difference_of_memory() {
        let held = |kib| Held { descriptors: 12, resident: kib + 10, proportional: kib };
        let row = row("gatherfs", 1024, &[held(1000), held(1200), held(1050)], 5000.0);
        assert_eq!(row, ["gatherfs", "1,000", "1,200", "1,050", "200", "200", "50", "12", "5,000"]);
    }
}
