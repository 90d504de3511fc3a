//! A process that is confined as the serving process is, and then does what a guest would have it do that has
//! taken it over: open a path outside, run a program, make a socket, trace another process and more. Each
//! sandbox, each seccomp action, as root and as another user.
//!
//! It has a main function of its own: the program starts itself again for each attempt, and a process may only
//! enter a sandbox before it has threads.

use std::ffi::CString;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use gatherfs::io::Rings;
use gatherfs::outer::{self, Outer};
use gatherfs::sandbox::{self, Capabilities, Entered, IdMaps, Mode, OptionalCalls, Options, Reach, Seccomp};
use gatherfs::sys::file_handle::{self, Handle};
use gatherfs::sys::working_dir::DescriptorDir;
use gatherfs_support::daemon::Scratch;
use gatherfs_support::places;

const NOBODY: u32 = 65534;
/// What the second process of an attempt is started with.
const INSIDE: &str = "--inside";
/// What a caught SIGSYS prints.
const TRAPPED: &str = "trapped";

/// A way out.
struct Attempt {
    name: &'static str,
    /// Tries it: what it got, or the errno.
    act: fn(&Outside) -> Result<String, i32>,
    /// Whether the call itself is not on the list, so that seccomp acts on it.
    is_unlisted: bool,
    /// Whether it fails even without seccomp.
    fails_anyway: bool,
}

/// What a process inside knows of the outside.
struct Outside {
    /// Another process of the same user.
    pid: i32,
    /// This program, opened before.
    program: i32,
    /// The name of an abstract socket that somebody listens on.
    abstract_name: String,
    /// A port on which somebody listens.
    port: u16,
    descriptor_dir: DescriptorDir,
    /// The file handle of a file beside the share, on its file system.
    handle: Handle,
    share: OwnedFd,
    /// A ring as the daemon has, and where the parts of one are. `None` where the kernel forbids them.
    ring: Option<(i32, RingParts)>,
}

/// The one way that a share with file handles leaves open: the calls that make it are what serving needs.
const OPEN_A_HANDLE: &str = "open by a handle";

const ATTEMPTS: &[Attempt] = &[
    Attempt { name: "open a path", act: open_path, is_unlisted: false, fails_anyway: true },
    Attempt { name: "climb from /proc/self/fd", act: climb, is_unlisted: false, fails_anyway: true },
    Attempt { name: OPEN_A_HANDLE, act: open_handle, is_unlisted: false, fails_anyway: true },
    Attempt { name: "run a program", act: run_program, is_unlisted: true, fails_anyway: false },
    Attempt { name: "start a process", act: start_process, is_unlisted: true, fails_anyway: false },
    Attempt { name: "map memory that runs", act: map_code, is_unlisted: true, fails_anyway: false },
    Attempt { name: "connect by TCP", act: connect_tcp, is_unlisted: true, fails_anyway: true },
    Attempt { name: "connect to an abstract socket", act: connect_abstract, is_unlisted: true, fails_anyway: true },
    Attempt { name: "trace a process", act: trace, is_unlisted: true, fails_anyway: true },
    Attempt { name: "signal a process", act: signal, is_unlisted: true, fails_anyway: true },
    Attempt { name: "mount", act: mount, is_unlisted: true, fails_anyway: true },
    Attempt { name: "change the root", act: change_root, is_unlisted: true, fails_anyway: true },
    Attempt { name: "make a user namespace", act: make_namespace, is_unlisted: true, fails_anyway: false },
    Attempt { name: "type on a terminal", act: type_on_terminal, is_unlisted: true, fails_anyway: true },
    Attempt { name: "open a path by a ring", act: open_by_ring, is_unlisted: false, fails_anyway: true },
    Attempt { name: "make a socket by a ring", act: make_socket_by_ring, is_unlisted: false, fails_anyway: true },
    Attempt { name: "set up io_uring", act: set_up_io_uring, is_unlisted: true, fails_anyway: false },
];

/// What a system call came to.
fn outcome(result: libc::c_long) -> Result<String, i32> {
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(format!("got {result}")) }
}

fn open_at(dir: i32, path: &str) -> Result<String, i32> {
    let name = CString::new(path).unwrap();
    // SAFETY: a C string and integers.
    outcome(unsafe { libc::syscall(libc::SYS_openat, dir, name.as_ptr(), libc::O_RDONLY | libc::O_NOFOLLOW) })
        .map(|_| format!("opened {path}"))
}

/// The first of `paths` that opens, or why the last does not.
fn any_opens(paths: &[&str]) -> Result<String, i32> {
    let mut last = Err(0);
    for path in paths {
        last = open_at(libc::AT_FDCWD, path);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn open_path(_: &Outside) -> Result<String, i32> {
    any_opens(&["/etc/passwd", "../../../../../../etc/passwd", "/proc/1/environ", "/dev/null"])
}

fn climb(outside: &Outside) -> Result<String, i32> {
    // As a serving thread does.
    outside.descriptor_dir.enter().expect("a serving thread may");
    any_opens(&["../../../../../../etc/passwd", "../../1/environ", "../mem", "../../../etc/passwd"])
}

fn open_handle(outside: &Outside) -> Result<String, i32> {
    let opened = file_handle::open(outside.share.as_fd(), &outside.handle, libc::O_RDONLY);
    opened.map(|_| "opened a file beside the share".to_owned()).map_err(|e| e.raw())
}

fn run_program(outside: &Outside) -> Result<String, i32> {
    let (empty, argument) = (c"", c"--list");
    let argv = [argument.as_ptr(), argument.as_ptr(), std::ptr::null()];
    // SAFETY: the program was opened, the vector ends with NULL.
    let run = unsafe {
        libc::syscall(libc::SYS_execveat, outside.program, empty.as_ptr(), argv.as_ptr(), argv[2..].as_ptr(), libc::AT_EMPTY_PATH)
    };
    outcome(run)
}

fn start_process(_: &Outside) -> Result<String, i32> {
    // By its number: fork(3) of glibc 2.41 blocks all signals around it, so that SIGSYS could not be caught.
    // SAFETY: a copy of this process with its own stack, as fork(2) makes it; there is one thread.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        // SAFETY: ends the new process.
        0 => unsafe { libc::_exit(0) },
        pid => outcome(pid),
    }
}

fn map_code(_: &Outside) -> Result<String, i32> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory, wherever the kernel has room.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED { outcome(-1) } else { Ok("mapped".to_owned()) }
}

/// Connects a socket of family `domain` to `address`. The descriptor is left open: where the call was trapped,
/// there is none.
fn connect(domain: i32, address: &[u8]) -> Result<String, i32> {
    // SAFETY: integers only.
    let socket = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    outcome(socket.into())?;
    // SAFETY: the kernel reads as many bytes as there are.
    outcome(unsafe { libc::connect(socket, address.as_ptr().cast(), address.len() as u32) }.into())
}

fn connect_tcp(outside: &Outside) -> Result<String, i32> {
    // struct sockaddr_in: family, port, address, padding.
    let family = (libc::AF_INET as u16).to_ne_bytes();
    connect(libc::AF_INET, &[&family[..], &outside.port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat())
}

fn connect_abstract(outside: &Outside) -> Result<String, i32> {
    let family = (libc::AF_UNIX as u16).to_ne_bytes();
    connect(libc::AF_UNIX, &[&family[..], b"\0", outside.abstract_name.as_bytes()].concat())
}

fn trace(outside: &Outside) -> Result<String, i32> {
    // SAFETY: integers only.
    outcome(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, outside.pid, 0, 0) })
}

fn signal(outside: &Outside) -> Result<String, i32> {
    // SAFETY: signal 0 is none.
    outcome(unsafe { libc::kill(outside.pid, 0) }.into())
}

fn mount(_: &Outside) -> Result<String, i32> {
    // SAFETY: C strings.
    outcome(unsafe { libc::mount(c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) }.into())
}

fn change_root(_: &Outside) -> Result<String, i32> {
    // SAFETY: a C string.
    outcome(unsafe { libc::chroot(c"/".as_ptr()) }.into())
}

fn make_namespace(_: &Outside) -> Result<String, i32> {
    // SAFETY: there is one thread.
    outcome(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
}

fn type_on_terminal(_: &Outside) -> Result<String, i32> {
    // SAFETY: the request reads one byte.
    outcome(unsafe { libc::ioctl(2, libc::TIOCSTI, c"x".as_ptr()) }.into())
}

/// The offsets that `struct io_uring_params` gives, for a ring of the daemon's size.
#[derive(Clone, Copy)]
struct RingParts {
    sq_tail: usize,
    sq_array: usize,
    cq_tail: usize,
    cqes: usize,
}

/// Of `struct io_uring_params`, in words of 32 bits: flags, sq_off from 10 on, cq_off from 20 on.
const PARAMS_WORDS: usize = 30;
const ENTRIES: usize = 128;
const IORING_OFF_SQES: i64 = 0x1000_0000;

/// Asks the kernel where the parts of a ring are.
fn ring_parts() -> Option<RingParts> {
    let mut params = [0u32; PARAMS_WORDS];
    // SAFETY: `struct io_uring_params` has 120 bytes.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the call above made the descriptor.
    unsafe { libc::close(fd as i32) };
    let at = |word: usize| params[word] as usize;
    Some(RingParts { sq_tail: at(11), sq_array: at(16), cq_tail: at(21), cqes: at(25) })
}

/// Places an operation of `opcode` in the daemon's ring, as whoever has taken it over can, and enters the ring.
fn by_ring(outside: &Outside, opcode: u8, fd: i32, address: u64, words: [u32; 2]) -> Result<String, i32> {
    let Some((ring, parts)) = outside.ring else { return Err(libc::ENOSYS) };
    let map = |len: usize, offset: i64| {
        // SAFETY: the kernel chooses the place.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, ring, offset) };
        assert_ne!(at, libc::MAP_FAILED, "the ring is mapped");
        at.cast::<u8>()
    };
    let len = (parts.sq_array + ENTRIES * 4).max(parts.cqes + 2 * ENTRIES * 16);
    let (rings, sqes) = (map(len, 0), map(ENTRIES * 64, IORING_OFF_SQES));
    let mut entry = [0u8; 64];
    entry[0] = opcode;
    entry[4..8].copy_from_slice(&fd.to_ne_bytes());
    entry[16..24].copy_from_slice(&address.to_ne_bytes());
    entry[24..28].copy_from_slice(&words[0].to_ne_bytes());
    entry[28..32].copy_from_slice(&words[1].to_ne_bytes());
    // SAFETY: the first entry, which is the next one of a new ring.
    unsafe { std::ptr::copy_nonoverlapping(entry.as_ptr(), sqes, entry.len()) };
    // SAFETY: the submission queue's tail.
    unsafe { rings.wrapping_add(parts.sq_tail).cast::<u32>().write_volatile(1) };
    // SAFETY: integers.
    outcome(unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, 1, 1, 1, 0, 0) })?;
    // SAFETY: the completion queue's tail.
    assert_eq!(unsafe { rings.wrapping_add(parts.cq_tail).cast::<u32>().read_volatile() }, 1, "one completion");
    // SAFETY: the result of the first completion.
    let result = unsafe { rings.wrapping_add(parts.cqes + 8).cast::<i32>().read_volatile() };
    if result < 0 { Err(-result) } else { Ok(format!("got {result}")) }
}

fn open_by_ring(outside: &Outside) -> Result<String, i32> {
    const IORING_OP_OPENAT: u8 = 18;
    by_ring(outside, IORING_OP_OPENAT, libc::AT_FDCWD, c"/".as_ptr().addr() as u64, [0, libc::O_DIRECTORY as u32])
}

fn make_socket_by_ring(outside: &Outside) -> Result<String, i32> {
    const IORING_OP_SOCKET: u8 = 45;
    by_ring(outside, IORING_OP_SOCKET, libc::AF_UNIX, 0, [0, 0])
}

fn set_up_io_uring(_: &Outside) -> Result<String, i32> {
    let mut parameters = [0u64; 15];
    // SAFETY: `struct io_uring_params` has 120 bytes.
    outcome(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
}

/// A confinement that is tried.
#[derive(Clone, Copy, Debug)]
struct Case {
    sandbox: &'static str,
    seccomp: &'static str,
    user: u32,
}

const SECCOMP: [(&str, Seccomp); 4] = [("kill", Seccomp::Kill), ("trap", Seccomp::Trap), ("log", Seccomp::Log), ("none", Seccomp::None)];
const SANDBOXES: [(&str, Mode); 3] = [("namespace", Mode::Namespace), ("chroot", Mode::Chroot), ("none", Mode::None)];

fn named<T: Copy>(list: &[(&str, T)], name: &str) -> T {
    list.iter().find(|(n, _)| *n == name).expect("a known name").1
}

/// The confined process: `--inside SANDBOX SECCOMP ATTEMPT SHARE PID PORT ABSTRACT`.
fn inside(words: &[String]) -> ExitCode {
    let [sandbox, action, attempt, share, pid, port, abstract_name] = words else { panic!("{words:?}") };
    let seccomp = named(&SECCOMP, action);
    gatherfs::trace::start("error", gatherfs::trace::Destination::StandardError).expect("a log");
    // With --sandbox none, only a share without file handles keeps root from other paths.
    let by_handle = rustix::process::geteuid().is_root() && sandbox != "none";
    let options = Options {
        mode: named(&SANDBOXES, sandbox),
        id_maps: IdMaps::default(),
        capabilities: Capabilities::new(by_handle, None).unwrap(),
        seccomp,
        has_outer: false,
    };
    // SAFETY: opened for good; not closed by an exec.
    let program = unsafe { libc::open(c"/proc/self/exe".as_ptr(), libc::O_RDONLY) };
    let handler = || _ = std::io::stdout().write_all(TRAPPED.as_bytes());
    // SAFETY: the handler writes to a stream that nobody holds in a process with one thread.
    unsafe { signal_hook::low_level::register(libc::SIGSYS, handler) }.unwrap();
    let beside = CString::new(format!("{share}/../beside")).unwrap();
    let (handle, _) = file_handle::of(rustix::fs::CWD, &beside).unwrap().expect("a file system with handles");
    let (outer, _channel, _) = Outer::prepare(outer::Options {
        has_keeper: false,
        is_confined: true,
        in_user_namespace: false,
        tag: String::new(),
        control: None,
        notify: None,
        kept: 0,
    })
    .unwrap();
    let jail = match sandbox::enter(&options, Path::new(share)).unwrap() {
        Entered::Inside(jail) => jail,
        Entered::Outside(inside) => {
            return ExitCode::from(u8::try_from(outer.wait_for(inside.process, inside.oom_score).unwrap()).unwrap());
        }
    };
    let rings = ring_parts().map(|parts| (Rings::new(1, false).expect("rings, where there is io_uring"), parts));
    let calls = OptionalCalls { rings: rings.as_ref().map_or_else(Vec::new, |(rings, _)| rings.descriptors()), ..OptionalCalls::default() };
    sandbox::restrict_files(&Reach { share: jail.share.as_fd(), by_handle, removable: None }).unwrap();
    sandbox::seal(seccomp, sandbox::RootDirectory::Host, &calls).unwrap();
    let outside = Outside {
        pid: pid.parse().unwrap(),
        program,
        abstract_name: abstract_name.clone(),
        port: port.parse().unwrap(),
        descriptor_dir: jail.descriptor_dir,
        handle,
        share: jail.share,
        ring: rings.as_ref().map(|(rings, parts)| (rings.descriptors()[0], *parts)),
    };
    let Some(attempt) = ATTEMPTS.iter().find(|a| a.name == attempt) else { fall_over(attempt) };
    let said = match (attempt.act)(&outside) {
        Ok(got) => format!("reached: {got}"),
        Err(errno) => format!("refused: {}", std::io::Error::from_raw_os_error(errno)),
    };
    std::io::stdout().write_all(said.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
    ExitCode::SUCCESS
}

/// A panic in a thread of its own, with the daemon's hook.
fn fall_over(attempt: &str) -> ! {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    let attempt = attempt.to_owned();
    let thread = std::thread::spawn(move || panic!("no attempt is called {attempt}"));
    panic!("the other thread ended: {:?}", thread.join());
}

/// What lies outside and may be reached by a process that is not confined.
struct Surroundings {
    scratch: Scratch,
    /// This program, where every user can run it.
    program: PathBuf,
    tcp: TcpListener,
    abstract_name: String,
    _abstract: UnixListener,
    sleepers: Vec<(u32, Child)>,
}

impl Surroundings {
    fn new(users: &[u32]) -> Surroundings {
        let scratch = Scratch::with_file_handles();
        fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o777)).unwrap();
        fs::create_dir(scratch.join("share")).unwrap();
        fs::write(scratch.join("beside"), "not shared").unwrap();
        let abstract_name = format!("gatherfs-escape-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let sleeper = |user: &u32| (*user, as_user(Command::new("sleep").arg("600"), *user).spawn().expect("sleep is there"));
        Surroundings {
            scratch,
            program: places::for_every_user(&std::env::current_exe().unwrap()),
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            abstract_name,
            sleepers: users.iter().map(sleeper).collect(),
        }
    }

    /// Starts this program once more, confined, for one attempt.
    fn attempt(&self, case: Case, attempt: &Attempt) -> (u32, Output) {
        self.run(case, attempt.name)
    }

    fn run(&self, case: Case, attempt: &str) -> (u32, Output) {
        let pid = self.sleepers.iter().find(|(user, _)| *user == case.user).unwrap().1.id();
        let mut command = Command::new(&self.program);
        command.args([INSIDE, case.sandbox, case.seccomp, attempt]).arg(self.scratch.join("share"));
        command.args([pid.to_string(), self.tcp.local_addr().unwrap().port().to_string(), self.abstract_name.clone()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("RUST_BACKTRACE", "1");
        let child = as_user(&mut command, case.user).spawn().unwrap();
        (child.id(), child.wait_with_output().unwrap())
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        for (_, sleeper) in &mut self.sleepers {
            let _ = sleeper.kill();
            let _ = sleeper.wait();
        }
    }
}

fn as_user(command: &mut Command, user: u32) -> &mut Command {
    if user == rustix::process::geteuid().as_raw() { command } else { command.uid(user).gid(user) }
}

/// The kernel's Landlock: sockets and signals are restricted from 6 on.
fn landlock_abi() -> i64 {
    let (nothing, version) = (std::ptr::null::<u8>(), 1);
    // SAFETY: asks for the version only.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, version) }
}

/// Whether the attempt came out as it must, and what came of it.
fn judge(case: Case, attempt: &Attempt, output: &Output, has_landlock: bool) -> (bool, String) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let killed = output.status.signal() == Some(libc::SIGSYS) || output.status.code() == Some(128 + libc::SIGSYS);
    if attempt.is_unlisted && case.seccomp == "kill" {
        // The process outside tells why the other one has ended.
        let told = case.sandbox == "none" || String::from_utf8_lossy(&output.stderr).contains("--seccomp log");
        return (killed && told && said.is_empty(), if killed { "killed by SIGSYS".to_owned() } else { said });
    }
    if attempt.is_unlisted && case.seccomp == "trap" {
        let trapped = said.starts_with(TRAPPED) && output.status.success();
        return (trapped, if trapped { "SIGSYS, the call was not made".to_owned() } else { said });
    }
    if attempt.name == OPEN_A_HANDLE {
        // Root keeps the capability for it where inodes are file handles.
        let keeps = case.user == 0 && case.sandbox != "none";
        return (keeps || said.starts_with("refused: "), said);
    }
    let must_fail = attempt.fails_anyway && (has_landlock || case.sandbox == "namespace");
    let fine = said.starts_with("refused: ") || !must_fail && output.status.success();
    (fine, said)
}

/// The kernel's log from now on: what it told of before may be of an older process with the number of a new one.
/// `None` where it cannot be read.
fn kernel_log() -> Option<fs::File> {
    let mut log = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    log.seek(SeekFrom::End(0)).ok().map(|_| log)
}

/// Whether `log` tells of a system call of process `pid`.
fn is_logged(log: &mut fs::File, pid: u32) -> bool {
    let mut record = [0; 8192];
    // One record a read; EPIPE for one that was overwritten meanwhile.
    loop {
        match log.read(&mut record) {
            Ok(n) => {
                let line = String::from_utf8_lossy(&record[..n]);
                if line.contains("type=1326") && line.contains(&format!(" pid={pid} ")) {
                    return true;
                }
            }
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return false,
        }
    }
}

/// Whether `--seccomp log` writes to the kernel's log. Not judged where `kill`, which the kernel logs by itself,
/// does not show there either: the log may be another program's.
fn log_mode_is_logged(surroundings: &Surroundings) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let attempt = ATTEMPTS.iter().find(|a| a.name == "signal a process").unwrap();
    let (mut kill, mut log) = (false, false);
    // The kernel writes ten such lines in five seconds.
    for _ in 0..20 {
        for (seccomp, seen) in [("log", &mut log), ("kill", &mut kill)] {
            let kernel_log = kernel_log();
            let (pid, _) = surroundings.attempt(Case { sandbox: "none", seccomp, user }, attempt);
            *seen |= kernel_log.is_some_and(|mut since| is_logged(&mut since, pid));
        }
        if log {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    match (log, kill) {
        (true, _) => println!("--seccomp log: the call is in the kernel's log"),
        (false, true) => println!("WRONG: --seccomp log wrote nothing to the kernel's log"),
        (false, false) => println!("note: the kernel's log is not to be read here; --seccomp log is not judged"),
    }
    log || !kill
}

/// Whether a panic in a confined process is told and ends it as it would without a filter. Its backtrace has no
/// names: the program's own file is out of reach.
fn a_panic_is_told_and_aborts(surroundings: &Surroundings) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let (_, output) = surroundings.run(Case { sandbox: "none", seccomp: "kill", user }, "panic");
    let said = String::from_utf8_lossy(&output.stderr);
    let fine =
        output.status.signal() == Some(libc::SIGABRT) && said.contains("no attempt is called panic") && said.contains("stack backtrace");
    println!("a panic: {:?}, {}", output.status, if fine { "told" } else { "WRONG" });
    if !fine {
        println!("{said}");
    }
    fine
}

/// Every attempt in every case. Prints what came of each, and tells how many came out wrong.
fn nobody_leaves_in_any_mode() -> usize {
    let own = rustix::process::geteuid().as_raw();
    let (users, sandboxes): (&[u32], _) = if own == 0 { (&[0, NOBODY], &SANDBOXES[..]) } else { (&[own], &SANDBOXES[..]) };
    let has_landlock = landlock_abi() >= 6;
    if !has_landlock {
        println!("note: this kernel's Landlock restricts no sockets and signals; what depends on it is not judged");
    }
    let surroundings = Surroundings::new(users);
    let mut wrong = usize::from(!log_mode_is_logged(&surroundings)) + usize::from(!a_panic_is_told_and_aborts(&surroundings));
    for &user in users {
        // chroot(2) is root's.
        for (sandbox, _) in sandboxes.iter().filter(|(name, _)| user == 0 || *name != "chroot") {
            for (seccomp, _) in SECCOMP {
                let case = Case { sandbox, seccomp, user };
                for attempt in ATTEMPTS {
                    let (_, output) = surroundings.attempt(case, attempt);
                    let (fine, came_of_it) = judge(case, attempt, &output, has_landlock);
                    println!("user {user:<5} --sandbox {sandbox:<9} --seccomp {seccomp:<4}  {:<30} {came_of_it}", attempt.name);
                    if !fine {
                        wrong += 1;
                        println!("WRONG: {:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
                    }
                }
            }
        }
    }
    wrong
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|w| w == INSIDE) {
        return inside(&words[1..]);
    }
    if words.iter().any(|w| w == "--list") {
        println!("nobody_leaves_in_any_mode: test");
        return ExitCode::SUCCESS;
    }
    let wrong = nobody_leaves_in_any_mode();
    println!("test nobody_leaves_in_any_mode ... {}", if wrong == 0 { "ok" } else { "FAILED" });
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
