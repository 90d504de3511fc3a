//! The load generator of `examples/virtual_guest` as a program: no daemon that it started outlives it, and what it checks under
//! kills is right, and is noticed where it is not.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use gatherfs_support::daemon::{Scratch, eventually};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// The program, from the same build as the daemon under test.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build_program)
}

fn build_program() -> PathBuf {
    let build = Path::new(env!("CARGO_BIN_EXE_gatherfsd")).parent().expect("the build's directory");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--example", "virtual_guest", "--target-dir"]);
    cargo.arg(build.parent().expect("the target directory")).current_dir(env!("CARGO_MANIFEST_DIR"));
    if build.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo starts").success());
    build.join("examples/virtual_guest")
}

/// A run of the program with its temporary files and share in a directory of the test's.
struct Run {
    child: Child,
    scratch: Scratch,
}

impl Run {
    /// Runs it with `arguments`, in which DAEMON is the daemon under test.
    fn start(arguments: &[&str]) -> Self {
        let scratch = Scratch::new();
        let share = scratch.join("share");
        let mut command = Command::new(program());
        command.env("TMPDIR", scratch.path()).arg("--dir").arg(&share);
        command.args(arguments.iter().map(|a| a.replace("DAEMON", env!("CARGO_BIN_EXE_gatherfsd"))));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        Self { child, scratch }
    }

    fn directory(&self) -> PathBuf {
        self.scratch.join(&format!("virtual-guest-{}", self.child.id()))
    }

    /// The process id of the daemon that it started, once that listens.
    fn daemon(&self) -> Pid {
        let file = self.directory().join("0.sock.pid");
        let mut pid = None;
        let listens = eventually(|| {
            pid = fs::read_to_string(&file).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
            pid.is_some()
        });
        assert!(listens, "the daemon does not listen");
        pid.expect("found above")
    }

    /// Waits for its end: the status and what it wrote to standard error.
    fn end(&mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut said).expect("text");
        (self.child.wait().expect("it can be waited for"), said)
    }

    /// What it wrote to standard output, after its end. It is less than a pipe holds.
    fn printed(&mut self) -> String {
        let mut printed = String::new();
        let mut stdout = self.child.stdout.take().expect("a pipe");
        stdout.read_to_string(&mut printed).expect("text");
        printed
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_gone(daemon: Pid, what: &str) {
    assert!(eventually(|| test_kill_process(daemon).is_err()), "{what}: the daemon was left running");
}

const SHORT: [&str; 8] = ["--rounds", "1", "--seconds", "0.01", "--file-size", "1", "io", "--depth=1"];
const LONG: [&str; 8] = ["--rounds", "1", "--seconds", "600", "--file-size", "1", "io", "--depth=1"];
const SHARE: &str = "--shared-dir {dir} --sandbox none";

#[test]
fn the_socket_has_two_placeholders_and_without_a_target_the_built_daemon_is_measured() {
    for place in ["{sock}", "{socket}"] {
        let daemon = format!("DAEMON {SHARE} --socket-path {place}");
        let (status, said) = Run::start(&[&["--daemon", &daemon][..], &SHORT].concat()).end();
        assert!(status.success(), "{place}: {said}");
    }
    let mut run = Run::start(&[&["--cold"][..], &SHORT].concat());
    let (status, said) = run.end();
    assert!(status.success() && said.contains(&format!("measuring {}", env!("CARGO_BIN_EXE_gatherfsd"))), "{said}");
    assert!(!run.directory().exists(), "it left its directory");
}

#[test]
fn a_daemon_ends_with_a_run_that_fails() {
    // It listens somewhere else; it has the wrong options for the measurement; its socket never comes.
    let elsewhere = Scratch::new();
    let daemon = format!("DAEMON {SHARE} --socket-path {}", elsewhere.join("s").display());
    let (status, said) = Run::start(&[&["--daemon", &daemon][..], &SHORT].concat()).end();
    assert!(!status.success() && said.contains("{sock}"), "{said}");
    assert!(!elsewhere.join("s").exists(), "a daemon was started whose socket is not known");
    let mut run = Run::start(&[&["--daemon", &format!("DAEMON {SHARE} --socket-path {{sock}} --readonly")][..], &SHORT].concat());
    let daemon = run.daemon();
    assert!(!run.end().0.success(), "a share that cannot be written to");
    assert_gone(daemon, "a failure");
    assert!(!run.directory().exists(), "it left its directory");
    let (status, said) = Run::start(&[&["--daemon", &format!("DAEMON {SHARE} --socket-path {{sock}} --quux")][..], &SHORT].concat()).end();
    assert!(!status.success() && said.contains("ended before it listened"), "{said}");
}

#[test]
fn a_daemon_ends_with_a_run_that_a_signal_ends() {
    let daemon = format!("DAEMON {SHARE} --socket-path {{socket}}");
    // SIGABRT is how a panic ends a release build.
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::ABORT, Signal::KILL] {
        let mut run = Run::start(&[&["--daemon", &daemon][..], &LONG].concat());
        let daemon = run.daemon();
        kill_process(Pid::from_child(&run.child), signal).expect("it runs");
        let (status, said) = run.end();
        assert_gone(daemon, &format!("{signal:?}"));
        assert_eq!(status.signal(), Some(signal.as_raw()), "{said}");
        if [Signal::INT, Signal::TERM, Signal::HUP].contains(&signal) {
            assert!(!run.directory().exists(), "{signal:?}: it left its directory");
        }
    }
}

const DAEMON: &str = "DAEMON --shared-dir {dir} --sandbox none --socket-path {sock}";
const KILLS: [&str; 9] = ["--queues", "2", "kills", "--count", "5", "--every-ms", "30", "--quiet-seconds", "0.2"];

#[test]
fn a_load_is_served_right_while_workers_are_killed_and_the_daemon_is_upgraded() {
    for options in ["", " --inode-file-handles=never", " --allow-direct-io"] {
        let direct: &[&str] = if options.contains("direct") { &["--direct"] } else { &[] };
        // Landlock, which restricts files where there are no handles, lets no dynamic linker begin.
        let upgrades = if options.contains("never") { "0" } else { "2" };
        let mut run = Run::start(&[&["--daemon", &format!("{DAEMON}{options}")], direct, &KILLS[..], &["--upgrades", upgrades]].concat());
        let (status, said) = run.end();
        let printed = run.printed();
        assert!(status.success(), "{options}: {said}{printed}");
        let of_upgrades = format!("upgrades               {upgrades} of");
        let mut expected = vec!["kills                  5 of", &of_upgrades, "errors                 0"];
        expected.extend(["pauses without kills   median", "pauses at kills        median"]);
        expected.extend((upgrades != "0").then_some("pauses at upgrades     median"));
        for line in expected {
            assert!(printed.contains(line), "{options}: no {line} in\n{printed}");
        }
        assert!(!run.scratch.join("share/virtual-guest.kills").exists(), "it left its files");
    }
}

#[test]
fn what_is_not_served_right_under_kills_is_noticed() {
    let mut run = Run::start(&["--daemon", &format!("{DAEMON} --no-keeper"), "--queues", "2", "kills"]);
    let (status, said) = run.end();
    assert!(!status.success() && said.contains("has no keeper"), "{said}");
    let mut run = Run::start(&["--daemon", DAEMON, "--queues", "65", "kills"]);
    let (status, said) = run.end();
    assert!(!status.success() && said.contains("has 64 request queues"), "{said}");
    // Another process takes away what was written, on which every lane of READs looks at the end at the latest.
    let mut run = Run::start(&["--daemon", DAEMON, "--queues", "2", "kills", "--count", "1", "--quiet-seconds", "600"]);
    let data = run.scratch.join("share/virtual-guest.kills/1/data");
    let written = || fs::metadata(&data).map_or(0, |found| found.blocks() * 512);
    assert!(eventually(|| written() > 1 << 20), "no load");
    fs::File::options().write(true).open(&data).expect("the file").set_len(0).expect("it can be emptied");
    let (status, said) = run.end();
    let printed = run.printed();
    assert!(!status.success() && said.contains("errors, 0 kills") && printed.contains("queue 1: "), "{said}{printed}");
}
