//! `--queue-cpus`: on which CPUs the threads of each queue run, and what is refused.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use gatherfs::sys::affinity::Cpus;
use gatherfs_support::daemon::{Daemon, Process, Scratch, eventually, is_root};
use gatherfs_support::guest::client::{Call, Client};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::{ROOT, ReadIn, opcode};
use gatherfs_support::slow_file::SlowFile;
use zerocopy::IntoBytes;

use super::{assert_serves, command, refused};

/// All CPUs that this process may use, the first of them and the last. `None`, with the reason printed, where that is one.
fn cpus() -> Option<(Cpus, String, String)> {
    let all = Cpus::allowed().expect("this thread's affinity");
    let text = all.to_string();
    let mut numbers = text.split([',', '-']);
    let first = numbers.next().expect("a CPU").to_owned();
    let Some(last) = numbers.next_back() else {
        println!("skipped: there is only CPU {text}");
        return None;
    };
    Some((all, first, last.to_owned()))
}

/// Has `command` run on `cpus` only.
fn on_cpus(command: &mut Command, cpus: Cpus) -> &mut Command {
    // SAFETY: sched_setaffinity(2) is one system call and may be made between fork and exec.
    unsafe { command.pre_exec(move || cpus.bind_thread()) }
}

/// The CPUs of each thread of process `pid`: the thread's name and its Cpus_allowed_list.
fn threads(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    // A thread may end meanwhile.
    let read = |path: std::path::PathBuf| {
        let status = fs::read_to_string(path.join("status")).ok()?;
        let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        Some((field("Name:")?, field("Cpus_allowed_list:")?))
    };
    tasks.filter_map(|task| read(task.ok()?.path())).collect()
}

/// The Cpus_allowed_list of each thread of the name.
fn cpus_of(pid: u32, name: &str) -> BTreeSet<String> {
    threads(pid).into_iter().filter(|(of, _)| of == name).map(|(_, cpus)| cpus).collect()
}

/// A guest with `request_queues` that has mounted the share of a daemon, and a client on each of its request queues.
fn mount_queues(daemon: &Daemon, request_queues: usize) -> (Arc<Guest>, Vec<Client>) {
    let options = GuestOptions { request_queues, ..GuestOptions::default() };
    let guest = Guest::connect(daemon.socket(), &options).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    let clients = (0..request_queues).map(|queue| client.on_queue(FIRST_REQUEST + queue)).collect();
    (guest, clients)
}

/// Has each queue, and hiprio, serve something, so that its thread has started.
fn use_all_queues(clients: &mut [Client]) {
    for client in clients.iter_mut() {
        assert_serves(client, "dir");
    }
    clients[0].on_queue(HIPRIO).statfs(ROOT).expect("STATFS");
}

#[test]
fn the_threads_of_each_queue_run_on_the_cpus_of_its_list_and_the_others_on_all() {
    let Some((all, first, last)) = cpus() else { return };
    for sandbox in ["none", "namespace"] {
        for (lists, of_queues) in [(format!("{first}:{last}"), [&first, &last]), (last.clone(), [&last, &last])] {
            let daemon = Daemon::start(&["--sandbox", sandbox, "--num-request-queues", "2", "--queue-cpus", &lists]);
            let (_guest, mut clients) = mount_queues(&daemon, 2);
            use_all_queues(&mut clients);
            let pid = daemon.serving();
            let of_queues = [("request 1", of_queues[0]), ("request 2", of_queues[1])];
            let others = ["hiprio", "signals", "vhost-user", "watchdog"].map(|name| (name, all.to_string()));
            for (name, cpus) in of_queues.map(|(name, cpus)| (name, cpus.clone())).into_iter().chain(others) {
                // One that starts meanwhile binds itself first.
                assert!(eventually(|| cpus_of(pid, name) == BTreeSet::from([cpus.clone()])), "{lists}: {name}: {:?}", threads(pid));
            }
        }
    }
}

#[test]
fn followers_run_on_the_cpus_of_their_queue_whoever_starts_them() {
    const SLOW: usize = 3;
    let Some((_, _, last)) = cpus() else { return };
    if !is_root("a slow file") {
        return;
    }
    let daemon = Daemon::start(&["--queue-cpus", &last]);
    let path = daemon.put("slow", [7; 100]);
    let Some(slow) = SlowFile::new(&path) else { return };
    let (_guest, mut clients) = mount_queues(&daemon, 1);
    let client = &mut clients[0];
    let node = client.lookup(ROOT, "slow").expect("LOOKUP").nodeid;
    let fh = client.open(node, libc::O_RDONLY).expect("OPEN").fh;
    let read = ReadIn { fh, size: 100, ..ReadIn::default() };
    // Each leader is stuck in a READ when the next one comes: the watchdog, whose own CPUs are all, starts a thread.
    let mut waiting = Vec::new();
    let pending: Vec<_> = (0..SLOW)
        .map(|_| {
            let pending = client.begin(&Call { room: 100, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
            waiting.push(slow.wait_for_read());
            pending
        })
        .collect();
    assert_serves(client, "dir");
    let serving = threads(daemon.serving()).into_iter().filter(|(name, _)| name == "request 1").count();
    assert!(serving > SLOW, "{serving} threads");
    assert!(eventually(|| cpus_of(daemon.serving(), "request 1") == BTreeSet::from([last.clone()])), "{:?}", threads(daemon.serving()));
    waiting.into_iter().for_each(|read| slow.let_go(read));
    for pending in pending {
        assert_eq!(client.finish(pending).expect("READ").payload, [7; 100]);
    }
}

#[test]
fn a_list_is_reduced_to_what_the_process_may_use_and_that_is_said() {
    let Some((_, first, last)) = cpus() else { return };
    let only = first.parse().expect("a CPU");
    let scratch = Scratch::new();
    let process = Process::spawn(on_cpus(&mut command(&scratch, &["--queue-cpus", &format!("{first},{last}")]), only));
    let said = process.wait_for_line("--queue-cpus: ");
    let list: Cpus = format!("{first},{last}").parse().expect("a list");
    let expected = format!("--queue-cpus: list 1 ({list}): this process may not use {last}; the threads of the queue run on {first}");
    assert!(said.contains(" WARN ") && said.ends_with(&expected), "{said}");
    process.wait_for_line("sharing ");
    let (_guest, mut client) = super::mount(&scratch.join("s"));
    assert_serves(&mut client, "dir");
    assert!(threads(process.serving()).contains(&("request 1".to_owned(), first)));
}

#[test]
fn a_queue_without_a_list_is_served_and_that_is_said() {
    let Some((all, first, last)) = cpus() else { return };
    let daemon = Daemon::start(&["--queue-cpus", &format!("{first}:{last}")]);
    let (_guest, mut clients) = mount_queues(&daemon, 3);
    use_all_queues(&mut clients);
    let said = daemon.wait_for_line("--queue-cpus has no list for queue 3");
    assert!(said.contains(" WARN ") && said.ends_with("give as many lists as the VMM has request queues"), "{said}");
    let found = threads(daemon.serving());
    for (queue, cpus) in [(1, first), (2, last), (3, all.to_string())] {
        assert!(found.contains(&(format!("request {queue}"), cpus)), "queue {queue}: {found:?}");
    }
}

#[test]
fn without_the_option_no_thread_is_bound() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut clients) = mount_queues(&daemon, 2);
    use_all_queues(&mut clients);
    let all = Cpus::allowed().expect("this thread's affinity").to_string();
    assert!(threads(daemon.serving()).iter().all(|(_, cpus)| *cpus == all), "{:?}", threads(daemon.serving()));
}

#[test]
fn lists_that_make_no_sense_are_refused_in_a_sentence_with_the_list_and_what_to_do() {
    let malformed = "expected numbers and ranges of CPUs, for example 0-3,8; separate the lists of the queues by colons";
    let cases: [(&[&str], String); 8] = [
        (&["--queue-cpus="], format!("invalid value '' for --queue-cpus: list 1 (): {malformed}")),
        (&["--queue-cpus", "0:all"], format!("invalid value '0:all' for --queue-cpus: list 2 (all): {malformed}")),
        (&["--queue-cpus", "3-1"], format!("invalid value '3-1' for --queue-cpus: list 1 (3-1): {malformed}")),
        (&["--queue-cpus", "0 1"], format!("invalid value '0 1' for --queue-cpus: list 1 (0 1): {malformed}")),
        (
            &["--queue-cpus", "4096"],
            "invalid value '4096' for --queue-cpus: list 1 (4096): the highest number that a CPU can have is 1023; separate the lists of \
             the queues by colons"
                .to_owned(),
        ),
        (&["--queue-cpus"], "missing value for --queue-cpus; write --queue-cpus <LISTS>".to_owned()),
        (
            &["--num-request-queues", "3", "--queue-cpus", "0:0"],
            "--queue-cpus: 2 lists with --num-request-queues 3; give one for each queue, or one for all".to_owned(),
        ),
        (
            &["--num-request-queues", "1", "--queue-cpus", "0:0"],
            "--queue-cpus: 2 lists with --num-request-queues 1; give one for each queue, or one for all".to_owned(),
        ),
    ];
    let scratch = Scratch::new();
    for (options, expected) in cases {
        let (status, said) = refused(&mut command(&scratch, options));
        assert_eq!((status.code(), said), (Some(2), format!("gatherfsd: {expected}")), "{options:?}");
        assert!(!scratch.join("s").exists(), "{options:?} made a socket");
    }
}

#[test]
fn cpus_that_are_not_there_or_not_allowed_are_refused_with_those_that_are() {
    let scratch = Scratch::new();
    match Cpus::present().map(|present| present.to_string()).filter(|present| !present.contains("1023")) {
        Some(present) => {
            let (status, said) = refused(&mut command(&scratch, &["--queue-cpus", "1023"]));
            let expected =
                format!("gatherfsd: --queue-cpus: list 1 (1023) has CPUs that this machine does not have (1023); name some of {present}");
            assert_eq!((status.code(), said), (Some(2), expected));
        }
        None => println!("skipped: the machine's CPUs are not known, or are 1024"),
    }
    let Some((_, first, last)) = cpus() else { return };
    let only = first.parse().expect("a CPU");
    let (status, said) = refused(on_cpus(&mut command(&scratch, &["--queue-cpus", &format!("{first}:{last}")]), only));
    let expected = format!(
        "gatherfsd: --queue-cpus: list 2 ({last}) has no CPU that this process may use; name some of {first}, or change its affinity or cpuset"
    );
    assert_eq!((status.code(), said), (Some(2), expected));
    assert!(!scratch.join("s").exists(), "it made a socket");
}

#[test]
fn lists_can_stand_in_a_file() {
    let Some((_, _, last)) = cpus() else { return };
    let scratch = Scratch::new();
    let file = scratch.join("gatherfsd.toml");
    fs::write(&file, format!("queue-cpus = '{last}'\n")).expect("a file");
    let daemon = Daemon::start(&["--config", file.to_str().expect("text")]);
    let (_guest, mut clients) = mount_queues(&daemon, 1);
    use_all_queues(&mut clients);
    assert!(threads(daemon.serving()).contains(&("request 1".to_owned(), last)));
    // A number without quotes is no list.
    fs::write(&file, "\nqueue-cpus = 0\n").expect("a file");
    let (status, said) = refused(&mut command(&scratch, &["--config", file.to_str().expect("text")]));
    assert_eq!(status.code(), Some(2));
    assert!(said.ends_with("gatherfsd.toml:2: queue-cpus is a number; write queue-cpus = \"VALUE\", in quotes"), "{said}");
    assert!(!scratch.join("s").exists(), "it made a socket");
}
