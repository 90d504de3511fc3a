//! Writes the manual page and the shell completions into a directory:
//! `cargo run --example manual -- OUTDIR`.

use std::path::PathBuf;
use std::process::ExitCode;

use gatherfs_support::manual;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("manual: no output directory; use: cargo run --example manual -- OUTDIR");
        return ExitCode::from(2);
    };
    match manual::write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("manual: cannot write to {}: {e}", directory.display());
            ExitCode::FAILURE
        }
    }
}
