//! `--io-engine` and `--pin-guest-memory`: what goes through io_uring, and what happens where the kernel forbids it.

use std::collections::BTreeMap;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Command;

use caps::{CapSet, Capability};
use gatherfs_support::daemon::{Daemon, Process, Scratch, is_root};
use gatherfs_support::guest::client::{Call, Caller, Client, Pending};
use gatherfs_support::guest::fuse::{ROOT, ReadIn, opcode};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use zerocopy::IntoBytes;

use super::{assert_serves, command, mount, refused};

const PAGE: usize = 4096;
const PAGES: usize = 64;

/// Has `command` run where io_uring_setup(2) fails with `errno`.
fn without_io_uring(command: &mut Command, errno: i32) -> &mut Command {
    without(command, libc::SYS_io_uring_setup, errno)
}

/// Has `command` run where the system call number `call` fails with `errno`.
pub(super) fn without(command: &mut Command, call: libc::c_long, errno: i32) -> &mut Command {
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let rules = BTreeMap::from([(call, Vec::new())]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()), arch);
    let filter: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    let install = move || seccompiler::apply_filter(&filter).map_err(|_| std::io::ErrorKind::Other.into());
    // SAFETY: two system calls, and no memory is allocated.
    unsafe { command.pre_exec(install) }
}

/// Whether rings can be made here.
pub(super) fn has_io_uring() -> bool {
    let rings = gatherfs::io::Rings::new(1, false);
    if let Err(e) = &rings {
        println!("skipped: no rings: {e}");
    }
    rings.is_ok()
}

fn begin_read(c: &mut Client, (node, fh): (u64, u64), page: usize) -> Pending {
    let read = ReadIn { fh, offset: (page * PAGE) as u64, size: PAGE as u32, ..ReadIn::default() };
    c.begin(&Call { room: PAGE as u32, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })
}

/// Writes a file that is open with `flags` and reads it, 16 requests at a time.
fn transfer(client: &mut Client, name: &str, flags: i32) {
    let content: Vec<u8> = (0..PAGES * PAGE).map(|at| (at / PAGE * 5 + at % 253) as u8).collect();
    let created = client.create(ROOT, name, 0o644, libc::O_RDWR | flags).expect("CREATE");
    let file = (created.entry.nodeid, created.open.fh);
    client.file_flags = (libc::O_RDWR | flags) as u32;
    for (page, bytes) in content.chunks(PAGE).enumerate() {
        assert_eq!(client.write(file.0, file.1, (page * PAGE) as u64, bytes), Ok(PAGE as u32));
    }
    client.fsync(file.0, file.1, false).expect("FSYNC");
    for first in (0..PAGES).step_by(16) {
        // Scattered, so that neighbours are not merged.
        let pages: Vec<usize> = (first..first + 16).map(|i| i * 29 % PAGES).collect();
        let pending: Vec<_> = pages.iter().map(|page| begin_read(client, file, *page)).collect();
        for (page, pending) in pages.into_iter().zip(pending) {
            let reply = client.finish(pending).expect("READ");
            assert!(reply.header.error == 0 && reply.payload == content[page * PAGE..][..PAGE], "{name}, page {page}");
        }
    }
    // Direct I/O refuses this one, and it is made again without.
    assert!(client.read(file.0, file.1, 5, 100) == Ok(content[5..105].to_vec()));
    client.release(file.0, file.1).expect("RELEASE");
}

/// What the options make the daemon submit to io_uring: by a buffered file, and by one with O_DIRECT.
fn submitted(options: &[&str]) -> (u64, u64) {
    let daemon = Daemon::start_in(Scratch::on_disk(), options);
    let (_guest, mut client) = mount(daemon.socket());
    transfer(&mut client, "buffered", 0);
    let by_buffered = daemon.metrics().get("submitted");
    transfer(&mut client, "direct", libc::O_DIRECT);
    let metrics = daemon.metrics();
    assert!(metrics.get("ring_enters") <= metrics.get("submitted"));
    (by_buffered, metrics.get("submitted") - by_buffered)
}

#[test]
fn the_engine_is_what_the_option_says() {
    if !has_io_uring() {
        return;
    }
    assert_eq!(submitted(&[]), (0, 0), "without direct I/O");
    assert_eq!(submitted(&["--allow-direct-io", "--io-engine", "sync"]), (0, 0));
    let (buffered, direct) = submitted(&["--allow-direct-io"]);
    assert!(buffered == 0 && direct > PAGES as u64, "auto: {buffered} and {direct} submitted");
    let (buffered, direct) = submitted(&["--allow-direct-io", "--io-engine", "uring"]);
    assert!(buffered > PAGES as u64 && direct > PAGES as u64, "uring: {buffered} and {direct} submitted");
}

#[test]
fn a_lone_direct_transfer_is_carried_out_at_once_after_a_while() {
    if !has_io_uring() {
        return;
    }
    let daemon = Daemon::start_in(Scratch::on_disk(), &["--allow-direct-io"]);
    daemon.put("file", [7; PAGE]);
    let (_guest, mut client) = mount(daemon.socket());
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let fh = client.open(node, libc::O_RDONLY | libc::O_DIRECT).expect("OPEN").fh;
    for _ in 0..200 {
        assert!(client.read(node, fh, 0, PAGE as u32) == Ok(vec![7; PAGE]));
    }
    let metrics = daemon.metrics();
    assert_eq!(metrics.get("submitted"), 64);
    assert_eq!(metrics.get("host_reads"), 200);
}

#[test]
fn rings_work_in_the_sandbox_one_session_after_the_other() {
    if !has_io_uring() {
        return;
    }
    for sandbox in ["namespace", "chroot"] {
        if sandbox == "chroot" && !rustix::process::geteuid().is_root() {
            continue;
        }
        let options = ["--sandbox", sandbox, "--keep-listening", "--allow-direct-io", "--io-engine", "uring", "--pin-guest-memory"];
        let daemon = Daemon::start_in(Scratch::on_disk(), &options);
        let mut before = 0;
        for session in 0..3 {
            let (_guest, mut client) = mount(daemon.socket());
            transfer(&mut client, &format!("file{session}"), libc::O_DIRECT);
            assert_serves(&mut client, "dir");
            let submitted = daemon.metrics().get("submitted");
            assert!(submitted - before > PAGES as u64, "session {session}: {submitted} after {before}");
            before = submitted;
        }
        // That it cannot be pinned is said once, not for each session.
        assert!(daemon.log().lines().filter(|line| line.contains("--pin-guest-memory")).count() <= 1, "{}", daemon.log());
    }
}

#[test]
fn where_io_uring_is_forbidden_it_is_said_once_and_served_without_or_refused() {
    for (errno, why) in [
        (libc::EPERM, "the sysctl kernel.io_uring_disabled, or a seccomp filter around the daemon, forbids io_uring"),
        (libc::ENOSYS, "the kernel has no io_uring, or a seccomp filter around the daemon forbids it"),
    ] {
        let scratch = Scratch::new();
        let (status, said) = refused(without_io_uring(&mut command(&scratch, &["--io-engine", "uring"]), errno));
        assert_eq!(status.code(), Some(1));
        assert_eq!(said.lines().last(), Some(format!("gatherfsd: --io-engine uring: {why}; else leave it out").as_str()));

        let mut process = Process::spawn(without_io_uring(&mut command(&scratch, &["--allow-direct-io"]), errno));
        process.wait_for_line("Waiting for");
        let (guest, mut client) = mount(&scratch.join("s"));
        transfer(&mut client, "file", libc::O_DIRECT);
        assert_eq!(process.metrics().get("submitted"), 0);
        drop((guest, client));
        assert!(process.wait().success());
        let told: Vec<String> = process.log().lines().filter(|line| line.contains("io_uring")).map(str::to_owned).collect();
        assert!(told.len() == 1 && told[0].contains(why), "{told:?}");
    }
}

/// Has `command` run with at most `len` bytes of locked memory, which root cannot raise again.
pub(super) fn with_locked_memory(command: &mut Command, len: u64) -> &mut Command {
    let limit = move || {
        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
            // A user other than root does not have it.
            let _ = caps::drop(None, set, Capability::CAP_SYS_RESOURCE);
        }
        Ok(setrlimit(Resource::Memlock, Rlimit { current: Some(len), maximum: Some(len) })?)
    };
    // SAFETY: prctl(2), capset(2) and setrlimit(2) may be made between fork and exec.
    unsafe { command.pre_exec(limit) }
}

/// A daemon that pins guest memory and has a ring for everything, for two sessions that transfer: their transfers from pinned
/// memory, and the log.
fn pinned_transfers(change: impl FnOnce(&mut Command), options: &[&str], caller: Caller) -> (u64, String) {
    let scratch = Scratch::new();
    let pinning = ["--pin-guest-memory", "--io-engine", "uring", "--keep-listening"];
    let mut command = command(&scratch, &[&pinning, options].concat());
    for path in [scratch.path(), &scratch.join("share")] {
        chown(path, Some(caller.uid), Some(caller.gid)).expect("root may");
    }
    change(&mut command);
    let process = Process::spawn(&mut command);
    process.wait_for_line("Waiting for");
    for session in 0..2 {
        let (_guest, mut client) = mount(&scratch.join("s"));
        client.caller = caller;
        transfer(&mut client, &format!("file{session}"), 0);
    }
    (process.metrics().get("pinned_transfers"), process.log())
}

#[test]
fn memory_beyond_the_limit_is_not_pinned_which_is_said_once_and_transfers_go_on() {
    const NOBODY: u32 = 65534;
    const LIMIT: u64 = 1 << 20;
    const SAYS: &str = "--pin-guest-memory: guest memory cannot be pinned: Cannot allocate memory (os error 12); raise the limit of locked \
                        memory (RLIMIT_MEMLOCK, LimitMEMLOCK= of a systemd unit) to the size of the guest, give --modcaps +ipc_lock as \
                        root, or leave the option out";
    if !has_io_uring() || !is_root("becoming another user") {
        return;
    }
    let (root, nobody) = (Caller { uid: 0, gid: 0, pid: 1 }, Caller { uid: NOBODY, gid: NOBODY, pid: 1 });
    let as_root = |options: &[&str]| pinned_transfers(|command| _ = with_locked_memory(command, LIMIT), options, root);
    let (pinned, said) = as_root(&["--modcaps", "+ipc_lock"]);
    if said.contains("it takes Linux 6.15") {
        println!("skipped: no pinned memory before Linux 6.15");
        return;
    }
    assert!(pinned > 0 && !said.contains("--pin-guest-memory"), "beyond the limit by CAP_IPC_LOCK: {said}");
    let as_nobody = pinned_transfers(|command| _ = with_locked_memory(command.uid(NOBODY).gid(NOBODY), LIMIT), &[], nobody);
    for (pinned, said) in [as_nobody, as_root(&[]), as_root(&["--sandbox", "namespace"]), as_root(&["--sandbox", "chroot"])] {
        assert_eq!(pinned, 0, "{said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("--pin-guest-memory")).collect();
        assert!(lines.len() == 1 && lines[0].contains(" WARN ") && lines[0].ends_with(SAYS), "{said}");
    }
}

#[test]
fn memory_that_nothing_uses_is_not_pinned() {
    let scratch = Scratch::new();
    for options in [&["--pin-guest-memory"][..], &["--pin-guest-memory", "--allow-direct-io", "--io-engine", "sync"]] {
        let (status, said) = refused(&mut command(&scratch, options));
        assert_eq!(status.code(), Some(2));
        let expected =
            "gatherfsd: --pin-guest-memory needs --allow-direct-io, or --io-engine uring: nothing else is done by io_uring; leave it out";
        assert_eq!(said.lines().last(), Some(expected));
    }
}
