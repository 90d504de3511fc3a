//! What options do to the running daemon, and a file with them.

use std::fs;

use gatherfs_support::daemon::{Daemon, Process, Scratch, gatherfsd};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::init;

use super::{assert_serves, command, mount, refused};

/// A guest with queues of `queue_size` entries and what INIT told it.
fn mounted(options: &[&str], queue_size: u16) -> (Daemon, Client) {
    let daemon = Daemon::start(options);
    let guest = Guest::connect(daemon.socket(), &GuestOptions { queue_size, ..GuestOptions::default() }).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (daemon, client)
}

#[test]
fn the_pages_of_a_request_are_bound_by_the_queue_and_by_the_option() {
    let cases: [(&[&str], u16, u16); 5] = [
        (&[], 1024, 1020),
        (&[], 128, 124),
        (&["--max-pages", "256"], 1024, 256),
        (&["--max-pages", "1"], 1024, 1),
        (&["--max-pages=65535"], 1024, 1020),
    ];
    for (options, queue_size, pages) in cases {
        let (_daemon, mut client) = mounted(options, queue_size);
        assert_eq!((client.init.max_pages, client.init.max_write), (pages, u32::from(pages) * 4096), "{options:?}");
        assert_serves(&mut client, "dir");
    }
}

#[test]
fn readdirplus_and_submounts_are_offered_unless_they_are_turned_off() {
    let readdirplus = init::DO_READDIRPLUS | init::READDIRPLUS_AUTO;
    let cases: [(&[&str], u64); 6] = [
        (&[], readdirplus | init::SUBMOUNTS),
        (&["--no-readdirplus"], init::SUBMOUNTS),
        (&["--cache", "never"], init::SUBMOUNTS),
        (&["--no-announce-submounts"], readdirplus),
        (&["--no-announce-submounts", "--announce-submounts", "-o", "no_readdirplus"], init::SUBMOUNTS),
        (&["--no-readdirplus", "-o", "readdirplus,announce_submounts"], readdirplus | init::SUBMOUNTS),
    ];
    for (options, offered) in cases {
        let (_daemon, client) = mounted(options, 1024);
        assert_eq!(client.init_flags() & (readdirplus | init::SUBMOUNTS), offered, "{options:?}");
    }
}

#[test]
fn a_file_says_what_is_usual_and_the_command_line_wins() {
    let scratch = Scratch::new();
    let (share, socket, file) = (scratch.join("share"), scratch.join("s"), scratch.join("gatherfsd.toml"));
    fs::create_dir(&share).expect("the shared directory");
    let text = format!(
        "# A share of the test's.\nshared-dir = {share:?}\nsocket-path = {socket:?}\nsandbox = 'none'\nmax-pages = 100\nno-readdirplus = true\n"
    );
    fs::write(&file, text).expect("a file");
    let cases: [(&[&str], u16, bool); 3] =
        [(&[], 100, false), (&["--max-pages", "200"], 200, false), (&["--no-readdirplus=false", "-o", "source=/nowhere"], 100, true)];
    for (words, pages, readdirplus) in cases {
        let mut command = gatherfsd();
        // Wherever --config stands, the other words win.
        command.args(words).arg("--config").arg(&file).arg("--shared-dir").arg(&share).args(["-o", &format!("source={}", share.display())]);
        let mut process = Process::spawn(&mut command);
        process.wait_for_line("sharing ");
        let (guest, mut client) = mount(&socket);
        assert_eq!(client.init.max_pages, pages, "{words:?}");
        assert_eq!(client.init_flags() & init::DO_READDIRPLUS != 0, readdirplus, "{words:?}");
        assert_serves(&mut client, "dir");
        drop((guest, client));
        assert!(process.wait().success());
    }
}

#[test]
fn a_file_with_a_mistake_is_refused_with_file_line_and_fix() {
    let scratch = Scratch::new();
    let file = scratch.join("gatherfsd.toml");
    let name = file.to_str().expect("text");
    let cases = [
        ("xattr = true\nsharde-dir = '/srv'\n", format!("gatherfsd: {name}:2: unknown option 'sharde-dir'; did you mean shared-dir?")),
        ("xattr = 'yes'\n", format!("gatherfsd: {name}:1: xattr is a string; write xattr = true or xattr = false")),
        ("\ncache = always\n", format!("gatherfsd: {name}:2: the value of cache is not TOML; write cache = \"always\"")),
        (
            "\ncache = 'often'\n",
            format!("gatherfsd: {name}:2: invalid value 'often' for --cache; expected auto, always, never or metadata"),
        ),
    ];
    for (text, expected) in cases {
        fs::write(&file, text).expect("a file");
        let (status, said) = refused(&mut command(&scratch, &["--config", name]));
        assert_eq!((status.code(), said), (Some(2), expected), "{text}");
    }
    let (_, said) = refused(&mut command(&scratch, &["--config", "/no/such.toml"]));
    assert!(said.contains("--config /no/such.toml: No such file"), "{said}");
}

/// The strings of a JSON text, in order.
fn strings(json: &str) -> Vec<&str> {
    json.split('"').skip(1).step_by(2).collect()
}

#[test]
fn the_capabilities_are_the_json_that_libvirt_reads_and_the_packaged_description_says_the_same() {
    let output = gatherfsd().arg("--print-capabilities").output().expect("the program starts");
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).expect("text");
    let strings_of = strings(&printed);
    assert_eq!(strings_of[..3], ["type", "fs", "features"]);
    let features = &strings_of[3..];
    assert!(features.contains(&"separate-options") && !features.contains(&"migrate-precopy"), "{printed}");
    let list: Vec<String> = features.iter().map(|feature| format!("    \"{feature}\"")).collect();
    assert_eq!(printed, format!("{{\n  \"type\": \"fs\",\n  \"features\": [\n{}\n  ]\n}}\n", list.join(",\n")));

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/packaging/50-gatherfsd.json");
    let description = fs::read_to_string(path).expect("the description");
    let head = ["description", "gatherfsd vhost-user-fs", "type", "fs", "binary", "/usr/bin/gatherfsd", "features"];
    assert_eq!(strings(&description), [&head[..], features].concat(), "{path} and --print-capabilities name the same features");
}

#[test]
fn a_mistake_on_the_command_line_is_one_sentence_with_option_position_and_fix() {
    let whole = ["--shared-dir", "/tmp", "--socket-path", "/tmp/gfs-none"];
    let cases: [(&[&str], &str); 9] = [
        (&["--cache", "sometimes"], "invalid value 'sometimes' for --cache; expected auto, always, never or metadata"),
        (&["--cache=always", "--sandbox"], "missing value for --sandbox; expected namespace, chroot or none"),
        (&["--max-pages", "0"], "invalid value '0' for --max-pages: 0 is not in 1..=65535"),
        (&["--rlimit-nofile", "many"], "invalid value 'many' for --rlimit-nofile: expected an integer"),
        (&["--readonly=maybe"], "invalid value 'maybe' for --readonly; expected true or false"),
        (
            &["-o", "xattr", "-o", "cache=none,no_such"],
            "-o: unknown key 'no_such' (item 3); use one of the options that gatherfsd --help lists",
        ),
        (&["-o", "cache=often"], "-o: invalid value 'often' for cache (item 1); expected one of auto, always, none, never, metadata"),
        (&["--migration-mode", "by-hand"], "invalid value 'by-hand' for --migration-mode; expected find-paths or file-handles"),
        (
            &["--migration-mode", "file-handles", "--migration-verify-handles"],
            "--migration-verify-handles needs --migration-mode find-paths; leave it out",
        ),
    ];
    for (words, expected) in cases {
        let (status, said) = refused(gatherfsd().args(whole).args(words));
        assert_eq!(status.code(), Some(2), "{words:?}");
        let said: Vec<&str> = said.lines().filter(|line| line.starts_with("gatherfsd: ")).collect();
        assert_eq!(said, [format!("gatherfsd: {expected}")], "{words:?}");
    }
}
