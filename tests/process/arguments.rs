//! The command line: what is there, what is refused and in which words.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use gatherfs_support::daemon::{Daemon, Process, Scratch, gatherfsd, is_root, status_field};
use gatherfs_support::guest::client::{Caller, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{assert_serves, command, mount, refused};

/// A user without any rights.
const NOBODY: u32 = 65534;
/// The exit status of a command line that makes no sense.
const USAGE: Option<i32> = Some(2);

/// What `option` prints, which must succeed.
fn help_by(option: &str) -> String {
    let output = gatherfsd().arg(option).output().expect("the program starts");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn help_lists_every_option_and_the_signals() {
    let (help, short) = (help_by("--help"), help_by("-h"));
    for argument in gatherfs::config::command().get_arguments().filter(|argument| !argument.is_hide_set()) {
        let name = argument.get_long().map_or_else(|| format!("-{}", argument.get_short().expect("a name")), |long| format!("--{long}"));
        assert!(help.contains(&name) && short.contains(&name), "{name} is missing in\n{help}");
        assert!(argument.get_help().is_some(), "{name} has no help");
    }
    for word in ["--shared-dir", "--socket-path", "--fd", "--tag", "--sandbox", "--keep-listening", "SIGTERM", "SIGUSR1"] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
}

#[test]
fn help_begins_with_two_examples_and_has_the_options_in_groups() {
    let groups =
        ["Share", "Socket and device", "Caching", "Performance", "Ids and attributes", "Security", "Locks", "Logging", "Compatibility"]
            .map(|g| format!("{g}:"));
    for option in ["--help", "-h"] {
        let help = help_by(option);
        let titles: Vec<&str> = help.lines().filter(|line| line.ends_with(':') && !line.starts_with(' ')).collect();
        assert_eq!((titles[0], &titles[1..]), ("Examples:", &groups.each_ref().map(String::as_str)[..]), "{option}");
        let examples: Vec<&str> = help.lines().map(str::trim).filter(|line| line.starts_with("gatherfsd --shared-dir")).collect();
        assert_eq!(examples.len(), 2, "{help}");
        for example in examples {
            let arguments = gatherfs::config::parse(example.split(' ').map(Into::into)).expect(example);
            gatherfs::config::check(&arguments, true, 1).expect(example);
        }
    }
}

#[test]
fn short_help_has_one_line_for_each_option() {
    let (help, short) = (help_by("--help"), help_by("-h"));
    assert!(short.lines().count() * 2 < help.lines().count(), "{short}");
    let shown = gatherfs::config::command().get_arguments().filter(|argument| !argument.is_hide_set()).count();
    let lines: Vec<&str> = short.lines().skip_while(|line| *line != "Share:").filter(|line| line.starts_with(' ')).collect();
    assert_eq!(lines.len(), shown, "{short}");
    assert!(lines.iter().all(|line| line.trim_start().starts_with('-') && line.len() <= 100), "{short}");
}

#[test]
fn options_without_effect_are_accepted_and_not_in_the_help() {
    let hidden = [
        "--migration-mode=find-paths",
        "--migration-on-error=guest-error",
        "--migration-verify-handles",
        "--migration-confirm-paths",
        "-f",
    ];
    for help in [help_by("--help"), help_by("-h")] {
        assert!(!help.contains("--migration") && !help.contains("  -f"), "{help}");
    }
    let daemon = Daemon::start(&hidden);
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
}

#[test]
fn version_is_the_name_and_the_version() {
    let output = gatherfsd().arg("--version").output().expect("the program starts");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("gatherfsd {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_misspelt_option_is_refused_with_the_right_one() {
    let (status, said) = refused(gatherfsd().args(["--shared-dri", "/srv"]));
    assert_eq!(status.code(), USAGE);
    assert_eq!(said, "gatherfsd: unknown option '--shared-dri'; did you mean --shared-dir?");
    let (status, said) = refused(gatherfsd().arg("--quux"));
    assert_eq!(status.code(), USAGE);
    assert!(said.contains("unknown option '--quux'") && said.contains("--help"), "{said}");
    let (status, said) = refused(gatherfsd().arg("/srv"));
    assert_eq!((status.code(), &said[..]), (USAGE, "gatherfsd: unexpected argument '/srv'; did you mean --shared-dir?"));
}

#[test]
fn no_arguments_at_all_are_answered_with_one_line_of_usage() {
    let (status, said) = refused(&mut gatherfsd());
    assert_eq!(status.code(), USAGE);
    assert_eq!(said, "gatherfsd: usage: gatherfsd --shared-dir DIR --socket-path PATH [OPTION]...; gatherfsd --help lists the options");
}

#[test]
fn a_time_to_poll_that_is_none_is_refused_with_one_that_is() {
    for time in ["soon", "-1", "1.5", "1000001", ""] {
        let (status, said) = refused(gatherfsd().arg(format!("--poll-us={time}")));
        assert_eq!(status.code(), USAGE, "{time}: {said}");
        assert!(said.contains("--poll-us") && said.contains("auto or a number of microseconds up to 1000000"), "{said}");
    }
}

#[test]
fn a_time_to_connect_again_that_is_none_is_refused_with_one_that_is() {
    for time in ["soon", "-1", "inf", "86401", ""] {
        let (status, said) = refused(gatherfsd().arg(format!("--reconnect-timeout={time}")));
        assert_eq!(status.code(), USAGE, "{time}: {said}");
        assert!(said.contains("--reconnect-timeout") && said.contains("a number of seconds from 0 to 86400"), "{said}");
    }
    let (status, said) = refused(gatherfsd().args("--shared-dir /tmp --fd 3 --no-keeper --reconnect-timeout 5".split(' ')));
    assert_eq!(status.code(), USAGE);
    assert!(said.contains("leave out --no-keeper, or give --reconnect-timeout 0"), "{said}");
}

#[test]
fn wishes_that_contradict_each_other_are_refused_with_what_to_write() {
    let long_tag = "t".repeat(37);
    let whole = ["--shared-dir", "/tmp", "--socket-path", "/tmp/gfs-none"];
    let cases: [(&[&str], &[&str], &str); 11] = [
        (&[], &[], "--shared-dir"),
        (&["--shared-dir", "/tmp"], &[], "--socket-path"),
        (&["--socket-path", "/tmp/gfs-none"], &[], "--shared-dir"),
        (&whole, &["--fd", "5"], "one of them"),
        (&["--shared-dir", "/tmp", "--fd", "5"], &["--socket-group", "0"], "--socket-path"),
        (&["--shared-dir", "/tmp"], &["--fd", "2"], "3 and higher"),
        (&whole, &["--num-request-queues", "0"], "1 to 64"),
        (&whole, &["--num-request-queues", "65"], "1 to 64"),
        (&whole, &["--tag", &long_tag], "36"),
        (&whole, &["--tag", ""], "--tag"),
        (&whole, &["--cache", "sometimes"], "metadata"),
    ];
    for (first, more, advice) in cases {
        let (status, said) = refused(gatherfsd().args(first).args(more));
        assert_eq!(status.code(), USAGE, "{first:?} {more:?}");
        assert!(said.contains(advice), "{first:?} {more:?}: {said}");
        assert!(!fs::exists("/tmp/gfs-none").expect("/tmp"), "{first:?} {more:?} made a socket");
    }
}

#[test]
fn a_share_that_is_missing_or_special_is_refused_by_its_path_and_leaves_no_socket() {
    for sandbox in ["none", "chroot", "namespace"] {
        if sandbox != "none" && !is_root("a sandbox") {
            continue;
        }
        let scratch = Scratch::new();
        let fifo = Command::new("mkfifo").arg(scratch.join("fifo")).status().expect("mkfifo is there");
        assert!(fifo.success());
        for (name, words) in [("missing", "No such file"), ("fifo", "neither a directory nor a regular file")] {
            let (share, socket) = (scratch.join(name), scratch.join("s"));
            let mut command = gatherfsd();
            command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket).args(["--sandbox", sandbox]);
            let (status, said) = refused(&mut command);
            assert_eq!(status.code(), Some(1), "{said}");
            assert!(said.contains(share.to_str().expect("text")) && said.contains(words), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(!socket.exists(), "--sandbox {sandbox} left a socket");
        }
    }
}

/// gatherfsd as the user without rights.
fn as_nobody(command: &mut Command) -> &mut Command {
    command.uid(NOBODY).gid(NOBODY)
}

#[test]
fn what_a_user_may_not_do_is_refused_in_a_sentence() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.join("s");
    // The socket's directory is root's.
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    let (_, said) = refused(as_nobody(&mut command(&scratch, &[])));
    assert!(said.contains("cannot listen") && said.contains(socket.to_str().expect("text")), "{said}");
    // The share is root's alone.
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o777)).expect("a mode");
    fs::set_permissions(scratch.join("share"), PermissionsExt::from_mode(0o700)).expect("a mode");
    let (_, said) = refused(as_nobody(&mut command(&scratch, &[])));
    assert!(said.contains("cannot share") && said.contains(scratch.join("share").to_str().expect("text")), "{said}");
    assert!(!socket.exists());
    // In no sandbox is it advised what cannot help: the share stays root's alone.
    for sandbox in ["none", "namespace"] {
        for share in [scratch.join("share"), scratch.join("share").join("below")] {
            let mut command = gatherfsd();
            command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket).args(["--sandbox", sandbox]);
            let (_, said) = refused(as_nobody(&mut command));
            assert_eq!(
                said,
                format!("gatherfsd: cannot share {}: Permission denied (os error 13)", share.display()),
                "--sandbox {sandbox}"
            );
        }
    }
    assert!(!socket.exists());
    // chroot(2) is root's.
    fs::set_permissions(scratch.join("share"), PermissionsExt::from_mode(0o755)).expect("a mode");
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(&socket).args(["--sandbox", "chroot"]);
    let (_, said) = refused(as_nobody(&mut command));
    assert!(said.contains("as root") && said.contains("--sandbox namespace"), "{said}");
    assert!(!socket.exists(), "it left a socket");
}

#[test]
fn a_user_without_rights_shares_what_is_theirs() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    for path in [scratch.path(), &scratch.join("share")] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(scratch.join("share")).arg("--socket-path").arg(scratch.join("s")).args(["--sandbox", "none"]);
    let process = Process::spawn(as_nobody(&mut command));
    process.wait_for_line("sharing ");
    let (_guest, mut client) = mount(&scratch.join("s"));
    client.caller = Caller { uid: NOBODY, gid: NOBODY, pid: 1 };
    assert_serves(&mut client, "dir");
    assert_eq!(status_field(process.serving(), "CapEff"), "0000000000000000");
}

#[test]
fn the_start_line_names_share_tag_and_socket() {
    let daemon = Daemon::start(&["--tag", "holiday pictures"]);
    let line = daemon.wait_for_line("sharing ");
    for word in [daemon.share().to_str(), daemon.socket().to_str(), Some("\"holiday pictures\"")] {
        assert!(line.contains(word.expect("text")), "{line}");
    }
    assert!(!line.contains('\x1b'), "colours belong on a terminal: {line:?}");
}

#[test]
fn the_log_level_decides_what_is_said() {
    let mut said = Vec::new();
    for level in ["off", "warn", "info", "debug"] {
        let scratch = Scratch::new();
        let mut process = Process::spawn(&mut command(&scratch, &["--log-level", level]));
        let (guest, mut client) = mount(&scratch.join("s"));
        // More argument bytes than the header says: worth a warning.
        client.raw(1, 1, &[b'x'; 200_000], 64).expect("a reply");
        drop((guest, client));
        assert!(process.wait().success());
        said.push(process.log());
    }
    assert_eq!(said[0], "");
    assert!(!said[1].contains("sharing "), "{}", said[1]);
    assert!(said[2].contains("sharing ") && said[2].contains("the guest mounted") && !said[2].contains("flags 0x"), "{}", said[2]);
    assert!(said[3].contains("sharing ") && said[3].contains("flags 0x"), "{}", said[3]);
}

#[test]
fn the_start_says_the_policies_and_what_is_off_and_a_mount_says_the_guests_version_and_queues() {
    let mut daemon = Daemon::start(&["--cache", "never", "--locks", "guest", "--inode-file-handles", "never"]);
    let said = daemon.wait_for_line("turned off: ");
    assert!(said.contains("cache never, sandbox none, seccomp kill, locks guest; turned off: READDIRPLUS (--cache never)"), "{said}");
    assert!(said.contains("file handles (--inode-file-handles never)"), "{said}");
    for (request_queues, mounts) in [(1, 1), (3, 2)] {
        daemon = if mounts == 1 { daemon } else { Daemon::start(&[]) };
        let options = GuestOptions { request_queues, ..GuestOptions::default() };
        let guest = Guest::connect(daemon.socket(), &options).expect("a connection");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        assert!(!daemon.log().contains("the guest mounted"), "before INIT");
        client.init().expect("INIT");
        let said = daemon.wait_for_line("the guest mounted the share: FUSE 7.");
        assert!(said.contains(" INFO ") && said.ends_with(&format!("in its kernel, {request_queues} request queue(s)")), "{said}");
    }
}

/// The file that README.md shows, with a share and a socket of the test's.
fn sample_file(scratch: &Scratch) -> String {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    let from = readme.find("    shared-dir = ").expect("the sample");
    let sample: Vec<&str> = readme[from..].lines().map_while(|line| line.strip_prefix("    ")).collect();
    assert!(sample.len() >= 4, "{sample:?}");
    let of_test = |name| scratch.join(name).display().to_string();
    sample.join("\n").replace("/srv/share", &of_test("share")).replace("/run/share.sock", &of_test("s"))
}

#[test]
fn the_file_in_the_readme_serves_where_20_000_descriptors_are_the_hard_limit() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    fs::write(scratch.join("sample.toml"), sample_file(&scratch)).expect("a file");
    let mut command = gatherfsd();
    command.arg("--config").arg(scratch.join("sample.toml")).args(["--sandbox", "none"]);
    let limit = || {
        // Root could raise the limit again.
        let _ = caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE);
        let _ = caps::drop(None, caps::CapSet::Permitted, caps::Capability::CAP_SYS_RESOURCE);
        let _ = caps::drop(None, caps::CapSet::Bounding, caps::Capability::CAP_SYS_RESOURCE);
        Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(20_000) })?)
    };
    // SAFETY: prctl(2), capset(2) and setrlimit(2) may be made between fork and exec.
    unsafe { command.pre_exec(limit) };
    let process = Process::spawn(&mut command);
    process.wait_for_line("sharing ");
    assert_eq!(open_files(process.pid()), 20_000);
    let (_guest, mut client) = mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
}

/// The soft limit of open files of a process.
fn open_files(pid: u32) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process is there");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}

#[test]
fn the_limit_of_open_files_is_what_was_asked_for() {
    let daemon = Daemon::start(&["--rlimit-nofile", "777"]);
    assert_eq!(open_files(daemon.pid()), 777);
    let (_guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "dir");
    let daemon = Daemon::start(&["--rlimit-nofile", "0"]);
    assert_eq!(open_files(daemon.pid()), open_files(std::process::id()), "0 leaves it as it is");
}

#[test]
fn a_limit_of_open_files_that_cannot_be_had_is_refused() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o777)).expect("a mode");
    let (_, said) = refused(as_nobody(&mut command(&scratch, &["--rlimit-nofile", "4000000000"])));
    assert!(said.contains("open files") && said.contains("--rlimit-nofile"), "{said}");
    assert!(!scratch.join("s").exists(), "it left a socket");
}
