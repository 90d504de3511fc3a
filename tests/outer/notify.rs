//! A service manager's view: READY, STATUS, STOPPING, RELOADING and WATCHDOG, by a socket at a path and by an abstract one.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use gatherfs_support::daemon::{PATIENCE, Process, Scratch, eventually, gatherfsd};
use gatherfs_support::guest::fuse::ROOT;
use rustix::process::{Pid, Signal, kill_process};

use super::{command, mount, sandboxes};

/// The socket of a service manager, and what has come there.
struct Manager {
    socket: UnixDatagram,
    name: String,
    heard: Vec<String>,
}

impl Manager {
    fn at_path(scratch: &Scratch) -> Manager {
        let path = scratch.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Manager::new(socket, path.to_str().expect("text").to_owned())
    }

    fn abstract_one(scratch: &Scratch) -> Manager {
        // The directory is this test's alone.
        let name = format!("gfs-manager{}", scratch.path().display());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        Manager::new(UnixDatagram::bind_addr(&address).expect("a socket"), format!("@{name}"))
    }

    fn new(socket: UnixDatagram, name: String) -> Manager {
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Manager { socket, name, heard: Vec::new() }
    }

    /// Waits for the next message.
    fn next(&mut self) -> io::Result<String> {
        let mut bytes = [0; 4096];
        let len = self.socket.recv(&mut bytes)?;
        let text = String::from_utf8(bytes[..len].to_vec()).expect("text");
        self.heard.push(text.clone());
        Ok(text)
    }

    /// Waits for a message that has a line which begins with `begin`.
    fn wait_for(&mut self, begin: &str) -> String {
        loop {
            let text = self.next().unwrap_or_else(|e| panic!("{e}: no \"{begin}\" after {:?}", self.heard));
            if text.lines().any(|line| line.starts_with(begin)) {
                return text;
            }
        }
    }
}

#[test]
fn a_manager_is_told_that_the_daemon_is_ready_what_it_does_and_that_it_ends() {
    for sandbox in sandboxes() {
        for is_abstract in [false, true] {
            let scratch = Scratch::new();
            let mut manager = if is_abstract { Manager::abstract_one(&scratch) } else { Manager::at_path(&scratch) };
            let mut command = command(&scratch, &["--sandbox", sandbox, "--keep-listening"]);
            let mut process = Process::spawn(command.env("NOTIFY_SOCKET", &manager.name));
            manager.wait_for("READY=1");
            assert!(!manager.heard.iter().any(|text| text.contains("STATUS=a VMM")), "{:?}", manager.heard);
            let (guest, mut client) = mount(&scratch.join("s"));
            manager.wait_for("STATUS=a VMM is connected");
            let worker = process.serving();
            kill_process(Pid::from_raw(worker.cast_signed()).expect("a process id"), Signal::KILL).expect("it is there");
            manager.wait_for("STATUS=a VMM is connected; the worker was restarted once");
            assert!(client.getattr(ROOT, None).is_ok());
            drop((guest, client));
            manager.wait_for("STATUS=waiting for a VMM; the worker was restarted once");
            process.signal(Signal::TERM);
            manager.wait_for("STOPPING=1");
            assert_eq!(process.wait().code(), Some(0), "--sandbox {sandbox}: {}", process.log());
            assert_eq!(manager.heard.iter().filter(|text| *text == "STOPPING=1").count(), 1, "{:?}", manager.heard);
        }
    }
}

#[test]
fn readiness_is_told_when_the_socket_can_be_connected_to() {
    for options in [&["--sandbox", "none"][..], &["--sandbox", "none", "--no-keeper"]] {
        let scratch = Scratch::new();
        let mut manager = Manager::at_path(&scratch);
        let _process = Process::spawn(command(&scratch, options).env("NOTIFY_SOCKET", &manager.name));
        manager.wait_for("READY=1");
        UnixStream::connect(scratch.join("s")).expect("it listens");
    }
}

#[test]
fn a_daemon_without_a_keeper_tells_it_too() {
    for sandbox in sandboxes() {
        let scratch = Scratch::new();
        let mut manager = Manager::abstract_one(&scratch);
        let mut command = command(&scratch, &["--sandbox", sandbox, "--no-keeper"]);
        let mut process = Process::spawn(command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "40000"));
        manager.wait_for("READY=1");
        manager.wait_for("WATCHDOG=1");
        process.signal(Signal::TERM);
        manager.wait_for("STOPPING=1");
        assert_eq!(process.wait().code(), Some(0), "--sandbox {sandbox}: {}", process.log());
    }
}

#[test]
fn a_daemon_that_does_not_start_is_never_ready() {
    let scratch = Scratch::new();
    let mut manager = Manager::at_path(&scratch);
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(scratch.join("missing")).arg("--socket-path").arg(scratch.join("s")).args(["--sandbox", "none"]);
    let mut process = Process::spawn(command.env("NOTIFY_SOCKET", &manager.name));
    assert_eq!(process.wait().code(), Some(1));
    manager.socket.set_nonblocking(true).expect("a socket");
    while manager.next().is_ok() {}
    assert!(!manager.heard.iter().any(|text| text.contains("READY")), "{:?}", manager.heard);
}

#[test]
fn signs_of_life_come_as_long_as_the_worker_lives() {
    for sandbox in sandboxes() {
        let scratch = Scratch::new();
        let mut manager = Manager::at_path(&scratch);
        let mut command = command(&scratch, &["--sandbox", sandbox]);
        let mut process = Process::spawn(command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "40000"));
        let (_guest, mut client) = mount(&scratch.join("s"));
        for _ in 0..5 {
            manager.wait_for("WATCHDOG=1");
        }
        let worker = Pid::from_raw(process.serving().cast_signed()).expect("a process id");
        kill_process(worker, Signal::STOP).expect("it is there");
        // Ten times of what lies between two. One that was on its way comes first.
        manager.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
        assert!(eventually(|| manager.next().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)), "--sandbox {sandbox}");
        kill_process(worker, Signal::CONT).expect("it is there");
        manager.socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        manager.wait_for("WATCHDOG=1");
        assert!(client.getattr(ROOT, None).is_ok());
        // Also of the next worker.
        kill_process(worker, Signal::KILL).expect("it is there");
        manager.wait_for("STATUS=a VMM is connected; the worker was restarted once");
        manager.wait_for("WATCHDOG=1");
        assert!(process.is_running());
    }
}

/// How often the threads of a process have gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let count = |status: String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    tasks.filter_map(|task| count(std::fs::read_to_string(task.ok()?.path().join("status")).ok()?)).sum()
}

#[test]
fn without_a_watchdog_no_process_wakes_up() {
    let scratch = Scratch::new();
    let mut manager = Manager::at_path(&scratch);
    let mut command = command(&scratch, &["--sandbox", "none"]);
    // The watchdog of another process.
    let process = Process::spawn(command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "2000").env("WATCHDOG_PID", "1"));
    manager.wait_for("READY=1");
    let all = [process.pid(), process.keeper(), process.serving()];
    let all_sleeps = || all.map(sleeps);
    let at_rest = eventually(|| {
        let before = all_sleeps();
        std::thread::sleep(Duration::from_millis(200));
        all_sleeps() == before
    });
    assert!(at_rest, "they wake up without a reason");
    assert!(!manager.heard.iter().any(|text| text.contains("WATCHDOG")));
}

#[test]
fn a_reload_begins_and_ends_whatever_comes_of_it() {
    for options in [&["--sandbox", "none"][..], &["--sandbox", "none", "--no-keeper"]] {
        let scratch = Scratch::new();
        let mut manager = Manager::at_path(&scratch);
        let mut process = Process::spawn(command(&scratch, options).env("NOTIFY_SOCKET", &manager.name));
        manager.wait_for("READY=1");
        let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        process.signal(Signal::USR2);
        if options.contains(&"--no-keeper") {
            process.wait_for_line("an upgrade needs a keeper");
        } else {
            let text = manager.wait_for("RELOADING=1");
            let micros: i64 =
                text.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time").parse().expect("a number");
            assert!(micros >= before.tv_sec * 1_000_000 + before.tv_nsec / 1000, "{text}");
            manager.wait_for("READY=1");
            manager.wait_for("STATUS=waiting for a VMM; ");
        }
        assert!(process.is_running());
        mount(&scratch.join("s")).1.getattr(ROOT, None).expect("GETATTR");
    }
}

/// A child must not be able to tell the manager anything, nor hold what is the outer process's.
#[test]
fn the_variables_and_the_sockets_of_the_outer_process_are_its_own() {
    let scratch = Scratch::new();
    let mut manager = Manager::at_path(&scratch);
    let mut command = command(&scratch, &["--sandbox", "none"]);
    let process = Process::spawn(command.env("NOTIFY_SOCKET", &manager.name));
    manager.wait_for("READY=1");
    let sockets = |pid: u32| -> Vec<String> {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there");
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.map(|link| link.display().to_string()).filter(|link| link.starts_with("socket:")).collect()
    };
    let listed = std::fs::read_to_string("/proc/net/unix").expect("a list of sockets");
    let inode_of = |path: &str| {
        let line = listed.lines().find(|line| line.ends_with(path)).unwrap_or_else(|| panic!("no socket {path}"));
        format!("socket:[{}]", line.split_whitespace().nth(6).expect("an inode"))
    };
    let vmm = inode_of(scratch.join("s").to_str().expect("text"));
    let control = inode_of(scratch.join("s.control").to_str().expect("text"));
    let (outer, keeper) = (sockets(process.pid()), sockets(process.keeper()));
    assert!(keeper.contains(&vmm) && !outer.contains(&vmm), "the socket for VMMs is the keeper's: {outer:?} {keeper:?}");
    assert!(outer.contains(&control) && !keeper.contains(&control), "the control socket is the outer process's: {outer:?} {keeper:?}");
    let shared: Vec<_> = outer.iter().filter(|socket| keeper.contains(socket)).collect();
    assert!(shared.is_empty(), "{shared:?}");
}

#[test]
fn connections_are_refused_once_the_keeper_has_ended() {
    let scratch = Scratch::new();
    let mut process = Process::spawn(&mut command(&scratch, &["--sandbox", "none"]));
    process.wait_for_line("sharing ");
    // So that the outer process does not take note of the end.
    process.signal(Signal::STOP);
    let keeper = process.keeper();
    kill_process(Pid::from_raw(keeper.cast_signed()).expect("a process id"), Signal::KILL).expect("it is there");
    assert!(eventually(|| UnixStream::connect(scratch.join("s")).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)));
    process.signal(Signal::CONT);
    assert_eq!(process.wait().code(), Some(128 + 9));
    assert!(!scratch.join("s").exists() && !scratch.join("s.control").exists() && !scratch.join("s.pid").exists());
}

#[test]
fn a_name_that_is_no_socket_is_told_and_the_daemon_starts() {
    let scratch = Scratch::new();
    let mut command = command(&scratch, &["--sandbox", "none"]);
    let process = Process::spawn(command.env("NOTIFY_SOCKET", scratch.join("missing")));
    process.wait_for_line("the service manager is told nothing");
    process.wait_for_line("sharing ");
}
