//! What a daemon holds for the files that a guest knows: descriptors and memory, before the guest looks
//! them up, while it knows them, and after it has forgotten them.

use std::fs;
use std::path::Path;
use std::time::Instant;

use gatherfs_harness::Failure;
use gatherfs_harness::load::Daemon;
use gatherfs_harness::load::held::{self, Held};

/// Makes `files` files on the host, looks each up once through every daemon in turn, and prints what
/// the daemons hold.
pub fn lookups(daemons: &mut [&mut Daemon], share: &Path, files: usize) -> Result<(), Failure> {
    held::make_files(share, files)?;
    println!(
        "{:<10} {:<25} {:>11} {:>9} {:>9} {:>12} {:>9}",
        "daemon", "the guest", "descriptors", "RSS KiB", "PSS KiB", "PSS B/file", "LOOKUP/s"
    );
    for daemon in daemons {
        let before = Held::by(daemon.pid)?;
        print_row(&daemon.name, "knows nothing", &before, None);
        let start = Instant::now();
        let nodes = held::look_up(daemon, files)?;
        let seconds = start.elapsed().as_secs_f64();
        let knows = Held::by(daemon.pid)?;
        let bytes = knows.proportional.saturating_sub(before.proportional) as f64 * 1024.0 / files as f64;
        print_row("", &format!("knows {files} files"), &knows, Some((bytes, files as f64 / seconds)));
        held::forget(daemon, &nodes)?;
        print_row("", "has forgotten them", &Held::by(daemon.pid)?, None);
    }
    fs::remove_dir_all(share.join(held::LOOKED_UP_DIR))?;
    Ok(())
}

fn print_row(daemon: &str, state: &str, held: &Held, per_file: Option<(f64, f64)>) {
    let (bytes, rate) = per_file.map_or(("-".into(), "-".into()), |(bytes, rate)| (format!("{bytes:.0}"), format!("{rate:.0}")));
    println!("{daemon:<10} {state:<25} {:>11} {:>9} {:>9} {bytes:>12} {rate:>9}", held.descriptors, held.resident, held.proportional);
}
