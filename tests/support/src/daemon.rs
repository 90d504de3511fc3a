//! The real gatherfsd for a test: started on a fresh share, ended and cleaned up when dropped.
//!
//! It knows nothing of guests: give [`Daemon::socket`] to one. Every wait has a bound and ends in a panic that shows the
//! daemon's log.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{places, removal};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// How long anything the daemon does may take in a test. Far beyond what a busy host needs.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The line that says that the daemon listens and its signals are watched.
const START_LINE: &str = "sharing ";
/// How the line with the counters begins.
const METRICS: &str = "{\"share\":";

/// A directory of a test's own, removed with all that is in it when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory with a path short enough for sockets in it.
    pub fn new() -> Self {
        Self::under(&std::env::temp_dir())
    }

    /// As `new`, on tmpfs.
    pub fn on_tmpfs() -> Self {
        Self::under(Path::new("/dev/shm"))
    }

    /// As `new`, on tmpfs where there are no file handles.
    pub fn with_file_handles() -> Self {
        let scratch = Self::new();
        if places::has_file_handles(scratch.path()) { scratch } else { Self::on_tmpfs() }
    }

    fn under(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("gfs-{}-{count}", std::process::id()));
        // A process of that number may have left one behind.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a scratch directory");
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        removal::remove(&self.path);
    }
}

/// What a process has written to standard error.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    closed: bool,
}

impl Log {
    fn push(&self, line: Option<String>) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match line {
            Some(line) => lines.lines.push(line),
            None => lines.closed = true,
        }
        self.grown.notify_all();
    }

    fn len(&self) -> usize {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).lines.len()
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).lines.join("\n")
    }

    /// The first line from `from` on that contains `text`; `None` when the process ends or time runs out.
    fn wait_for(&self, from: usize, text: &str) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = lines.lines[from..].iter().find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.closed || left.is_zero() {
                return None;
            }
            lines = self.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A gatherfsd that was started, whatever came of it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its standard error collected. It dies with the thread that started it.
    pub fn spawn(command: &mut Command) -> Self {
        // SAFETY: prctl(2) is one system call and may be made between fork and exec.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("a pipe");
        let reader = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    log.push(Some(String::from_utf8_lossy(&line).into_owned()));
                }
                log.push(None);
            })
        };
        Self { child, log, reader: Some(reader), status: None }
    }

    /// The process that was started; with a sandbox the one that waits outside.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to it.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the process is there");
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the child can be waited for");
        }
        self.status.is_none()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = eventually(|| !self.is_running());
        assert!(ended, "the daemon did not end\n{}", self.log());
        // Whoever inherited the pipe has ended with it: the log is complete.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.status.expect("it ended")
    }

    /// All that it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for_line(&self, text: &str) -> String {
        let line = self.log.wait_for(0, text);
        line.unwrap_or_else(|| panic!("the daemon did not say \"{text}\"\n{}", self.log()))
    }

    /// User and system time that it and its threads took.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the process is there");
        let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 2..].split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// The processes that it started and that have not ended.
    pub fn children(&self) -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap_or_default();
        list.split_whitespace().map(|pid| pid.parse().expect("a process id")).collect()
    }

    /// The value of `field` in /proc/PID/status.
    pub fn status_field(&self, field: &str) -> String {
        status_field(self.pid(), field)
    }

    /// The counters, as the daemon prints them on SIGUSR1.
    pub fn metrics(&self) -> Metrics {
        let from = self.log.len();
        self.signal(Signal::USR1);
        let line = self.log.wait_for(from, METRICS);
        let line = line.unwrap_or_else(|| panic!("no metrics came\n{}", self.log()));
        assert!(line.starts_with(METRICS), "the line is JSON by itself: {line}");
        Metrics { json: line }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
    }
}

/// The value of `field` in /proc/PID/status.
pub fn status_field(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in\n{status}")).trim().to_owned()
}

/// Counters at one moment.
#[derive(Debug, Clone)]
pub struct Metrics {
    json: String,
}

impl Metrics {
    /// The whole line.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The counter `name`; panics where there is none.
    pub fn get(&self, name: &str) -> u64 {
        self.find(name).unwrap_or_else(|| panic!("no counter {name} in {}", self.json))
    }

    /// Requests of `opcode`, as `LOOKUP`; 0 where none came.
    pub fn requests(&self, opcode: &str) -> u64 {
        self.find(opcode).unwrap_or(0)
    }

    fn find(&self, name: &str) -> Option<u64> {
        let key = format!("\"{name}\":");
        let rest = &self.json[self.json.find(&key)? + key.len()..];
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    }
}

/// The gatherfsd of the build that the running test or example belongs to: cargo names it to a test; by itself a test or an
/// example lies in a directory beside it, target/debug/deps or target/debug/examples.
pub fn built_program() -> PathBuf {
    if let Some(program) = std::env::var_os("CARGO_BIN_EXE_gatherfsd") {
        return program.into();
    }
    let own = std::env::current_exe().expect("the path of this program");
    own.parent().and_then(Path::parent).expect("a directory in the build's").join("gatherfsd")
}

/// The daemon under test, at a place where every user can run it.
pub fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| places::for_every_user(&built_program()));
    &PROGRAM
}

/// A command for the daemon under test, without any option. It ignores no signal, although nohup(1) or a script in the
/// background may have started the tests.
pub fn gatherfsd() -> Command {
    let mut command = Command::new(program());
    let heed = || {
        for signal in [libc::SIGHUP, libc::SIGINT] {
            // SAFETY: SIG_DFL is no function of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: signal(2) is one system call and may be made between fork and exec.
    unsafe { command.pre_exec(heed) };
    command
}

/// A gatherfsd that listens. It serves `share`, a directory in a scratch of its own.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    socket: PathBuf,
    share: PathBuf,
    _scratch: Scratch,
}

impl std::ops::Deref for Daemon {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl std::ops::DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Daemon {
    /// Starts it without a sandbox, with `options` added, and waits until it listens.
    pub fn start(options: &[&str]) -> Self {
        Self::start_in(Scratch::new(), options)
    }

    /// As `start`, with the share on tmpfs.
    pub fn start_on_tmpfs(options: &[&str]) -> Self {
        Self::start_in(Scratch::on_tmpfs(), options)
    }

    /// As `start`, with share and socket in `scratch`, whose directory `share` may have been filled.
    pub fn start_in(scratch: Scratch, options: &[&str]) -> Self {
        let (share, socket) = (scratch.join("share"), scratch.join("s"));
        fs::create_dir_all(&share).expect("the shared directory");
        let mut command = gatherfsd();
        command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket);
        if !options.contains(&"--sandbox") {
            command.args(["--sandbox", "none"]);
        }
        let process = Process::spawn(command.args(options));
        process.wait_for_line(START_LINE);
        Self { process, socket, share, _scratch: scratch }
    }

    /// The socket to connect to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The shared directory on the host.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// Makes a file in the shared directory.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.share.join(name);
        fs::write(&path, content).expect("a file in the share");
        path
    }

    /// What a file in the shared directory holds.
    pub fn content(&self, name: &str) -> Vec<u8> {
        fs::read(self.share.join(name)).expect("a file in the share")
    }
}

/// Whether `condition` comes true within the bound of every wait.
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the test runs as root; says that it is skipped where not.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: {test} needs root");
    }
    root
}
