//! The manual page and the completions say what the command has, whatever is added to it.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use clap::Arg;
use clap_complete::Shell;
use gatherfs_support::manual;

/// The options that are shown, with their long names.
fn options() -> Vec<(String, Arg)> {
    let mut command = gatherfs::config::command();
    command.build();
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some((arg.get_long()?.to_owned(), arg.clone()))).collect()
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What roff makes of the page in its own words: without escapes and requests of fonts.
fn without_escapes(page: &str) -> String {
    let fonts = ["\\fB", "\\fI", "\\fR", "\\fP", "\\&"].iter().fold(page.to_owned(), |text, font| text.replace(font, ""));
    in_one_line(&fonts.replace("\\-", "-").replace("\\(aq", "'").replace("\\*(Aq", "'").replace("\\\\", "\\"))
}

/// Runs `program` on `input`: whether it was content, and what it wrote; `None` where it is not installed.
fn run(program: &str, arguments: &[&str], input: &[u8]) -> Option<(bool, String, String)> {
    let pipe = Stdio::piped;
    let started = Command::new(program).args(arguments).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn();
    let Ok(mut child) = started else {
        println!("skipped: {program} is not installed");
        return None;
    };
    let (mut stdin, input) = (child.stdin.take().expect("a pipe"), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("its output");
    // A program that ends early has said why.
    let _ = writer.join().expect("the writer");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some((output.status.success(), text(output.stdout), text(output.stderr)))
}

#[test]
fn every_option_is_in_the_page_with_its_help_and_its_values() {
    let page = without_escapes(std::str::from_utf8(&manual::page().expect("the page")).expect("text"));
    let options = options();
    assert!(options.len() > 30);
    for (long, arg) in options {
        assert!(page.contains(&format!("--{long}")), "--{long} is missing");
        let help = in_one_line(&arg.get_long_help().or(arg.get_help()).expect("help").to_string());
        assert!(page.contains(&help), "--{long}: {help}\n{page}");
        for value in arg.get_possible_values().iter().filter(|v| !v.is_hide_set() && !arg.is_hide_possible_values_set()) {
            let line = value.get_help().map_or_else(|| value.get_name().to_owned(), |help| format!("{}: {help}", value.get_name()));
            assert!(page.contains(&line), "--{long} {line}");
        }
    }
    for heading in ["SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "SIGNALS", "FILES", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
        let heading = format!(".SH {}", heading.trim_matches('"'));
        assert!(page.contains(&heading), "{heading}");
    }
}

#[test]
fn the_page_has_the_groups_of_the_help_and_names_the_options_without_effect() {
    let page = String::from_utf8(manual::page().expect("the page")).expect("text");
    let from = page.find(".SH OPTIONS").expect("options");
    let section = &page[from..from + page[from..].find(".SH EXAMPLES").expect("the next section")];
    let groups: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix(".SS ")).map(|title| title.trim_matches('"')).collect();
    let of_help = gatherfs::config::command();
    let mut expected: Vec<&str> = of_help.get_arguments().filter_map(Arg::get_help_heading).collect();
    expected.dedup();
    assert_eq!(groups, expected);
    let without_effect = without_escapes(section.split("without effect:").nth(1).expect("the list"));
    assert_eq!(without_effect, "-f, --migration-mode, --migration-on-error, --migration-verify-handles, --migration-confirm-paths.");
}

#[test]
fn every_command_of_gatherfsctl_is_in_its_page_with_its_help() {
    let page = without_escapes(std::str::from_utf8(&manual::ctl_page().expect("the page")).expect("text"));
    let mut command = gatherfs::config::ctl_command();
    command.build();
    assert!(page.contains(&in_one_line(&command.get_about().expect("about").to_string())), "{page}");
    let commands: Vec<_> = command.get_subcommands().collect();
    assert_eq!(commands.len(), 2);
    for help in commands.iter().map(|command| command.get_about()).chain(command.get_arguments().map(Arg::get_help)) {
        let help = in_one_line(&help.expect("help").to_string());
        assert!(help.starts_with("Print ") || page.contains(&help), "{help}\n{page}");
    }
    for option in commands.iter().flat_map(|command| command.get_arguments()).filter(|option| option.get_long().is_some()) {
        let known = option.get_id() == "help" || page.contains(&in_one_line(&option.get_help().expect("help").to_string()));
        assert!(known, "{option:?}\n{page}");
    }
    for name in commands.iter().map(|command| command.get_name()) {
        assert!(page.contains(&format!("gatherfsctl .BI --socket-path \" PATH\" .B {name}")), "{name}\n{page}");
    }
}

#[test]
fn the_pages_are_set_without_a_warning() {
    let of_daemon = ["gatherfsd(1)", "System Administration", "--shared-dir", "EXIT STATUS", "-device vhost-user-fs-pci,chardev=share"];
    let of_ctl = ["gatherfsctl(1)", "System Administration", "upgrade [--force] [PROGRAM]", "status", "EXIT STATUS"];
    for (page, expected) in [(manual::page(), of_daemon), (manual::ctl_page(), of_ctl)] {
        let page = page.expect("the page");
        let Some((content, text, said)) = run("groff", &["-man", "-Tascii", "-ww", "-P-c", "-P-b", "-P-u"], &page) else { return };
        assert!(content && said.is_empty(), "{said}");
        for words in expected {
            assert!(text.contains(words), "{words} is missing in\n{text}");
        }
        assert!(!text.contains(" .SH") && !text.contains("\\-"), "{text}");
    }
}

#[test]
fn the_sentences_by_hand_name_options_that_exist() {
    let known: Vec<String> = options().into_iter().map(|(long, _)| format!("--{long}")).collect();
    // Those of other programs in the examples, and of commands of gatherfsctl.
    let foreign = ["--now", "--force"];
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/manual");
    let mut named = 0;
    for file in fs::read_dir(directory).expect("the sections") {
        let text = without_escapes(&fs::read_to_string(file.expect("a file").path()).expect("text"));
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
        for word in words.filter(|word| word.starts_with("--") && !foreign.contains(word)) {
            assert!(known.iter().any(|option| option == word), "there is no option {word}");
            named += 1;
        }
    }
    assert!(named > 8, "{named} options are named");
}

#[test]
fn completions_name_every_option_in_each_shell() {
    for (shell, name) in manual::COMPLETIONS {
        let script = String::from_utf8(manual::completion(shell)).expect("text");
        for (long, _) in options() {
            let written = if shell == Shell::Fish { format!("-l {long} ") } else { format!("--{long}") };
            assert!(script.contains(&written) || script.contains(&format!("-l {long}\n")), "{name} lacks {long}");
        }
        let program = shell.to_string();
        if let Some((content, _, said)) = run(&program, &["-n"], script.as_bytes()) {
            assert!(content && said.is_empty(), "{name}: {said}");
        }
    }
}

#[test]
fn bash_completes_options_and_their_values() {
    let script = String::from_utf8(manual::completion(Shell::Bash)).expect("text");
    let completed = |words: &str, at: usize| {
        let call = format!(
            "COMP_WORDS=(gatherfsd {words}); COMP_CWORD={at}; _gatherfsd gatherfsd \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{at}-1]}}\""
        );
        let ask = format!("{script}\n{call}; printf '%s\\n' \"${{COMPREPLY[@]}}\"");
        let (content, text, said) = run("bash", &[], ask.as_bytes()).expect("bash");
        assert!(content && said.is_empty(), "{said}");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut options: Vec<String> = options().into_iter().map(|(long, _)| format!("--{long}")).collect();
    let mut found = completed("--", 1);
    options.sort();
    found.sort();
    assert_eq!(found, options);
    assert_eq!(completed("--cache m", 2), ["metadata"]);
}

#[test]
fn the_files_have_the_names_that_packages_take() {
    let directory = std::env::temp_dir().join(format!("gfs-manual-{}", std::process::id()));
    manual::write(&directory).expect("the files");
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("the manifest");
    for name in manual::COMPLETIONS.map(|(_, name)| name).iter().chain([&manual::PAGE, &manual::CTL_PAGE]) {
        assert!(fs::metadata(directory.join(name)).expect("a file").len() > 1000, "{name}");
        assert!(manifest.matches(name).count() >= 2, "{name} is not in both packages");
    }
    fs::remove_dir_all(directory).expect("the directory");
}
