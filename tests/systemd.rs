//! gatherfsd as a service of systemd, with the units of docs/packaging. `tests/systemd` runs this where systemd is process 1.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gatherfs_support::daemon::{Scratch, eventually};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;

const SERVICE: &str = "gatherfsd@test.service";
const SOCKET: &str = "/run/gatherfs/test.sock";
const PAGE: [u8; 4096] = [7; 4096];

fn systemctl(words: &[&str]) -> String {
    let output = Command::new("systemctl").args(words).output().expect("systemctl starts");
    assert!(output.status.success(), "systemctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn property(name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, SERVICE]).trim().to_owned()
}

/// Installs the units for this boot, with `program`, which shares `share`, and starts the socket.
fn install(program: &str, share: &str) {
    let units = "/run/systemd/system";
    for unit in ["gatherfsd@.socket", "gatherfsd@.service"] {
        let text = fs::read_to_string(format!("{}/docs/packaging/{unit}", env!("CARGO_MANIFEST_DIR"))).expect("the unit");
        let installed = text.replace("/usr/bin/gatherfsd", program).replace("WatchdogSec=60", "WatchdogSec=4");
        assert!(unit.ends_with("socket") || installed.contains("WatchdogSec=4") && installed.contains(program), "{text}");
        fs::create_dir_all(units).expect("a directory");
        fs::write(format!("{units}/{unit}"), installed).expect("a unit");
    }
    fs::create_dir_all("/etc/gatherfs").expect("a directory");
    fs::write("/etc/gatherfs/test.toml", format!("shared-dir = \"{share}\"\n")).expect("the options");
    systemctl(&["daemon-reload"]);
    systemctl(&["start", "gatherfsd@test.socket"]);
}

/// A guest with an open file.
struct Mounted {
    client: Client,
    file: (u64, u64),
}

impl Mounted {
    fn new() -> Mounted {
        let guest = Guest::connect(Path::new(SOCKET), &GuestOptions::default()).expect("a connection");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.init().expect("INIT");
        let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
        let file = (made.entry.nodeid, made.open.fh);
        client.write(file.0, file.1, 0, &PAGE).expect("WRITE");
        Mounted { client, file }
    }

    fn assert_goes_on(&mut self) {
        assert_eq!(self.client.read(self.file.0, self.file.1, 0, 4096).expect("READ"), PAGE);
        self.client.write(self.file.0, self.file.1, 0, &PAGE).expect("WRITE");
    }
}

#[test]
#[ignore = "needs systemd as process 1: tests/fresh --only tests/systemd trixie"]
fn a_session_outlives_kills_reloads_and_the_watchdog_and_ends_with_its_vm() {
    let program = std::env::var("GATHERFSD_STATIC").expect("a program that is linked statically");
    let scratch = Scratch::new();
    let share = scratch.join("share");
    fs::create_dir(&share).expect("the shared directory");
    install(&program, share.to_str().expect("text"));
    let mut mounted = Mounted::new();
    assert!(eventually(|| property("NFileDescriptorStore") != "0"), "{}", property("StatusText"));

    for kills in 1..=3 {
        let before = property("MainPID");
        systemctl(&["kill", "--signal", "KILL", "--kill-whom", "all", SERVICE]);
        mounted.assert_goes_on();
        assert_ne!(property("MainPID"), before);
        assert_eq!(property("NRestarts"), kills.to_string());
        let text = if kills == 1 { "outlived the daemon once".to_owned() } else { format!("outlived the daemon {kills} times") };
        assert!(eventually(|| property("StatusText").contains(&text)), "{}", property("StatusText"));
        // It is kept of this one 50 ms after its last change; nothing tells when.
        std::thread::sleep(Duration::from_millis(500));
    }

    let before = property("MainPID");
    systemctl(&["reload", SERVICE]);
    mounted.assert_goes_on();
    assert_eq!(property("MainPID"), before);
    assert!(eventually(|| property("StatusText").contains("upgraded")), "{}", property("StatusText"));

    // The watchdog ends what has stopped.
    let stopped = Command::new("kill").args(["-STOP", &before]).status().expect("kill starts");
    assert!(stopped.success());
    assert!(eventually(|| property("NRestarts") == "4"), "{}", property("StatusText"));
    mounted.assert_goes_on();

    drop(mounted);
    assert!(eventually(|| property("ActiveState") == "inactive"), "{}", property("ActiveState"));
    assert_eq!((property("Result").as_str(), property("NFileDescriptorStore").as_str()), ("success", "0"));
    // And the next VM starts it again.
    Mounted::new().assert_goes_on();
}
