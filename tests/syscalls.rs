//! Counts the host system calls behind each request, exactly, in a trace of the daemon, and holds them to the
//! budget in docs/ARCHITECTURE.md.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

use gatherfs_support::guest::client::{Client, Piece};
use gatherfs_support::guest::fuse::{OpenIn, OpenOut, ROOT, flag, opcode};
use gatherfs_support::share::{Scratch, Setup, Share, errno};
use zerocopy::IntoBytes;

/// Requests of each kind.
const N: usize = 100;
/// Threads that serve a queue.
const SERVING_MAX: usize = 16;

/// What the transport costs, whatever the request: sleeping until a kick, the call to the guest, locks, and the
/// thread that looks after the others. Each of these calls belongs to no operation on files.
const TRANSPORT: &[&str] =
    &["epoll_wait", "epoll_pwait", "epoll_ctl", "write", "futex", "sched_yield", "restart_syscall", "clock_gettime", "getrusage"];
/// What starting or ending one more thread costs: a traced request is slow, and a slow one gets help. The first set of capabilities
/// that a thread reads is a hash set with a seed.
const THREADS: &[&str] = &[
    "getrandom",
    "clone",
    "clone3",
    "rseq",
    "set_robust_list",
    "sigaltstack",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "prctl",
    "rt_sigprocmask",
    "sched_getaffinity",
    "exit",
    "brk",
    "mremap",
];

/// Whether a process may be traced here, with the reason printed where not.
fn can_trace() -> bool {
    match Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("skipped: tracing is not permitted here: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(e) => {
            eprintln!("skipped: strace cannot be run: {e}");
            false
        }
    }
}

/// A share whose daemon is traced, and the phases that were marked in the trace.
struct Traced {
    share: Share,
    phases: Vec<(&'static str, usize)>,
    directory: Scratch,
}

impl Traced {
    fn start(options: &[&str]) -> Traced {
        let directory = Scratch::on_tmpfs();
        let trace = directory.path().join("trace");
        let before = ["strace", "-f", "-s", "64", "-o", trace.to_str().unwrap()].map(str::to_owned).to_vec();
        let share = Share::start(Setup { before, options, ..Setup::default() });
        Traced { share, phases: Vec::new(), directory }
    }

    fn client(&mut self) -> &mut Client {
        self.share.client()
    }

    /// Runs `act`, which makes `count` requests of one kind, between two marks: lookups of names that are not there.
    fn phase(&mut self, name: &'static str, count: usize, act: impl FnOnce(&mut Share)) {
        let number = self.phases.len();
        self.phases.push((name, count));
        assert_eq!(errno(self.client().lookup(ROOT, &format!("mark-begin-{number}-"))), libc::ENOENT);
        act(&mut self.share);
        assert_eq!(errno(self.client().lookup(ROOT, &format!("mark-end-{number}-"))), libc::ENOENT);
    }

    /// Ends the daemon and tells what each phase called.
    fn end(self) -> Vec<Phase> {
        let Traced { share, phases, directory } = self;
        drop(share);
        let trace = read(&directory.path().join("trace"));
        let workers = Workers::of(&trace);
        let cut = |number: usize, (name, count): (&'static str, usize)| {
            let place = |mark: &str| trace.find(&format!("\"mark-{mark}-{number}-\"")).unwrap_or_else(|| panic!("no {mark} of {name}"));
            let (begin, end) = (place("begin"), place("end"));
            // The first line is the rest of the mark's own; the last is the beginning of the other's.
            let lines: Vec<&str> = trace[begin..end].lines().skip(1).collect();
            let lines = &lines[..lines.len() - 1];
            Phase::of(name, count, lines.iter().copied().filter(|line| workers.at_work(&trace, line)))
        };
        phases.into_iter().enumerate().map(|(number, phase)| cut(number, phase)).collect()
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

/// The threads that serve requests, each with the place in the trace from which on it does: the last thing that
/// it does before is to enter its working directory. The others exchange messages with the VMM, and
/// may still do so when a phase begins.
struct Workers<'a>(HashMap<&'a str, usize>);

impl<'a> Workers<'a> {
    fn of(trace: &'a str) -> Workers<'a> {
        let place = |line: &str| line.as_ptr().addr() - trace.as_ptr().addr();
        let entered = trace.lines().filter(|line| line.contains(" fchdir("));
        Workers(entered.map(|line| (thread_of(line), place(line) + line.len())).collect())
    }

    /// Whether `line` of `trace` is a call of a thread that served requests by then.
    fn at_work(&self, trace: &str, line: &str) -> bool {
        let place = line.as_ptr().addr() - trace.as_ptr().addr();
        self.0.get(thread_of(line)).is_some_and(|from| place > *from)
    }
}

fn thread_of(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// The calls of one phase.
struct Phase {
    name: &'static str,
    requests: usize,
    /// Calls on files, by name.
    calls: BTreeMap<String, usize>,
    transport: usize,
    threads: usize,
    /// Lengths of the vectors of preadv2 and pwritev2.
    vectors: Vec<usize>,
}

impl Phase {
    fn of<'a>(name: &'static str, requests: usize, lines: impl Iterator<Item = &'a str>) -> Phase {
        let mut phase = Phase { name, requests, calls: BTreeMap::new(), transport: 0, threads: 0, vectors: Vec::new() };
        for line in lines {
            // "PID name(arguments) = result", "PID name(arguments <unfinished ...>", "PID <... name resumed>..."
            let rest = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
            // Where another thread's call came between, the vector stands in one half of the line.
            if rest.contains("preadv2") || rest.contains("pwritev2") {
                let count: Option<usize> = rest.split_once("], ").and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse().ok());
                phase.vectors.extend(count);
            }
            let Some((call, _)) = rest.split_once('(') else { continue };
            if !call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            // A debug build's standard library looks at each descriptor before it closes it.
            if cfg!(debug_assertions) && call == "fcntl" && rest.contains("F_GETFD") {
                continue;
            }
            if TRANSPORT.contains(&call) {
                phase.transport += 1;
            } else if THREADS.contains(&call) {
                phase.threads += 1;
            } else {
                *phase.calls.entry(call.to_owned()).or_default() += 1;
            }
        }
        phase
    }

    fn total(&self) -> usize {
        self.calls.values().sum()
    }
}

/// `count` pieces that do not adjoin.
fn pieces(count: usize) -> Vec<Piece> {
    vec![Piece { offset: 8, len: 100 }; count]
}

fn name(prefix: &str, i: usize) -> String {
    format!("{prefix}{i}")
}

/// READ and WRITE, and what opens and closes files.
fn trace_files(traced: &mut Traced) {
    let file = traced.share.make("data");
    let whole = vec![7; 1020 * 100];
    for (segments, write, read) in [
        (1, "WRITE of 1 segment", "READ of 1 segment"),
        (32, "WRITE of 32 segments", "READ of 32 segments"),
        (256, "WRITE of 256 segments", "READ of 256 segments"),
        (1020, "WRITE of 1020 segments", "READ of 1020 segments"),
    ] {
        let pieces = pieces(segments);
        traced.phase(write, N, |s| {
            for _ in 0..N {
                let len = s.client().write_pieces(file.node, (file.fh, 0), &whole[..segments * 100], &pieces).unwrap();
                assert_eq!(len as usize, segments * 100);
            }
        });
        traced.phase(read, N, |s| {
            for _ in 0..N {
                assert_eq!(s.client().read_pieces(file.node, file.fh, 0, &pieces).unwrap().len(), segments * 100);
            }
        });
    }
    traced.phase("READ at the end of the file", N, |s| {
        for _ in 0..N {
            assert_eq!(s.client().read_pieces(file.node, file.fh, 1020 * 100 - 150, &pieces(32)).unwrap().len(), 150);
        }
    });
    // As Linux sends each WRITE of a user other than root.
    let write = |s: &mut Share| assert_eq!(s.client().write(file.node, file.fh, 0, b"contents").unwrap(), 8);
    traced.client().write_flags = flag::WRITE_KILL_SUIDGID;
    write(&mut traced.share);
    traced.phase("WRITE of a user's", N, |s| (0..N).for_each(|_| write(s)));
    traced.client().write_flags = 0;
    write(&mut traced.share);
    traced.client().file_flags = (libc::O_RDWR | libc::O_APPEND).cast_unsigned();
    traced.phase("WRITE to the end", N, |s| (0..N).for_each(|_| write(s)));
    traced.client().file_flags = libc::O_RDWR.cast_unsigned();
    let mut handles = Vec::new();
    traced.phase("OPEN", N, |s| handles.extend((0..N).map(|_| s.client().open(file.node, libc::O_RDWR).unwrap().fh)));
    traced.phase("RELEASE", N, |s| handles.iter().for_each(|fh| s.client().release(file.node, *fh).unwrap()));
    let truncating = OpenIn { flags: (libc::O_WRONLY | libc::O_TRUNC) as u32, open_flags: flag::OPEN_KILL_SUIDGID };
    traced.phase("OPEN with O_TRUNC of a user's", N, |s| {
        for _ in 0..N {
            let reply = s.client().raw(opcode::OPEN, file.node, truncating.as_bytes(), size_of::<OpenOut>() as u32).unwrap();
            assert_eq!(reply.header.error, 0);
        }
    });
    traced.client().getattr(file.node, None).unwrap();
    traced.phase("GETATTR of a node", N, |s| (0..N).for_each(|_| _ = s.client().getattr(file.node, None).unwrap()));
    traced.phase("GETATTR of a handle", N, |s| (0..N).for_each(|_| _ = s.client().getattr(file.node, Some(file.fh)).unwrap()));
}

/// Lets the files that were just made grow older than a tick of the host's clock: before that, a LOOKUP takes
/// a call more to tell them from another file with the same number.
fn grow_old() {
    std::thread::sleep(std::time::Duration::from_millis(60));
}

/// What makes, finds and removes names.
fn trace_names(traced: &mut Traced) {
    for i in 0..N {
        traced.share.put(&name("host", i), b"");
    }
    grow_old();
    let look_up = |s: &mut Share| (0..N).for_each(|i| _ = s.client().lookup(ROOT, &name("host", i)).unwrap());
    traced.phase("LOOKUP of a new name", N, look_up);
    traced.phase("LOOKUP of a known name", N, look_up);
    let nodes: Vec<u64> = (0..N).map(|i| traced.client().lookup(ROOT, &name("host", i)).unwrap().nodeid).collect();
    let open = |s: &mut Share| nodes.iter().map(|node| (*node, s.client().open(*node, libc::O_RDWR).unwrap().fh)).collect();
    let mut handles: Vec<(u64, u64)> = Vec::new();
    traced.phase("OPEN of a node for the first time", N, |s| handles = open(s));
    traced.phase("OPEN of a node that was open before", N, |s| handles.append(&mut open(s)));
    handles.iter().for_each(|(node, fh)| traced.client().release(*node, *fh).unwrap());
    for i in 0..N {
        let node = traced.client().lookup(ROOT, &name("host", i)).unwrap().nodeid;
        traced.client().forget(node, u64::MAX).unwrap();
    }
    traced.phase("LOOKUP of a forgotten name", N, look_up);
    let flags = libc::O_RDWR | libc::O_EXCL;
    traced.phase("CREATE", N, |s| (0..N).for_each(|i| _ = s.client().create(ROOT, &name("file", i), 0o644, flags).unwrap()));
    traced.phase("RENAME", N, |s| (0..N).for_each(|i| s.client().rename(ROOT, &name("file", i), ROOT, &name("moved", i)).unwrap()));
    let exchange = |s: &mut Share| s.client().rename2((ROOT, "host0"), (ROOT, "host1"), libc::RENAME_EXCHANGE).unwrap();
    traced.phase("RENAME2, exchange", N, |s| (0..N).for_each(|_| exchange(s)));
    traced.phase("UNLINK", N, |s| (0..N).for_each(|i| s.client().unlink(ROOT, &name("moved", i)).unwrap()));
    traced.phase("MKDIR", N, |s| (0..N).for_each(|i| _ = s.client().mkdir(ROOT, &name("dir", i), 0o755).unwrap()));
    traced.phase("RMDIR", N, |s| (0..N).for_each(|i| s.client().rmdir(ROOT, &name("dir", i)).unwrap()));
}

/// Lists a directory of `N` entries twice. Tells how many requests each listing took.
fn trace_listing(traced: &mut Traced) -> [usize; 2] {
    let dir = traced.client().mkdir(ROOT, "listed", 0o755).unwrap().nodeid;
    for i in 0..N {
        traced.share.put(&name("listed/entry", i), b"");
    }
    grow_old();
    ["READDIRPLUS, new entries", "READDIRPLUS, known entries"].map(|kind| {
        let fh = traced.client().opendir(dir).unwrap().fh;
        let (mut offset, mut entries, mut requests) = (0, 0, 0);
        traced.phase(kind, N, |s| {
            loop {
                let part = s.client().readdirplus(dir, fh, offset, 4096).unwrap();
                requests += 1;
                let Some(last) = part.last() else { break };
                (offset, entries) = (last.off, entries + part.len());
            }
        });
        assert_eq!(entries, N + 2);
        requests
    })
}

/// Lists a directory of `10 * N` entries, about 32 KiB on the host, as guests before Linux 6.14 do: a page a request.
fn trace_long_listing(traced: &mut Traced) {
    let dir = traced.client().mkdir(ROOT, "long", 0o755).unwrap().nodeid;
    for i in 0..10 * N {
        traced.share.put(&name("long/entry", i), b"");
    }
    let fh = traced.client().opendir(dir).unwrap().fh;
    let mut entries = 0;
    traced.phase("READDIR of ten pages", 1, |s| {
        let mut offset = 0;
        loop {
            let part = s.client().readdir(dir, fh, offset, 4096).unwrap();
            let Some(last) = part.last() else { break };
            (offset, entries) = (last.off, entries + part.len());
        }
    });
    assert_eq!(entries, 10 * N + 2);
}

#[test]
fn each_request_takes_no_more_host_calls_than_its_budget() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: the budget is that of a daemon that may open files by handle");
        return;
    }
    if !can_trace() {
        return;
    }
    let mut traced = Traced::start(&[]);
    trace_files(&mut traced);
    trace_names(&mut traced);
    let listings = trace_listing(&mut traced);
    trace_long_listing(&mut traced);
    let phases = traced.end();

    println!("{:<28} {:>9} {:>9} {:>10}   calls on files", "request", "budget", "calls", "transport");
    let mut over = Vec::new();
    for phase in &phases {
        // Per request; of a listing, per entry beside one for each request.
        let (budget, beside, exact) = match phase.name {
            "LOOKUP of a new name" | "MKDIR" | "OPEN of a node for the first time" => (3, 0, false),
            // openat2, statx and name_to_handle_at.
            "CREATE" => (3, 0, true),
            // open_by_handle_at and ftruncate; two capget and a capset before and behind ftruncate, for CAP_FSETID.
            "OPEN with O_TRUNC of a user's" => (8, 0, true),
            // statx before: what a repetition needs to know.
            "WRITE to the end" | "RENAME2, exchange" => (2, 0, true),
            // Each thread that takes part lays CAP_FSETID down once.
            "WRITE of a user's" => (1, 3 * SERVING_MAX, false),
            "READDIRPLUS, new entries" => (2, listings[0], false),
            // One getdents64 for the first page, one for each 32 KiB that follow, and one that finds the end.
            "READDIR of ten pages" => (4, 0, false),
            "READDIRPLUS, known entries" => (1, listings[1], false),
            _ => (1, 0, true),
        };
        let (allowed, total) = (budget * phase.requests + beside, phase.total());
        let per_request = |n: usize| n as f64 / phase.requests as f64;
        let (calls, transport) = (per_request(total), per_request(phase.transport));
        println!("{:<28} {:>9} {calls:>9.2} {transport:>10.2}   {:?}", phase.name, per_request(allowed), phase.calls);
        if phase.threads > 0 {
            println!("{:<28} {} calls that started or ended threads", "", phase.threads);
        }
        if total > allowed || (exact && total != allowed) || total < phase.requests {
            over.push(format!("{}: {total} calls instead of {allowed}: {:?}", phase.name, phase.calls));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
    for phase in phases.iter().filter(|p| p.name.contains("segment")) {
        let segments: usize = phase.name.split(' ').find_map(|word| word.parse().ok()).unwrap();
        assert_eq!(phase.vectors, vec![segments; N], "{}: one vectored call for all segments", phase.name);
    }
}

#[test]
fn a_read_of_a_file_that_was_not_opened_is_one_host_call() {
    if !rustix::process::geteuid().is_root() || !can_trace() {
        eprintln!("skipped: the daemon must be traced and open files by handle");
        return;
    }
    let mut traced = Traced::start(&["--cache", "always", "--readonly", "--negative-timeout", "0"]);
    traced.share.put("file", b"contents");
    grow_old();
    let node = traced.client().lookup(ROOT, "file").unwrap().nodeid;
    let read = |s: &mut Share| assert_eq!(s.client().read(node, 0, 0, 100).unwrap(), b"contents");
    traced.phase("the first READ", 1, read);
    traced.phase("READ", N, |s| (0..N).for_each(|_| read(s)));
    let phases = traced.end();
    // The first one opens it with O_PATH, looks at its type and opens that for reading.
    for (phase, budget) in phases.iter().zip([4, N]) {
        println!("{}: {:?}", phase.name, phase.calls);
        assert_eq!(phase.total(), budget, "{}: {:?}", phase.name, phase.calls);
    }
}
