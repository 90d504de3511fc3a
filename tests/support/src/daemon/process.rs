//! A process under test: its log, its counters, its end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::{PATIENCE, eventually};

/// How the line with the counters begins.
const METRICS: &str = "{\"share\":";

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

    /// The process that was started; with a keeper or a sandbox the one that waits outside.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to it.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
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
        self.end().unwrap_or_else(|| panic!("the daemon did not end\n{}", self.log()))
    }

    /// Waits for its end: its status, or `None` where it does not end.
    pub(crate) fn end(&mut self) -> Option<ExitStatus> {
        if !eventually(|| !self.is_running()) {
            return None;
        }
        // Whoever inherited the pipe has ended with it: the log is complete.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.status
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

    /// The processes that it started and that have not ended.
    pub fn children(&self) -> Vec<u32> {
        children_of(self.pid())
    }

    /// The process that owns the connection, which shares its descriptors with the one that serves. With --no-keeper and without a
    /// sandbox it is the one that was started.
    pub fn keeper(&self) -> u32 {
        self.children().first().copied().unwrap_or(self.pid())
    }

    /// The process that serves: the last of those that start one another. With a keeper or a sandbox there is one outside, with a keeper
    /// one that owns the connection.
    pub fn serving(&self) -> u32 {
        worker_of(self.pid()).unwrap_or(self.pid())
    }

    /// The value of `field` in /proc/PID/status of the process that was started.
    pub fn status_field(&self, field: &str) -> String {
        status_field(self.pid(), field)
    }

    /// The counters, as the daemon prints them on SIGUSR1.
    pub fn metrics(&self) -> Metrics {
        self.metrics_of(self.pid())
    }

    /// As `metrics`, where the daemon is process `pid`, which the process that was started has started.
    pub(crate) fn metrics_of(&self, pid: u32) -> Metrics {
        let from = self.log.len();
        send(pid, Signal::USR1);
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

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

/// The processes that `pid` has started and that have not ended: one that has, and that `pid` has not waited for, is not among them.
pub fn children_of(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = list.split_whitespace().map(|pid| pid.parse().expect("a process id"));
    children.filter(|child| is_there(*child)).collect()
}

/// The one process that `pid` has started and that lives: of two, as where a worker that died has not quite ended, the end of one is waited
/// for, and of none the start of another one.
pub fn only_child(pid: u32) -> u32 {
    let mut children = Vec::new();
    let is_one = eventually(|| {
        children = children_of(pid);
        children.len() == 1
    });
    assert!(is_one, "process {pid} has the children {children:?}");
    children[0]
}

/// Whether process `pid` lives. Of one that nobody has waited for yet the state is Z (man proc_pid_stat(5)).
pub fn is_there(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|end| !stat[end..].starts_with(") Z"))
}

/// The last of the processes that start one another, of which `pid` is the first; `None` where it started none.
fn worker_of(pid: u32) -> Option<u32> {
    let mut last = None;
    loop {
        let mut children = Vec::new();
        // The process of an examination, or a worker that died, may not have ended quite.
        eventually(|| {
            children = children_of(last.unwrap_or(pid));
            children.len() < 2
        });
        match children[..] {
            [child] => last = Some(child),
            _ => return last,
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
    /// Whether `line` of a log is one of counters.
    pub(crate) fn is(line: &str) -> bool {
        line.starts_with(METRICS)
    }

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
