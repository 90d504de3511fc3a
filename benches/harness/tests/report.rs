//! The program `compare` from its command line to its report, with gatherfsd in the place of virtiofsd, whose options it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gatherfs_support::daemon::Scratch;

/// The gatherfsd of the same build.
fn gatherfsd() -> PathBuf {
    let build = Path::new(env!("CARGO_BIN_EXE_compare")).parent().expect("the build's directory");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--package", "gatherfs", "--bin", "gatherfsd", "--target-dir"]);
    cargo.arg(build.parent().expect("the target directory")).current_dir(env!("CARGO_MANIFEST_DIR"));
    if build.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo starts").success());
    build.join("gatherfsd")
}

/// Runs it with its directories in `scratch`, except for the one on /dev/shm.
fn compare(scratch: &Scratch, virtiofsd: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
    command.args(["--gatherfsd".as_ref(), gatherfsd().as_os_str(), "--virtiofsd".as_ref(), virtiofsd.as_os_str()]);
    command.arg("--out").arg(scratch.join("out")).arg("--disk").arg(scratch.path()).env("TMPDIR", scratch.path());
    command
        .args(["--sandbox", "none", "--rounds", "2", "--seconds", "0.01", "--files", "1500"])
        .args(arguments)
        .output()
        .expect("it starts")
}

fn left_on_tmpfs() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev/shm").expect("tmpfs").flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains("gatherfs-compare-")).collect()
}

#[test]
fn a_run_writes_tables_plots_and_raw_figures_and_leaves_nothing_else() {
    let scratch = Scratch::new();
    let before = left_on_tmpfs();
    let arguments = ["--only", "origin:", "--only", "GETATTR", "--only", "segments: ", "--only", "memory", "--only", "O_DIRECT READ 32"];
    let said = compare(&scratch, &gatherfsd(), &arguments);
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{errors}");
    let report = fs::read_to_string(scratch.join("out/README.md")).expect("the report");
    let wanted = [
        "\n| GETATTR | ",
        "\n| READ 1024 x 4 KiB = 4 MiB | ",
        "\n| readv packed | ",
        "\n| O_DIRECT READ 32 x 4 KiB, depth 16 | ",
        "## Memory for 1,500 looked-up files",
        "](metadata.svg)",
        "](segments.svg)",
        "--sandbox none",
    ];
    for text in wanted {
        assert!(report.contains(text), "{text} is missing in\n{report}\n{errors}");
    }
    for plot in ["metadata.svg", "segments.svg", "cpu.svg"] {
        let svg = fs::read_to_string(scratch.join("out").join(plot)).expect("a plot");
        assert!(svg.starts_with("<svg") && svg.contains("gatherfs"), "{plot}: {svg}");
    }
    let raw = fs::read_to_string(scratch.join("out/figures.csv")).expect("raw figures");
    assert!(raw.contains("OneCpu,\"GETATTR\",pool 16,"), "{raw}");
    assert_eq!(left_on_tmpfs(), before);
    let left = fs::read_dir(scratch.path()).expect("a directory").flatten();
    let left: Vec<_> = left.filter(|entry| entry.file_name() != "out").map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_daemon_that_cannot_run_is_named() {
    let scratch = Scratch::new();
    let said = compare(&scratch, Path::new("/nonexistent/virtiofsd"), &["--only", "GETATTR"]);
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && errors.contains("/nonexistent/virtiofsd") && errors.contains("benches/compare"), "{errors}");
    let said = compare(&scratch, Path::new("/bin/true"), &["--only", "GETATTR"]);
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && errors.contains("/bin/true ended before it listened"), "{errors}");
}
