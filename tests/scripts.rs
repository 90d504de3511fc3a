//! What the scripts of qemu, tests and benches and their libraries say where something is missing or goes wrong, and how they
//! read the daemon's counters. No guest is booted and nothing is measured.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use gatherfs_support::daemon::{self, Scratch, is_root};
use gatherfs_support::places;

const NOBODY: u32 = 65534;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs lines of bash with the libraries that they name, below the repository.
fn bash(libraries: &[&str], lines: &str) -> Output {
    let mut script = String::from("set -euo pipefail\ndie() { echo \"REASON $*\" >&2; exit 125; }\n");
    for library in libraries {
        script.push_str(&format!(". '{}'\n", repository().join(library).display()));
    }
    script.push_str(lines);
    Command::new("bash").arg("-c").arg(script).output().expect("bash is there")
}

/// A directory with links to the programs of this machine, but those whose name begins with one of `without`, and with a
/// Rust that says that it is `rust`.
fn programs(scratch: &Scratch, without: &[&str], rust: Option<&str>) -> PathBuf {
    let directory = scratch.join("bin");
    fs::create_dir(&directory).expect("a directory");
    for place in ["/usr/bin", "/bin"] {
        for entry in fs::read_dir(place).expect("programs").flatten() {
            let name = entry.file_name().into_string().expect("text");
            if !["rustc", "cargo"].contains(&name.as_str()) && !without.iter().any(|start| name.starts_with(start)) {
                let _ = symlink(entry.path(), directory.join(name));
            }
        }
    }
    if let Some(version) = rust {
        // By another process: a file that a child of another thread still has open for writing cannot be run.
        let lines = "for name in rustc cargo; do printf '#!/bin/sh\\necho \"%s %s (of a test)\"\\n' $name $1 >$name; chmod 755 $name; done";
        let made = Command::new("sh").args(["-ec", lines, "sh", version]).current_dir(&directory).status();
        assert!(made.expect("sh is there").success());
    }
    directory
}

/// Runs one of the repository's scripts with these programs and a home that has none.
fn script(name: &Path, programs: &Path, home: &Path) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", programs).env("HOME", home).env_remove("CARGO_HOME").env_remove("GATHERFSD").stdin(Stdio::null());
    command
}

#[test]
fn a_rust_that_is_too_old_is_named_before_anything_is_built() {
    let scratch = Scratch::new();
    // Also where QEMU is missing: nothing is installed first.
    let programs = programs(&scratch, &["qemu-system"], Some("1.65.0"));
    for name in ["qemu/run", "tests/run"] {
        let said = script(&repository().join(name), &programs, scratch.path()).output().expect("bash is there");
        let said = text(&said.stderr);
        assert!(said.contains("1.95") && said.contains("1.65.0") && said.contains("rustup"), "{name}: {said}");
        assert_eq!(said.lines().count(), 1, "{name}: {said}");
    }
}

#[test]
fn a_rust_in_rustups_place_is_found_without_a_path_to_it() {
    let scratch = Scratch::new();
    let old = programs(&scratch, &[], Some("1.65.0"));
    let place = scratch.join(".cargo");
    fs::create_dir(&place).expect("a directory");
    let other = Scratch::new();
    fs::rename(programs(&other, &[""], Some("1.95.1")), place.join("bin")).expect("one directory for another");
    let lines = format!(
        "unset CARGO_HOME; HOME='{}' PATH='{}'\nfind_rust '{}'\nrustc\n",
        scratch.path().display(),
        old.display(),
        repository().join("Cargo.toml").display()
    );
    let out = bash(&["qemu/lib/messages.sh"], &lines);
    assert_eq!(text(&out.stdout), "rustc 1.95.1 (of a test)\n", "{}", text(&out.stderr));
}

#[test]
fn a_user_without_qemu_is_told_what_root_must_install() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = Scratch::new();
    let programs = programs(&scratch, &["qemu-system", "gcc", "x86_64-linux-gnu-gcc"], None);
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    // The clone may lie where this user cannot look.
    let clone = scratch.join("clone");
    fs::create_dir(&clone).expect("a directory");
    let copied = Command::new("cp").args(["-r", "qemu", "Cargo.toml"]).arg(&clone).current_dir(repository()).status();
    assert!(copied.expect("cp is there").success());
    chown(&clone, Some(NOBODY), Some(NOBODY)).expect("root may");
    let said = script(&clone.join("qemu/run"), &programs, &clone).uid(NOBODY).gid(NOBODY).output().expect("bash is there");
    let code = said.status.code();
    let said = text(&said.stderr);
    assert!(said.contains("qemu-system-x86 gcc libc6-dev") && said.contains("Rust is missing"), "{said}");
    assert_eq!((said.lines().count(), code), (1, Some(125)), "{said}");
}

#[test]
fn kvm_that_is_not_to_be_had_is_one_sentence() {
    let has_kvm = fs::read_to_string("/proc/cpuinfo").expect("it").split_whitespace().any(|flag| ["vmx", "svm"].contains(&flag));
    if has_kvm {
        println!("skipped: this machine's CPU has virtualisation");
        return;
    }
    let said = Command::new(repository().join("qemu/run")).args(["--accel", "kvm"]).stdin(Stdio::null()).output().expect("bash is there");
    let (code, said) = (said.status.code(), text(&said.stderr));
    assert!(said.contains("--accel kvm") && said.contains("vmx"), "{said}");
    assert_eq!((said.lines().count(), code), (1, Some(125)), "{said}");
}

#[test]
fn what_compare_cannot_do_is_said_before_anything_is_built() {
    let compare = |arguments: &[&str]| {
        let mut command = Command::new(repository().join("benches/compare"));
        let said = command.args(arguments).env("VIRTIOFSD", "/nonexistent/virtiofsd").stdin(Stdio::null()).output().expect("bash is there");
        let text = text(&said.stderr);
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        (said.status.code(), text)
    };
    let (code, said) = compare(&[]);
    assert!(code == Some(125) && said.contains("VIRTIOFSD") && said.contains("/nonexistent/virtiofsd"), "{said}");
    for (arguments, wanted) in
        [(["--kvm", "--cpus", "none"], "--cpus"), (["--kvm", "--accel", "xen"], "--accel"), (["--kvm", "--quux", "1"], "--quux")]
    {
        let (code, said) = compare(&arguments);
        assert!(code == Some(2) && said.contains(wanted) && said.contains("--help"), "{said}");
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").expect("it");
    if !cpu.split_whitespace().any(|flag| ["vmx", "svm"].contains(&flag)) {
        let (code, said) = compare(&["--kvm"]);
        assert!(code == Some(125) && said.contains("/dev/kvm") && said.contains("--accel tcg"), "{said}");
    }
}

#[test]
fn the_table_of_compare_in_a_guest_has_medians_and_ratios() {
    let scratch = Scratch::new();
    let lines =
        "gatherfs|job|10|900\ngatherfs|job|30|1000\ngatherfs|job|20|8000\nvirtiofsd|job|5|400\nvirtiofsd|job|6|500\nvirtiofsd|job|7|90\n";
    fs::write(scratch.join("results"), lines).expect("a file");
    let settings = "kvm_accel=tcg kvm_cpus=2 kvm_rounds=3 kvm_seconds=1";
    let out = bash(&["benches/kvm.sh"], &format!("{settings}\nkvm_table '{}'\n", scratch.join("results").display()));
    let table = text(&out.stdout);
    assert!(
        table.ends_with("| job | gatherfs | 20 | 1000 | 1.00 |\n| job | virtiofsd | 6 | 400 | 2.50 |\n"),
        "{table}{}",
        text(&out.stderr)
    );
}

#[test]
fn the_reason_comes_first_and_counters_are_left_out() {
    let scratch = Scratch::new();
    let log = scratch.join("log");
    fs::write(&log, "first\n{\"share\":\"/s\",\"requests\":{\"READ\":1}}\ngatherfsd: metrics {\"requests\":{\"READ\":1}}\nlast\n")
        .expect("a file");
    let out = bash(&["qemu/lib/messages.sh"], &format!("die_with_log 'it broke' '{}'\n", log.display()));
    let said = text(&out.stderr);
    assert!(said.starts_with("REASON it broke\n") && said.ends_with("    first\n    last\n"), "{said}");
    assert!(!said.contains("requests"), "{said}");
    assert_eq!(out.status.code(), Some(125));
    // And the scripts that start it find the reason in what it said.
    fs::write(&log, "qemu/run: the guest ended.\nthe end of the console:\n    a\n    b\n    c\n").expect("a file");
    let out = bash(&["qemu/lib/messages.sh"], &format!("reason_of '{}'\n", log.display()));
    assert_eq!(text(&out.stdout), "the guest ended.\n");
}

#[test]
fn counters_are_read_as_json_alone_and_after_words() {
    let scratch = Scratch::new();
    let json = "\"requests\":{\"READ\":3,\"WRITE\":4,\"LOOKUP\":5},\"host_reads\":6,\"host_writes\":7,\"bytes_read\":8}";
    let lines = "metrics=$(grep -E \"$METRICS_LINE\" \"$run_dir/daemon.log\")\n\
                 echo \"$(sum_of \"$metrics\" data) $(sum_of \"$metrics\" all) $(sum_of \"$metrics\" calls)\"\n";
    for line in [format!("gatherfsd: metrics {{{json}"), format!("{{\"share\":\"/srv/share\",{json}")] {
        fs::write(scratch.join("daemon.log"), format!("gatherfsd: sharing /srv/share\n{line}\n{{\"half\":\n")).expect("a file");
        let out = bash(&["qemu/lib/guest.sh", "qemu/lib/table.sh"], &format!("run_dir='{}'\n{lines}", scratch.path().display()));
        assert_eq!(text(&out.stdout), "7 12 13\n", "{line}\n{}", text(&out.stderr));
    }
}

#[test]
fn the_requests_of_a_daemon_without_counters_are_counted_in_its_log() {
    let scratch = Scratch::new();
    let line = |opcode: &str| format!("[2026 DEBUG virtiofsd::server] Received request: opcode={opcode} (1), inode=1, unique=2, pid=3\n");
    fs::write(scratch.join("daemon.log"), line("Lookup") + "something else\n" + &line("Getattr")).expect("a file");
    fs::write(scratch.join("more"), line("Lookup")).expect("a file");
    let lines = format!(
        "run_dir='{}'\ncount() {{ logged_requests >\"$run_dir/json\"; echo \"$(sum_of \"{{$(<\"$run_dir/json\")\" all)\"; }}\n\
         count; cat \"$run_dir/more\" >>\"$run_dir/daemon.log\"; count; cat \"$run_dir/json\"\n",
        scratch.path().display()
    );
    let out = bash(&["qemu/lib/records.sh", "qemu/lib/table.sh"], &lines);
    let said = text(&out.stdout);
    assert!(said.starts_with("2\n3\n") && said.contains("\"LOOKUP\":2") && said.contains("\"GETATTR\":1"), "{said}{}", text(&out.stderr));
}

#[test]
fn records_of_guests_become_rates_ratios_and_requests_per_item() {
    let scratch = Scratch::new();
    let boot = |daemon: &str, seconds: &str, requests: &str| {
        format!(
            "{daemon}|begin|chmod, first|10|1000|{{\"requests\":{{\"LOOKUP\":5}},\"kicks\":0}}\n\
             {daemon}|end|chmod, first|100|files|{seconds}|200|110|201000|{{\"requests\":{{\"LOOKUP\":105,{requests}}},\"kicks\":7}}\n"
        )
    };
    let seconds = ["0.2", "0.1", "0.4"];
    let mut records: String = seconds.iter().map(|s| boot("gatherfs", s, "\"SETATTR\":100")).collect();
    records += &(boot("peer", "0.4", "\"X\":0") + &boot("peer-log", "9", "\"SETATTR\":100,\"FLUSH\":100"));
    fs::write(scratch.join("records"), records).expect("a file");
    let script = repository().join("benches/guests/table.awk");
    let out = Command::new("awk").arg("-f").arg(script).arg(scratch.join("records")).output().expect("awk is there");
    let said = text(&out.stdout);
    for line in [
        "| chmod, first, files/s | 500 | 250 | 2.00 | 1.2 | 2.00 |",
        "| chmod, first | LOOKUP 1.00 / 1.00, SETATTR 1.00 / 1.00, FLUSH 0.00 / 1.00 |",
    ] {
        assert!(said.lines().any(|l| l == line), "{line}\n{said}{}", text(&out.stderr));
    }
    assert!(said.contains("| chmod, first | 2.00 | 3.00 | 1.00 |"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_built() {
    let run = |script: &str, argument: (&str, &str)| {
        let mut command = Command::new(repository().join(script));
        command.args([argument.0, argument.1].iter().filter(|word| !word.is_empty())).stdin(Stdio::null());
        let said = command.output().expect("bash is there");
        (said.status.code(), text(&said.stderr))
    };
    let in_each = [("--uml", "/nowhere/linux"), ("--on", "/nowhere"), ("--seconds", "0"), ("--seconds", ""), ("--frobnicate", "")];
    let own: [(&str, &[(&str, &str)]); 3] = [
        ("benches/guests/run", &[("--group", "nothing"), ("--rounds", "0"), ("--no-qemu", "")]),
        (
            "qemu/torture",
            &[("--kills", "some"), ("--upgrades", "some"), ("--quiet-seconds", "0"), ("--cpus", "two"), ("--locks", "somewhere")],
        ),
        ("qemu/two-guests", &[("--part", "nothing")]),
    ];
    for (script, own) in own {
        for argument in in_each.iter().chain(own) {
            let (code, said) = run(script, *argument);
            assert_eq!((code, said.lines().count()), (Some(2), 1), "{script} {argument:?}: {said}");
            assert!(said.contains(argument.0) && said.contains(argument.1) && said.contains("--help"), "{script}: {said}");
        }
        let said = Command::new(repository().join(script)).arg("--help").output().expect("bash is there");
        for (option, _) in in_each.iter().take(3).chain(own) {
            assert!(said.status.success() && text(&said.stdout).contains(&format!("\n  {option} ")), "{script} --help: {option}");
        }
    }
}

#[test]
fn a_pause_is_the_longest_request_at_a_kill() {
    let scratch = Scratch::new();
    // By the guest's clock, which the host's is 1000 s ahead of: a request each 10 ms takes 1 ms, but for those from 5.00 and 7.00
    // s on; the one at 6 s is not near a kill.
    let mut said = String::from("quiet 1.0 40.0\nquiet offset 1000 0.5\nround tree 3\n");
    for turn in 0..1000 {
        let took = [(500, 30), (600, 50), (700, 10)].iter().find(|(at, _)| *at == turn).map_or(1, |(_, took)| *took);
        said += &format!("killed {}.{:02}0000 {took}.0\n", turn / 100, turn % 100);
    }
    said += "killed offset 1000.000000 0.3\n";
    fs::write(scratch.join("said"), said).expect("a file");
    let report = |kills: &str, phase: &str| {
        fs::write(scratch.join("kills"), kills).expect("a file");
        let mut command = Command::new("awk");
        command.arg("-v").arg(format!("phase={phase}")).arg("-f").arg(repository().join("qemu/lib/pauses.awk"));
        text(&command.args([scratch.join("kills"), scratch.join("said")]).output().expect("awk is there").stdout)
    };
    // Within the first of them, just before the other, and at an ordinary one.
    let line = report("1003.0002\n1005.02\n1006.996\n", "killed");
    assert_eq!(line, "longest 30.0 ms, median 10.0 ms, of 3; the longest of all 1000 requests 50.0 ms; moments within 0.3 ms\n");
    let line = report("", "quiet");
    assert_eq!(line, "longest 40.0 ms, median 40.0 ms, of 1; the longest of all 1 requests 40.0 ms; moments within 0.5 ms\n");
    assert_eq!(report("", "neither"), "no request\n");
}

#[test]
fn a_lock_that_is_lost_is_noticed() {
    let scratch = Scratch::new();
    let program = scratch.join("locks");
    let compiled = Command::new("cc").arg("-o").arg(&program).arg(repository().join("qemu/guest/locks.c")).status();
    assert!(compiled.expect("cc is there, Rust links with it").success());
    let directory = scratch.join("files");
    fs::create_dir(&directory).expect("a directory");
    let locks = |what: &str| {
        let said = Command::new(&program).arg(what).arg(&directory).output().expect("it was compiled");
        (said.status.success(), text(&said.stderr))
    };
    // The last lines of a shell: what holds the locks, what else is locked, and what `try` says then.
    let beside = |lock: &str| {
        let lines = format!(
            "cd '{0}'; exec 3< <(exec '{1}' hold '{0}'); holder=$!; read -r <&3; {lock}\n'{1}' try '{0}' 2>&1 && echo held\n\
             '{1}' free '{0}' 2>/dev/null || echo and not free\nkill $holder; while kill -0 $holder 2>/dev/null; do sleep 0.01; done",
            directory.display(),
            program.display()
        );
        let said = Command::new("bash").arg("-c").arg(lines).output().expect("bash is there");
        text(&said.stdout)
    };
    assert_eq!(beside(""), "held\nand not free\n");
    assert_eq!(locks("free"), (true, String::new()), "they end with their holder");
    assert!(locks("try").1.contains("posix, from 100: it should be held"), "{}", locks("try").1);
    let said = beside("exec 4>flock-shared.new; mv flock-shared.new flock-shared");
    assert!(said.starts_with("locks: flock-shared, from 0: it should be held"), "another file has the name: {said}");
}

#[test]
fn the_children_of_a_process_are_those_that_have_not_ended() {
    // What a shell has started does not wait for the program that the shell becomes.
    let lines = "bash -c 'sleep 2 & echo $!; sleep 60 & echo $!; exec sleep 60' >\"$D/started\" & parent=$!\n\
                 for i in {1..500}; do [[ $(cat /proc/$parent/comm) != sleep ]] || break; sleep 0.01; done\n\
                 { read -r ended; read -r living; } <\"$D/started\"\n\
                 for i in {1..500}; do ! grep -q '^State:.Z' \"/proc/$ended/status\" || break; sleep 0.01; done\n\
                 echo \"$(children_of $parent) $living $(sed -n 's/^State:.\\(.\\).*/\\1/p' /proc/$ended/status)\"; kill $living $parent\n";
    let scratch = Scratch::new();
    let out = bash(&["qemu/lib/background.sh"], &format!("D='{}'\n{lines}", scratch.path().display()));
    let said = text(&out.stdout);
    let words: Vec<&str> = said.split_whitespace().collect();
    assert!(matches!(words[..], [child, living, "Z"] if child == living), "{said}{}", text(&out.stderr));
}

#[test]
fn a_program_in_a_private_directory_is_copied_to_where_every_user_can_run_it() {
    if !is_root("becoming another user") {
        return;
    }
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o700)).expect("a mode");
    let program = scratch.join("true");
    assert!(Command::new("cp").arg("/bin/true").arg(&program).status().expect("cp is there").success());
    let run = |path: &Path| {
        Command::new(path).arg("--version").uid(NOBODY).gid(NOBODY).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    assert!(!run(&program), "root's home is as private");
    let copy = places::for_every_user(&program);
    assert!(copy != program && run(&copy));
    assert_eq!(places::for_every_user(Path::new("/bin/true")), Path::new("/bin/true"));
    assert!(run(daemon::program()));
}
