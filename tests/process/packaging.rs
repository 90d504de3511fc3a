//! What the packages bring beside the program: units of systemd, the socket that they pass on, the example
//! of a file with options.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gatherfs_support::daemon::{Process, Scratch, gatherfsd, is_root};
use rustix::process::Signal;

use super::{assert_serves, inherit, mount, refused};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/packaging").join(name)
}

/// Whether `program` is there; says that `test` is skipped where it is not.
fn is_there(program: &str, test: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        println!("skipped: {test} needs {program}");
    }
    there
}

/// gatherfsd as a service manager starts it with `sockets` of them passed on, which are all `listener`.
fn started_with(listener: &UnixListener, sockets: u32, options: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&700 4<&700 700<&-"]).arg(gatherfsd().get_program());
    command.env("LISTEN_FDS", sockets.to_string()).args(["--sandbox", "none"]).args(options);
    inherit(&mut command, listener, 700);
    command
}

#[test]
fn the_socket_of_a_service_manager_is_served_and_left_to_it() {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.join("s")).expect("a socket");
    let share = scratch.path().to_str().expect("text");
    let mut process = Process::spawn(&mut started_with(&listener, 1, &["--shared-dir", share]));
    let line = process.wait_for_line("sharing ");
    assert!(line.contains("inherited socket 3"), "{line}");
    let (guest, mut client) = mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert!(process.wait().success());
    assert!(scratch.join("s").exists() && !scratch.join("s.pid").exists(), "the socket is not the daemon's");
}

#[test]
fn a_socket_that_was_named_is_taken_in_place_of_one_that_was_passed() {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.join("passed")).expect("a socket");
    let (share, named) = (scratch.path().to_str().expect("text"), scratch.join("named"));
    let options = ["--shared-dir", share, "--socket-path", named.to_str().expect("text")];
    let mut process = Process::spawn(&mut started_with(&listener, 1, &options));
    assert!(process.wait_for_line("sharing ").contains("/named"));
    process.signal(Signal::TERM);
    assert!(process.wait().success());
}

#[test]
fn two_passed_sockets_are_refused_and_none_is_as_if_nothing_was_said() {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.join("s")).expect("a socket");
    let share = scratch.path().to_str().expect("text");
    let (status, said) = refused(&mut started_with(&listener, 2, &["--shared-dir", share]));
    assert_eq!(status.code(), Some(2));
    assert!(said.contains("LISTEN_FDS=2 is not one socket"), "{said}");
    let (_, said) = refused(&mut started_with(&listener, 0, &["--shared-dir", share]));
    assert!(said.contains("no socket to listen on"), "{said}");
}

#[test]
fn systemds_own_activation_starts_the_daemon_at_the_first_connection() {
    if !is_there("systemd-socket-activate", "activation") {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.join("s");
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(&socket).arg(gatherfsd().get_program());
    command.arg("--shared-dir").arg(scratch.path()).args(["--sandbox", "none"]);
    let mut process = Process::spawn(&mut command);
    process.wait_for_line("Listening on");
    let (guest, mut client) = mount(&socket);
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert!(process.wait().success());
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    if !is_there("systemd-analyze", "verifying units") {
        return;
    }
    let version = Command::new("systemd-analyze").arg("--version").output().expect("it starts").stdout;
    let version = String::from_utf8_lossy(&version).split_whitespace().nth(1).and_then(|number| number.parse::<u32>().ok());
    let reloads = version.is_none_or(|version| version >= 253);
    if !reloads {
        println!("not verified: Type=notify-reload, which systemd has since version 253; Type=notify in its place");
    }
    let scratch = Scratch::new();
    for unit in ["gatherfsd@.service", "gatherfsd@.socket"] {
        let text = fs::read_to_string(packaging(unit)).expect("the unit");
        let program = gatherfsd().get_program().to_str().expect("text").to_owned();
        let text = text.replace("/usr/bin/gatherfsd", &program);
        let text = if reloads { text } else { text.replace("Type=notify-reload\nReloadSignal=SIGUSR2\n", "Type=notify\n") };
        fs::write(scratch.join(unit), text).expect("a file");
    }
    let units = ["gatherfsd@share.service", "gatherfsd@share.socket"].map(|unit| scratch.join(unit));
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("gatherfsd")).collect();
    assert!(output.status.success() && about_ours.is_empty(), "{said}");
}

/// The values of `key` in the service's unit, which may stand there several times.
fn of_the_service(key: &str) -> Vec<String> {
    let text = fs::read_to_string(packaging("gatherfsd@.service")).expect("the unit");
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[test]
fn the_capabilities_of_the_unit_are_enough_for_the_sandbox_and_for_serving() {
    if !is_root("dropping capabilities") {
        return;
    }
    let kept: Vec<String> =
        of_the_service("CapabilityBoundingSet").iter().map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    assert!(kept.len() > 5, "{kept:?}");
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    let mut command = Command::new("setpriv");
    command.arg("--no-new-privs").arg(format!("--bounding-set=-all,{}", kept.join(","))).arg(gatherfsd().get_program());
    command.arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(scratch.join("s"));
    let mut process = Process::spawn(command.args(["--sandbox", "namespace"]));
    process.wait_for_line("sharing ");
    let (guest, mut client) = mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
    drop((guest, client));
    assert!(process.wait().success());
}

#[test]
fn the_example_of_a_file_names_options_as_they_are() {
    let text = fs::read_to_string(packaging("example.toml")).expect("the example");
    let with_all: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())).unwrap_or(line))
        .collect();
    assert!(with_all.join("\n").matches(" = ").count() > 4);
    let scratch = Scratch::new();
    fs::write(scratch.join("f.toml"), with_all.join("\n")).expect("a file");
    for file in [packaging("example.toml"), scratch.join("f.toml")] {
        let words = ["gatherfsd".into(), "--config".into(), file.into_os_string()];
        let arguments = gatherfs::config::parse(words).expect("options");
        assert_eq!(arguments.shared_dir.as_deref(), Some(Path::new("/srv/share")));
        assert!(arguments.socket_path.is_none() && arguments.fd.is_none(), "the socket is the unit's");
    }
}

/// By the names of the functions in the program, as the tests build it.
#[test]
#[cfg(not(feature = "failpoints"))]
fn the_program_has_no_failpoints() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_gatherfsd")).unwrap();
    let has = |name: &str| program.windows(name.len()).any(|bytes| bytes == name.as_bytes());
    // The path of a module in a mangled name: each part behind its length.
    assert!(has("3sys4stat") && !has("3sys9failpoint"), "built with the feature failpoints, or without names");
}
