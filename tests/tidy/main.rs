//! Reads the source text and holds what the compiler does not: the floors of docs/ARCHITECTURE.md, where
//! `unsafe` may be, how modules begin, what things may not be called.

use std::collections::HashMap;
mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use imports::{File, Modules, cycle, in_circles};

/// Rooms and their floors: a room imports from floors below its own only.
const FLOORS: &[(&str, u32)] = &[
    ("bin", 8),
    ("main", 7),
    ("serving", 7),
    ("config", 7),
    ("sandbox", 6),
    ("keeper", 6),
    ("device", 5),
    ("outer", 4),
    ("host", 3),
    ("virtqueue", 2),
    ("io", 2),
    ("guest", 1),
    ("fuse", 1),
    ("state", 1),
    ("sys", 0),
    ("types", 0),
    ("metrics", 0),
    ("trace", 0),
];
/// Places where `unsafe` has a reason to be.
const UNSAFE_PLACES: &[&str] = &["sys/", "guest/", "state/"];
/// Lines of a file without its tests above which it must be split.
const FILE_LEN_MAX: usize = 500;
const LINE_LEN_MAX: usize = 160;
const BANNED_NAMES: &[&str] = &["util", "utils", "common", "helpers", "helper", "manager", "misc"];

struct Source {
    path: String,
    /// Without the tests at the end.
    text: String,
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The sources; GATHERFS_SOURCES names those of another build, to compare.
fn sources() -> Vec<Source> {
    let root = std::env::var_os("GATHERFS_SOURCES").map_or_else(|| repository().join("src"), PathBuf::from);
    let mut found = Vec::new();
    files_below(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            // Tests at the end, or a file of tests.
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let text = text.split("#![cfg(test)]").next().unwrap().to_owned();
            Source { path: path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), text }
        })
        .collect()
}

fn room_of(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

fn floor_of(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// Lines that are code, with their numbers.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn fail_with(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn imports_go_down_the_floors() {
    let mut found = Vec::new();
    for source in sources() {
        let room = room_of(&source.path);
        if room == "lib" {
            continue;
        }
        let own = floor_of(room).unwrap_or_else(|| panic!("{} is in no room of the list of floors", source.path));
        for (number, line) in code_lines(&source.text) {
            for prefix in ["crate::", "gatherfs::"] {
                for (at, _) in line.match_indices(prefix) {
                    let rest = &line[at + prefix.len()..];
                    let other: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    // `types` lies under every floor: identities and nothing else.
                    let is_below = other == "types" || floor_of(&other).is_none_or(|floor| floor < own || other == room);
                    // A macro of the crate's root, such as `warn_limited`, belongs to floor 0. The floor
                    // of `config` is the top, where `main` is too.
                    if !is_below && !["main", "serving"].contains(&room) {
                        found.push(format!("src/{}:{number}: {room} (floor {own}) imports {other}", source.path));
                    }
                }
            }
        }
    }
    fail_with("imports that do not go down", &found);
}

fn has_unsafe(line: &str) -> bool {
    line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn")
}

/// A reader who starts at any file of a room comes to an end. Prints the rooms in figures.
#[test]
fn no_files_of_a_room_import_each_other_in_a_circle() {
    let sources = sources();
    let files: Vec<File<'_>> = sources.iter().map(|source| File { path: &source.path, text: &source.text }).collect();
    let modules = Modules::new(&files);
    let mut found = Vec::new();
    println!("room: files, lines without tests, files in circles, unsafe");
    for (room, _) in FLOORS {
        let of_room = files.iter().filter(|file| room_of(file.path) == *room);
        let lines = of_room.clone().map(|file| file.text.lines().count()).sum::<usize>();
        let unsafes = of_room.clone().flat_map(|file| code_lines(file.text)).filter(|(_, line)| has_unsafe(line)).count();
        let edges: BTreeMap<&str, BTreeSet<&str>> =
            of_room.map(|file| (file.path, modules.imports(file).into_iter().filter(|path| room_of(path) == *room).collect())).collect();
        println!("{room}: {}, {lines}, {}, {unsafes}", edges.len(), in_circles(&edges));
        assert!(*room != "device" || edges["device/worker.rs"].contains("device/queue.rs"), "imports are not found");
        found.extend(cycle(&edges).map(|cycle| format!("{room}: {}", cycle.join(" -> "))));
    }
    fail_with("files that import each other in a circle", &found);
}

#[test]
fn unsafe_is_where_it_has_a_reason_and_each_block_says_which() {
    let mut found = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in code_lines(&source.text) {
            if !has_unsafe(line) {
                continue;
            }
            if !UNSAFE_PLACES.iter().any(|place| source.path.starts_with(place)) {
                found.push(format!("src/{}:{number}: unsafe outside its rooms", source.path));
            }
            let before = lines[..number - 1].iter().rev().take(6).any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
            if !before {
                found.push(format!("src/{}:{number}: no SAFETY comment above", source.path));
            }
        }
    }
    fail_with("unsafe", &found);
}

#[test]
fn every_module_opens_with_what_it_is_and_stays_short() {
    let mut found = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//!") {
            found.push(format!("src/{} does not begin with //!", source.path));
        }
        let lines = source.text.lines().count();
        if lines > FILE_LEN_MAX {
            found.push(format!("src/{} has {lines} lines without its tests: look for the seam", source.path));
        }
        for (number, line) in source.text.lines().enumerate() {
            if line.chars().count() > LINE_LEN_MAX {
                found.push(format!("src/{}:{}: the line is too long", source.path, number + 1));
            }
        }
    }
    fail_with("modules", &found);
}

#[test]
fn nothing_is_called_by_a_name_that_says_nothing() {
    let mut found = Vec::new();
    for dir in ["src", "tests", "examples", "benches"] {
        let mut files = Vec::new();
        files_below(&repository().join(dir), &mut files);
        for file in files {
            let in_repository = file.strip_prefix(repository()).unwrap().to_path_buf();
            let mut parts = in_repository.iter().map(|p| Path::new(p).file_stem().unwrap().to_str().unwrap());
            if parts.any(|part| BANNED_NAMES.contains(&part)) {
                found.push(in_repository.display().to_string());
            }
        }
    }
    fail_with("names that say nothing", &found);
}

/// What several tests or examples need is in the crate tests/support, once.
#[test]
fn no_test_or_example_includes_a_file_of_another() {
    let mut found = Vec::new();
    for dir in ["tests", "examples", "benches"] {
        let mut files = Vec::new();
        files_below(&repository().join(dir), &mut files);
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
            let text = fs::read_to_string(file).unwrap();
            let includes = code_lines(&text).filter(|(_, line)| line.trim_start().starts_with("#[path"));
            found.extend(includes.map(|(number, line)| format!("{}:{number}: {line}", file.display())));
        }
    }
    fail_with("files that are included by their path", &found);
}

/// A crate may have what nobody uses, without a warning.
#[test]
fn everything_in_the_support_crate_is_used() {
    let mut files = Vec::new();
    for dir in ["tests", "examples", "benches"] {
        files_below(&repository().join(dir), &mut files);
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut uses, mut defined) = (HashMap::<String, u32>::new(), Vec::new());
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        for (number, line) in code_lines(&text) {
            let words: Vec<&str> = line.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
            words.iter().for_each(|word| *uses.entry((*word).to_owned()).or_default() += 1);
            let is_definition =
                words.first() == Some(&"pub") && words.get(1).is_some_and(|kind| ["fn", "const", "struct", "enum"].contains(kind));
            if is_definition && file.starts_with(repository().join("tests/support")) {
                defined.push((words[2].to_owned(), format!("{}:{number}: {}", file.display(), words[2])));
            }
        }
    }
    let unused: Vec<String> = defined.into_iter().filter(|(name, _)| uses[name] == 1).map(|(_, place)| place).collect();
    fail_with("what no test and no example uses", &unused);
}

#[test]
fn the_daemon_neither_panics_nor_exits_by_the_way() {
    let banned = [".unwrap()", "panic!(", "todo!(", "unimplemented!(", "unreachable!(", "dbg!(", "process::exit(", "println!("];
    let mut found = Vec::new();
    for source in sources() {
        for (number, line) in code_lines(&source.text) {
            for word in banned.iter().filter(|word| line.contains(**word)) {
                // Standard error is main's to write to, and a line that the user asked for is no log.
                if !(source.path == "main.rs" && line.contains("eprintln!(")) {
                    found.push(format!("src/{}:{number}: {word}", source.path));
                }
            }
        }
    }
    fail_with("calls that end the daemon or bypass the log", &found);
}

/// The host's ids come from its kernel (`sys`) or from the id map, which is the only way from the guest's to them.
#[test]
fn only_the_id_map_makes_a_hosts_id_of_a_guests() {
    let mut found = Vec::new();
    for source in
        sources().iter().filter(|s| !s.path.starts_with("sys/") && !["types.rs", "host/rights/id_map.rs"].contains(&s.path.as_str()))
    {
        for (number, line) in code_lines(&source.text) {
            if line.contains("HostUid(") || line.contains("HostGid(") {
                found.push(format!("src/{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    fail_with("ids of the host that are made by the way", &found);
}

/// Each call of an operation has a failpoint, which is in `sys`.
#[test]
fn the_operations_call_the_host_through_sys_only() {
    let direct = ["rustix::fs::", "rustix::io::", "std::fs::"];
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| s.path.starts_with("host/")) {
        for (number, line) in code_lines(&source.text) {
            let is_import = line.trim_start().starts_with("use ");
            let calls = |prefix: &&str| line.split(prefix).skip(1).any(|rest| rest.starts_with(char::is_lowercase));
            if !is_import && (direct.iter().any(calls) || line.contains("libc::syscall(")) {
                found.push(format!("src/{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    fail_with("system calls outside sys/", &found);
    let sys: Vec<Source> = sources().into_iter().filter(|s| s.path.starts_with("sys/")).collect();
    let failpoints: usize = sys.iter().map(|source| source.text.matches("fail_call!(\"").count()).sum();
    assert!(failpoints > 40, "{failpoints} failpoints are found");
}

#[test]
fn every_option_stands_in_the_readme() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let command = gatherfs::config::Arguments::command();
    let missing: Vec<String> = command
        .get_arguments()
        .filter_map(|a| a.get_long())
        .filter(|long| *long != "help" && *long != "version")
        .map(|long| format!("--{long}"))
        .filter(|option| !readme.contains(&format!("`{option}")))
        .collect();
    fail_with("options without a line in README.md", &missing);
}

/// The text of everything that may hold a test.
fn tests_written() -> String {
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        files_below(&repository().join(dir), &mut files);
    }
    files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let semantics = fs::read_to_string(repository().join("docs/SEMANTICS.md")).unwrap();
    let tests = tests_written();
    let named: Vec<&str> = semantics.lines().filter_map(|line| line.trim().strip_prefix("Held by `")?.split('`').next()).collect();
    assert!(named.len() >= 20, "SEMANTICS.md names {} tests", named.len());
    let missing: Vec<String> = named.iter().filter(|name| !tests.contains(*name)).map(|name| (*name).to_owned()).collect();
    fail_with("tests that SEMANTICS.md names and nobody wrote", &missing);
    let promises = semantics.lines().filter(|line| line.starts_with("### ")).count();
    assert!(named.len() >= promises, "{promises} promises, {} tests", named.len());
}

#[test]
fn every_yes_of_the_comparison_names_a_test_that_exists_and_every_no_says_what_to_do() {
    let comparison = fs::read_to_string(repository().join("docs/COMPARISON.md")).unwrap();
    let written = tests_written();
    let (mut yes, mut no, mut found) = (0, 0, Vec::new());
    // The rows of each table, without its head: two lines, the second of dashes.
    let lines: Vec<&str> = comparison.lines().collect();
    let is_head = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("|---"));
    let rows = lines.iter().enumerate().filter(|(at, line)| line.starts_with("| ") && !is_head(*at));
    for (at, line) in rows {
        let ours = line.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        let named: Vec<&str> = ours.split('`').skip(1).step_by(2).filter(|word| is_name_of_a_test(word)).collect();
        let missing = named.iter().filter(|name| !written.contains(&format!("fn {name}(")));
        found.extend(missing.map(|name| format!("docs/COMPARISON.md:{}: there is no test {name}", at + 1)));
        let is_yes = ours.starts_with("yes, ") && !named.is_empty();
        let is_no = ours.starts_with("no: ") && ours.ends_with('.');
        yes += usize::from(is_yes);
        no += usize::from(is_no);
        if !is_yes && !is_no {
            found.push(format!("docs/COMPARISON.md:{}: neither \"yes, `test`\" nor \"no: why and what to do.\"", at + 1));
        }
    }
    fail_with("rows of the comparison", &found);
    assert!(yes > 80 && no > 20, "{yes} rows say yes, {no} say no");
}

/// The rows of the tables of `document` whose last column is "test": how many name tests there, and how many say "none: why". What is
/// wrong is added to `found`: a test that does not exist, or neither. A word in quotes that `is_name` takes is a test.
fn rows_with_tests(document: &str, is_name: fn(&str) -> bool, found: &mut Vec<String>) -> (usize, usize) {
    let text = fs::read_to_string(repository().join(document)).unwrap();
    let written = tests_written();
    let (mut held, mut bare, mut is_counted) = (0, 0, false);
    for (at, line) in text.lines().enumerate() {
        let last = line.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        if !line.starts_with('|') || last == "test" {
            // A table begins, or ends.
            is_counted = last == "test";
            continue;
        }
        if !is_counted || line.starts_with("|---") {
            continue;
        }
        let named: Vec<&str> = last.split('`').skip(1).step_by(2).filter(|word| is_name(word)).collect();
        let missing = named.iter().filter(|name| !written.contains(&format!("fn {name}(")));
        found.extend(missing.map(|name| format!("{document}:{}: there is no test {name}", at + 1)));
        let is_bare = last.strip_prefix("none: ").is_some_and(|why| !why.is_empty());
        if is_bare == (last.starts_with('`') && !named.is_empty()) {
            found.push(format!("{document}:{}: neither tests nor \"none: why\"", at + 1));
        }
        held += usize::from(!is_bare);
        bare += usize::from(is_bare);
    }
    (held, bare)
}

#[test]
fn each_line_of_the_threat_model_names_tests_that_exist_or_says_why_there_is_none() {
    let mut found = Vec::new();
    let (held, bare) = rows_with_tests("docs/THREAT_MODEL.md", is_name_of_a_test, &mut found);
    fail_with("lines of the threat model", &found);
    assert!(held > 25 && bare > 0, "{held} lines have a test, {bare} have none");
}

#[test]
fn each_state_that_is_to_survive_names_tests_that_exist_or_says_why_there_is_none() {
    let mut found = Vec::new();
    let (held, bare) = rows_with_tests("docs/RECOVERY.md", |word| word.contains('_'), &mut found);
    fail_with("states in docs/RECOVERY.md", &found);
    assert!(held > 35 && bare > 0, "{held} states have a test, {bare} have none");
}

/// Words with three underscores or more; options and system calls have fewer.
fn is_name_of_a_test(word: &str) -> bool {
    word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
