//! Workers that die while the host holds something up, or has something pinned, for them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gatherfs_support::daemon::{Daemon, Process, Scratch, children_of, eventually, is_root, only_child, status_field};
use gatherfs_support::guest::client::{Call, Caller, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{ROOT, ReadIn, WriteIn, opcode};
use gatherfs_support::guest::ring::Segment;
use gatherfs_support::private_mounts::{self, Mount};
use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::IntoBytes;

use super::bindfs::Fuse;
use super::io_engine::{has_io_uring, with_locked_memory, without};
use super::{assert_serves, command, mount};

const PAGE: u32 = 4096;
/// Requests that a ring has room for (src/io/rings.rs).
const ON_RING: u64 = 128;
/// More than that, so that some wait outside.
const READS: usize = 160;

/// Pages each full of its number.
fn pages() -> Vec<u8> {
    (0..READS).flat_map(|page| [page as u8; PAGE as usize]).collect()
}

/// A share on a disk that a FUSE server has, so that the host's transfers wait for the server, and nothing that happens to the process
/// that wanted them ends them. It has a file with [`pages`]. `None`, with the reason printed, where there
/// can be none.
fn on_slow_disk() -> Option<(Scratch, Fuse, Mount)> {
    if !private_mounts::enter() {
        return None;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    let fuse = Fuse::mount(&scratch.join("behind"), &scratch.join("fuse"))?;
    let image = scratch.join("fuse/image");
    File::create(&image).and_then(|image| image.set_len(64 << 20)).expect("an image");
    let disk = Mount::made(&["mkfs.ext4", "-q", "-b", "4096"], &image, &scratch.join("share"))?;
    fs::write(scratch.join("share/file"), pages()).expect("a file");
    rustix::fs::syncfs(File::open(scratch.join("share")).expect("the share")).expect("it can be written back");
    forget(&image);
    Some((scratch, fuse, disk))
}

/// Has the kernel forget what it has read of the file at `path`.
fn forget(path: &Path) {
    let file = File::open(path).expect("the file");
    fadvise(&file, 0, None, Advice::DontNeed).expect("an advice");
}

fn kill_worker(daemon: &Daemon) -> u32 {
    let worker = only_child(daemon.keeper());
    kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
    worker
}

/// Has the guest read page `page` into its page number `page` behind `at`.
fn begin_read(client: &mut Client, (node, fh): (u64, u64), at: u64, page: usize) -> Pending {
    let offset = page as u64 * u64::from(PAGE);
    let read = ReadIn { fh, offset, size: PAGE, ..ReadIn::default() };
    let data_out = [Segment::writable(at + offset, PAGE)];
    client.begin(&Call { data_out: &data_out, ..Call::new(opcode::READ, node, &[read.as_bytes()]) })
}

/// The guest's file, open for O_DIRECT, and room for its pages.
fn open_direct(client: &mut Client) -> ((u64, u64), u64) {
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let file = (node, client.open(node, libc::O_RDONLY | libc::O_DIRECT).expect("OPEN").fh);
    (file, client.guest().memory().alloc(READS as u64 * u64::from(PAGE), u64::from(PAGE)))
}

fn assert_read(client: &mut Client, pending: Vec<Pending>, at: u64) {
    for (page, pending) in pending.into_iter().enumerate() {
        assert_eq!(client.finish(pending).expect("an answer").header.error, 0, "page {page}");
        let data = client.guest().memory().read_vec(at + page as u64 * u64::from(PAGE), PAGE as usize);
        assert!(data == [page as u8; PAGE as usize], "page {page}");
    }
}

/// A guest that has the file of a slow disk open, for O_DIRECT, and room for its pages.
struct SlowReader {
    daemon: Daemon,
    client: Client,
    fuse: Fuse,
    image: PathBuf,
    file: (u64, u64),
    at: u64,
    _disk: Mount,
}

impl SlowReader {
    /// `None`, with the reason printed, where there can be none.
    fn start(options: &[&str]) -> Option<SlowReader> {
        SlowReader::start_with(options, &[])
    }

    /// The same, with variables of the daemon's environment.
    fn start_with(options: &[&str], variables: &[(&str, &Path)]) -> Option<SlowReader> {
        let (scratch, fuse, disk) = on_slow_disk()?;
        let image = scratch.join("fuse/image");
        let daemon = Daemon::start_with(scratch, &[&["--allow-direct-io"], options].concat(), variables);
        let (_, mut client) = mount(daemon.socket());
        let (file, at) = open_direct(&mut client);
        Some(SlowReader { daemon, client, fuse, image, file, at, _disk: disk })
    }

    /// The host moves nothing from now on.
    fn pause(&mut self) {
        forget(&self.image);
        self.fuse.pause();
        self.client.guest().memory().fill(self.at, READS * PAGE as usize, 0xff);
    }

    /// Begins a read for which the host holds a thread up.
    fn hold_up(&mut self) -> Pending {
        let before = self.daemon.metrics().get("host_reads");
        self.pause();
        let pending = self.begin(0);
        assert!(eventually(|| self.daemon.metrics().get("host_reads") > before), "{}", self.daemon.log());
        // It is counted before the call.
        let is_in_host = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.serving())).into_iter().flatten().flatten();
            tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok()).any(|stat| stat.contains(") D "))
        };
        assert!(eventually(is_in_host), "{}", self.daemon.log());
        pending
    }

    /// The same, and kills the worker, which cannot end for that.
    fn die_held_up(&mut self) -> Pending {
        let pending = self.hold_up();
        let before = self.daemon.log().len();
        kill_worker(&self.daemon);
        assert!(self.is_told("the host has not finished a system call of one of its threads", before), "{}", self.daemon.log());
        assert!(!self.client.is_answered(&pending));
        pending
    }

    fn begin(&mut self, page: usize) -> Pending {
        begin_read(&mut self.client, self.file, self.at, page)
    }

    /// The host moves everything, and the guest has what it read.
    fn end(&mut self, pending: Vec<Pending>) {
        self.fuse.go_on();
        assert_read(&mut self.client, pending, self.at);
    }

    /// Whether the log says `what` behind its first `before` bytes.
    fn is_told(&self, what: &str, before: usize) -> bool {
        eventually(|| self.daemon.log()[before..].contains(what))
    }
}

fn ctl(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatherfsctl"));
    command.arg("--socket-path").arg(daemon.socket()).args(arguments);
    command
}

/// What gatherfsctl prints.
fn status(daemon: &Daemon) -> String {
    let output = ctl(daemon, &["status"]).output();
    String::from_utf8(output.expect("gatherfsctl starts").stdout).expect("text")
}

/// What the kernel moves after the worker's death must not reach a page of the guest whose request has been answered meanwhile.
#[test]
fn transfers_on_the_ring_end_before_they_are_repeated() {
    const COUNT: usize = 8;
    if !has_io_uring() {
        return;
    }
    let Some(mut reader) = SlowReader::start(&["--io-engine", "uring"]) else { return };
    for round in 1..=2 {
        reader.pause();
        let submitted = reader.daemon.metrics().get("submitted");
        // One after the other: while a thread submits one, another thread would read without the ring.
        let begin = |page| {
            let read = reader.begin(page);
            assert!(eventually(|| reader.daemon.metrics().get("submitted") > submitted + page as u64), "{}", reader.daemon.log());
            read
        };
        let pending: Vec<Pending> = (0..COUNT).map(begin).collect();
        let before = reader.daemon.log().len();
        let worker = kill_worker(&reader.daemon);
        let what = format!("the host has not finished {COUNT} transfers of the worker that died");
        assert!(reader.is_told(&what, before), "round {round}: {}", reader.daemon.log());
        assert!(pending.iter().all(|read| !reader.client.is_answered(read)), "round {round}: the host has moved nothing");
        reader.end(pending);
        assert!(only_child(reader.daemon.keeper()) != worker, "round {round}: by another worker");
        assert!(!reader.daemon.log().contains("system call of one of its threads"), "{}", reader.daemon.log());
    }
}

#[test]
fn requests_that_waited_for_room_on_the_ring_are_served_by_the_next_worker() {
    if !has_io_uring() {
        return;
    }
    let Some(mut reader) = SlowReader::start(&["--io-engine", "uring"]) else { return };
    reader.pause();
    let pending: Vec<Pending> = (0..READS).map(|page| reader.begin(page)).collect();
    let is_full = || reader.daemon.metrics().get("submitted") >= ON_RING && reader.daemon.metrics().get("throttled") > 0;
    assert!(eventually(is_full), "{}", reader.daemon.log());
    kill_worker(&reader.daemon);
    reader.end(pending);
}

/// A worker that died goes on with what its threads have the host do. Until that is done another one would be the second that works on
/// the records, so the guest waits, the log says for what, and the daemon obeys.
#[test]
fn a_thread_that_the_host_holds_up_delays_the_next_worker() {
    let at = Scratch::new();
    let manager = UnixDatagram::bind(at.join("notify")).expect("a socket");
    manager.set_nonblocking(true).expect("a flag");
    // Two seconds.
    let variables = [("NOTIFY_SOCKET", &*at.join("notify")), ("WATCHDOG_USEC", Path::new("2000000"))];
    let Some(mut reader) = SlowReader::start_with(&["--io-engine", "sync"], &variables) else { return };
    let pending = reader.die_held_up();
    let is_said = |what: &str| eventually(|| status(&reader.daemon).contains(what));
    assert!(is_said("the worker has died, and the host has not finished what a thread of it does\n"), "{}", status(&reader.daemon));
    // What the host does is no reason for the manager to end the daemon.
    let mut message = [0; 1024];
    while manager.recv(&mut message).is_ok() {}
    let mut has_sign = || manager.recv(&mut message).is_ok_and(|len| message[..len].starts_with(b"WATCHDOG=1"));
    assert!((0..2).all(|_| eventually(&mut has_sign)), "signs of life");
    // A keeper that looked all the time would take a CPU from the others.
    let wake_ups = || status_field(reader.daemon.keeper(), "voluntary_ctxt_switches").parse::<u64>().expect("a number");
    let before = wake_ups();
    std::thread::sleep(Duration::from_millis(500));
    assert!(wake_ups() - before < 50, "{} wake-ups", wake_ups() - before);
    reader.end(vec![pending]);
    assert!(eventually(|| status(&reader.daemon).contains("a VMM is connected; the worker was restarted once\n")));
    let _pending = reader.die_held_up();
    reader.daemon.signal(Signal::TERM);
    // The keeper has it when the host goes on.
    std::thread::sleep(Duration::from_millis(500));
    reader.fuse.go_on();
    assert_eq!(reader.daemon.wait().code(), Some(0), "{}", reader.daemon.log());
}

/// Whoever asked has been told that it is not made, so it is not when the host goes on: neither one that finds a dead worker, nor one that
/// has ended a worker.
#[test]
fn an_upgrade_that_nobody_waits_for_any_more_is_not_made() {
    let options = ["--io-engine", "sync"];
    let (Some(mut dead), Some(mut ended)) = (SlowReader::start(&options), SlowReader::start(&options)) else { return };
    let reads = [dead.die_held_up(), ended.hold_up()];
    let ask = |reader: &SlowReader| {
        let mut command = ctl(&reader.daemon, &["upgrade", "--force"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("gatherfsctl starts")
    };
    for asked in [&dead, &ended].map(ask) {
        let output = asked.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("ask again when that goes on"), "{said}");
    }
    for (reader, read) in [&mut dead, &mut ended].into_iter().zip(reads) {
        reader.end(vec![read]);
        assert!(
            eventually(|| status(&reader.daemon).contains("the worker was restarted once; the last upgrade was refused")),
            "{}",
            reader.daemon.log()
        );
        assert!(!reader.daemon.log().contains("serves now"), "{}", reader.daemon.log());
        let output = ctl(&reader.daemon, &["upgrade"]).output().expect("gatherfsctl starts");
        assert!(output.status.success(), "{}", reader.daemon.log());
        assert_serves(&mut reader.client, "after");
    }
}

/// The kernel forgets with the ring which memory is registered, and no sooner: until then it counts for the limit of locked memory,
/// which here has room for the guest's memory once.
#[test]
fn memory_is_pinned_again_by_the_next_worker() {
    /// A user without other processes, for the limit is that of all of them.
    const USER: u32 = 64_321;
    const MEMORY: u64 = 4 << 20;
    if !has_io_uring() || !is_root("becoming another user") {
        return;
    }
    let scratch = Scratch::new();
    let options = ["--allow-direct-io", "--io-engine", "uring", "--pin-guest-memory"];
    let mut command = command(&scratch, &options);
    for path in [scratch.path(), &scratch.join("share")] {
        chown(path, Some(USER), Some(USER)).expect("root may");
    }
    fs::write(scratch.join("share/file"), pages()).expect("a file");
    let process = Process::spawn(with_locked_memory(command.uid(USER).gid(USER), MEMORY * 3 / 2));
    process.wait_for_line("Waiting for");
    let options = GuestOptions { layout: vec![(0, MEMORY)], ..GuestOptions::default() };
    let mut client = Client::new(&Guest::connect(scratch.join("s"), &options).expect("a connection"), FIRST_REQUEST);
    client.init().expect("INIT");
    client.caller = Caller { uid: USER, gid: USER, pid: 1 };
    let (file, at) = open_direct(&mut client);
    let mut pinned = Vec::new();
    for _ in 0..4 {
        let pending = (0..READS).map(|page| begin_read(&mut client, file, at, page)).collect();
        assert_read(&mut client, pending, at);
        pinned.push(process.metrics().get("pinned_transfers"));
        client.guest().memory().fill(at, READS * PAGE as usize, 0xff);
        let worker = only_child(process.keeper());
        kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
        assert!(eventually(|| matches!(children_of(process.keeper())[..], [next] if next != worker)), "{}", process.log());
    }
    if process.log().contains("it takes Linux 6.15") {
        return println!("skipped: no pinned memory before Linux 6.15");
    }
    // Those for which the ring is busy are not made on it.
    assert!(pinned.iter().all(|pinned| *pinned > 0), "{pinned:?}: {}", process.log());
}

/// Files of a session that ended, which the host was closing when the worker died.
#[test]
fn what_an_ended_session_left_open_is_closed_by_the_next_worker() {
    const FILES: usize = 20;
    if !private_mounts::enter() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("share")).expect("the shared directory");
    let Some(fuse) = Fuse::mount(&scratch.join("behind"), &scratch.join("share/fuse")) else { return };
    let daemon = Daemon::start_in(scratch, &["--stop-timeout", "0.5"]);
    let (guest, mut client) = mount(daemon.socket());
    let below = client.lookup(ROOT, "fuse").expect("LOOKUP").nodeid;
    for number in 0..FILES {
        let made = client.create(below, &format!("file{number}"), 0o644, libc::O_RDWR).expect("CREATE");
        assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"x"), Ok(1));
    }
    let open = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", daemon.keeper())).expect("the process is there");
        let targets = fds.filter_map(Result::ok).filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains("/fuse/file")).count()
    };
    assert!(open() >= FILES, "{}", open());
    // A close(2) of a file that was written to waits for the server.
    fuse.pause();
    guest.reboot(true).expect("RESET_DEVICE is answered");
    daemon.wait_for_line("has not closed all files");
    assert!(open() > 0);
    kill_worker(&daemon);
    fuse.go_on();
    client.init().expect("INIT");
    assert_serves(&mut client, "local");
    assert!(eventually(|| open() == 0), "{} are open: {}", open(), daemon.log());
}

/// A group of processes whose memory is limited, where the kernel has one and this user may make it. To be made before the
/// daemon, so that it is removed after that has ended.
struct MemoryGroup {
    path: PathBuf,
    limit: &'static str,
}

impl MemoryGroup {
    /// `None`, with the reason printed, where there can be none.
    fn new() -> Option<MemoryGroup> {
        // The hierarchy of its own, or the one of all controllers (man cgroups(7)).
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = Path::new(root).join(format!("gatherfs-test-{}-{number}", std::process::id()));
            if fs::create_dir(&path).is_ok() {
                if path.join(limit).exists() {
                    return Some(MemoryGroup { path, limit });
                }
                let _ = fs::remove_dir(&path);
            }
        }
        println!("skipped: no group with a limit of memory can be made here");
        None
    }

    fn set_limit(&self, bytes: u64) {
        // What is swapped out counts elsewhere. Not every kernel counts it.
        let _ = fs::write(self.path.join("memory.swap.max"), "0").and_then(|()| fs::write(self.path.join("memory.swappiness"), "0"));
        fs::write(self.path.join(self.limit), bytes.to_string()).expect("a limit");
    }

    fn add(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("a process can be moved");
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Processes that ended count until they are waited for.
        eventually(|| fs::remove_dir(&self.path).is_ok());
    }
}

/// Reads more of a file than there is memory in `group`, into memory of the guest that nobody has touched: it counts for the process that
/// writes to it first. When the first worker has been ended, `relieve` makes room.
fn read_beyond_limit(daemon: &Daemon, group: &MemoryGroup, pids: &[u32], relieve: impl Fn(&MemoryGroup)) {
    const LIMIT: u64 = 24 << 20;
    const CHUNK: u32 = 1 << 20;
    daemon.put("file", vec![7; CHUNK as usize]);
    let (guest, mut client) = mount(daemon.socket());
    let node = client.lookup(ROOT, "file").expect("LOOKUP").nodeid;
    let fh = client.open(node, libc::O_RDWR).expect("OPEN").fh;
    group.set_limit(LIMIT);
    pids.iter().for_each(|pid| group.add(*pid));
    let at = guest.memory().alloc(2 * LIMIT, 4096);
    let worker = children_of(daemon.keeper());
    let mut is_relieved = false;
    for chunk in 0..2 * LIMIT / u64::from(CHUNK) {
        let data_out = [Segment::writable(at + chunk * u64::from(CHUNK), CHUNK)];
        let read = ReadIn { fh, size: CHUNK, ..ReadIn::default() };
        let pending = client.begin(&Call { data_out: &data_out, ..Call::new(opcode::READ, node, &[read.as_bytes()]) });
        let has_died = || children_of(daemon.keeper()) != worker;
        assert!(eventually(|| client.is_answered(&pending) || has_died()), "{}", daemon.log());
        if has_died() && !is_relieved {
            is_relieved = true;
            relieve(group);
        }
        assert_eq!(client.finish(pending).expect("an answer").header.error, 0, "{}", daemon.log());
    }
    assert!(is_relieved, "{}", daemon.log());
    daemon.wait_for_line("; another one goes on");
    // After a life of a second that is known later.
    daemon.wait_for_line("ended by signal 9 (SIGKILL)");
    assert!(guest.memory().read_vec(at + 2 * LIMIT - 1, 1) == [7], "the last byte that was read");
    assert_serves(&mut client, "directory");
}

#[test]
fn a_worker_that_the_kernel_ends_for_lack_of_memory_is_replaced() {
    if !is_root("a group of processes") {
        return;
    }
    let Some(group) = MemoryGroup::new() else { return };
    let daemon = Daemon::start_in(Scratch::on_disk(), &[]);
    // The next worker is in the keeper's group.
    read_beyond_limit(&daemon, &group, &children_of(daemon.keeper()), |_| ());
}

/// In a group that is full of the guest's memory, which no death makes free, the kernel ends one process after the other that it may end.
#[test]
fn the_daemon_survives_where_its_worker_is_ended_for_memory_that_stays_taken() {
    if !is_root("a group of processes") {
        return;
    }
    let Some(group) = MemoryGroup::new() else { return };
    let daemon = Daemon::start_in(Scratch::on_disk(), &["--sandbox", "namespace"]);
    let oom_score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default().trim().to_owned();
    let usual = oom_score(std::process::id());
    if oom_score(daemon.pid()) != "-1000" {
        assert_eq!(oom_score(daemon.keeper()), usual);
        return println!("skipped: no CAP_SYS_RESOURCE, or no /proc/PID/task/PID/children");
    }
    assert_eq!(oom_score(daemon.keeper()), "-1000");
    let is_rated = || matches!(children_of(daemon.keeper())[..], [worker] if oom_score(worker) == usual);
    assert!(eventually(is_rated));
    read_beyond_limit(&daemon, &group, &[daemon.pid(), daemon.keeper(), only_child(daemon.keeper())], |group| {
        // A while in which the keeper cannot start a worker.
        std::thread::sleep(Duration::from_secs(1));
        group.set_limit(256 << 20);
    });
    assert!(eventually(is_rated), "the next worker, too");
}

/// A group of processes that limits how many there are.
struct ProcessGroup(PathBuf);

impl ProcessGroup {
    /// `None`, with the reason printed, where there can be none.
    fn new() -> Option<ProcessGroup> {
        for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
            let path = Path::new(root).join(format!("gatherfs-test-pids-{}", std::process::id()));
            if fs::create_dir(&path).is_ok() {
                if path.join("pids.max").exists() {
                    return Some(ProcessGroup(path));
                }
                let _ = fs::remove_dir(&path);
            }
        }
        println!("skipped: no group with a limit of processes can be made here");
        None
    }

    fn set_limit(&self, limit: &str) {
        fs::write(self.0.join("pids.max"), limit).expect("a limit");
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        eventually(|| fs::remove_dir(&self.0).is_ok());
    }
}

/// From no room for the next worker at all to room for all of its threads but one: the guest waits until there is room.
#[test]
fn a_worker_for_whose_threads_there_is_no_room_is_waited_for() {
    /// The first, of signals, of the frontend's messages, of hiprio, of the request queue, and the watchdog.
    const THREADS: usize = 6;
    if !is_root("a group of processes") {
        return;
    }
    let Some(group) = ProcessGroup::new() else { return };
    let daemon = Daemon::start_in(Scratch::on_disk(), &["--keep-listening"]);
    let (_guest, mut client) = mount(daemon.socket());
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    for pid in [daemon.pid(), daemon.keeper(), only_child(daemon.keeper())] {
        fs::write(group.0.join("cgroup.procs"), pid.to_string()).expect("a process can be moved");
    }
    // More than one of a name are there when the first one was in a request for long.
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.serving())).into_iter().flatten().flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name != "room\n").collect::<BTreeSet<String>>()
    };
    assert!(eventually(|| threads().len() == THREADS), "{:?}", threads());
    let all = threads();
    // With the outer process and the keeper.
    for room in 2..2 + all.len() {
        group.set_limit(&room.to_string());
        kill_worker(&daemon);
        let write = client.begin(&Call {
            room: 8,
            ..Call::new(opcode::WRITE, node, &[WriteIn { fh, size: 4, ..WriteIn::default() }.as_bytes(), b"data"])
        });
        std::thread::sleep(Duration::from_millis(200));
        group.set_limit("max");
        assert_eq!(client.finish(write).expect("an answer").header.error, 0, "room for {room}: {}", daemon.log());
        assert!(eventually(|| threads().is_superset(&all)), "room for {room}: {:?} of {all:?}", threads());
    }
    assert!(!daemon.log().contains("is lost"), "{}", daemon.log());
    assert_serves(&mut client, "directory");
}

/// Whoever reads the log may hang, as a journal or a program behind a pipe.
#[test]
fn a_log_that_nobody_reads_holds_up_neither_the_next_worker_nor_the_end() {
    let scratch = Scratch::new();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    // One page, of which the first lines leave little.
    rustix::pipe::fcntl_setpipe_size(&write, 4096).expect("a small pipe");
    let mut daemon = command(&scratch, &["--log-level", "debug"]).stderr(write).spawn().expect("the program starts");
    let socket = scratch.join("s");
    assert!(eventually(|| socket.exists()));
    let (_guest, mut client) = mount(&socket);
    let keeper = || children_of(daemon.id()).first().copied().unwrap_or_default();
    for _ in 0..20 {
        let worker = only_child(keeper());
        kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::USR1).expect("the process is there");
        kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
        assert_serves(&mut client, "directory");
        assert!(eventually(|| matches!(children_of(keeper())[..], [next] if next != worker)));
    }
    kill_process(Pid::from_child(&daemon), Signal::TERM).expect("the process is there");
    assert!(daemon.wait().expect("our child").success());
    drop(read);
}

/// A core dump with the guest's memory would hold the next worker up.
#[test]
fn no_guest_memory_is_in_a_core_dump() {
    let daemon = Daemon::start(&[]);
    let (guest, mut client) = mount(daemon.socket());
    assert_serves(&mut client, "directory");
    let maps = fs::read_to_string(format!("/proc/{}/smaps", only_child(daemon.keeper()))).expect("the process is there");
    let lens: Vec<u64> = GuestOptions::default().layout.iter().map(|(_, len)| *len / 1024).collect();
    // The size and the flags of each mapping (man proc_pid_smaps(5)).
    let value = |line: &str, name: &str| line.strip_prefix(name).map(|value| value.trim().to_owned());
    let sizes = maps.lines().filter_map(|line| value(line, "Size:"));
    let flags = maps.lines().filter_map(|line| value(line, "VmFlags:"));
    let of_guest =
        sizes.zip(flags).filter(|(size, _)| size.strip_suffix(" kB").is_some_and(|size| lens.iter().any(|len| size == len.to_string())));
    let of_guest: Vec<(String, String)> = of_guest.filter(|(_, flags)| flags.split(' ').any(|flag| flag == "sh")).collect();
    assert!(of_guest.len() >= 2 * lens.len(), "{of_guest:?}");
    assert!(of_guest.iter().all(|(_, flags)| flags.split(' ').any(|flag| flag == "dd")), "{of_guest:?}");
    drop(guest);
}

/// A filter around the daemon may be older than close_range(2), by which a worker closes what the one before has left open.
#[test]
fn a_filter_without_close_range_costs_no_session() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let scratch = Scratch::new();
        let process = Process::spawn(without(&mut command(&scratch, &["--rlimit-nofile", "4096"]), libc::SYS_close_range, errno));
        process.wait_for_line("Waiting for");
        let (_guest, mut client) = mount(&scratch.join("s"));
        let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
        let open = || fs::read_dir(format!("/proc/{}/fd", process.keeper())).expect("the process is there").count();
        let mut counts = Vec::new();
        for _ in 0..4 {
            let worker = only_child(process.keeper());
            kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
            assert_eq!(client.write(made.entry.nodeid, made.open.fh, 0, b"data"), Ok(4), "{}", process.log());
            assert!(eventually(|| matches!(children_of(process.keeper())[..], [next] if next != worker)), "{}", process.log());
            counts.push(open());
        }
        let (least, most) = (counts.iter().min().expect("some"), counts.iter().max().expect("some"));
        assert!(most - least <= 3, "{counts:?}");
    }
}
