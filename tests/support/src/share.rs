//! A running gatherfsd that shares a fresh directory, with a guest that has mounted it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::{built_program, program};
use crate::guest::client::{CallError, Client};
use crate::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use crate::guest::fuse::{CreateOut, ROOT, SetattrIn, init};
use crate::{places, removal};

/// How long the daemon may take to answer a signal or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How the line with the counters begins.
const METRICS: &str = "{\"share\":";

/// A directory with a name of its own, removed on Drop.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// In memory: /dev/shm is a tmpfs.
    pub fn in_memory() -> Directory {
        Directory::below(Path::new("/dev/shm"))
    }

    /// On disk, below the build's own directory.
    pub fn on_disk() -> Directory {
        let program = built_program();
        let build = program.parent().and_then(Path::parent).expect("target/debug/gatherfsd");
        Directory::below(&build.join("tmp"))
    }

    /// On disk where that `offers` what the test needs, or in memory. `None`, with `need` printed, where neither does.
    pub fn with(need: &str, offers: fn(&Path) -> bool) -> Option<Directory> {
        let found = [Directory::on_disk, Directory::in_memory].iter().map(|make| make()).find(|d| offers(d.path()));
        if found.is_none() {
            eprintln!("skipped: no {need} in the build's directory or in /dev/shm");
        }
        found
    }

    fn below(parent: &Path) -> Directory {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("gatherfs-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Directory(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        removal::remove(&self.0);
    }
}

/// What a daemon printed so far.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Log {
    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first line from number `from` on that `wanted` accepts.
    fn wait_for(&self, from: usize, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines();
        loop {
            if let Some(line) = lines[from..].iter().find(|l| wanted(l)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the daemon did not print what was waited for; it printed {lines:#?}");
            lines = self.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The daemon's counters at one moment, as it printed them.
#[derive(Clone, Debug)]
pub struct Counters(String);

impl Counters {
    /// The counter called `name`, an opcode's name or another; 0 where it was not printed.
    pub fn get(&self, name: &str) -> u64 {
        let Some((_, rest)) = self.0.split_once(&format!("\"{name}\":")) else { return 0 };
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().expect("a counter is a number")
    }
}

/// How to start a share.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Where the shared directory lies.
    pub directory: Directory,
    /// Options beside --shared-dir, --socket-path, --sandbox and --log-level.
    pub options: &'a [&'a str],
    /// The guest.
    pub guest: GuestOptions,
    /// A command that starts the daemon, given before its name: a tracer and its options.
    pub before: Vec<String>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup { directory: Directory::in_memory(), options: &[], guest: GuestOptions::default(), before: Vec::new() }
    }
}

/// A daemon, its shared directory, a guest and a client that has sent INIT. Drop ends the daemon and
/// fails the test where it did not end well.
#[derive(Debug)]
pub struct Share {
    client: Option<Client>,
    daemon: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    // Removed last.
    shared: Directory,
    run: Directory,
}

impl Share {
    /// A share in memory with default options.
    pub fn new() -> Share {
        Share::with(&[])
    }

    /// A share in memory.
    pub fn with(options: &[&str]) -> Share {
        Share::start(Setup { options, ..Setup::default() })
    }

    /// A share in memory whose guest does not export it, so that a node is gone with its last lookup.
    pub fn forgetting() -> Share {
        let mut share = Share::start_unmounted(Setup::default());
        share.client().init_with(init::LINUX & !init::EXPORT_SUPPORT).expect("INIT succeeds");
        share
    }

    /// A share on disk.
    pub fn on_disk(options: &[&str]) -> Share {
        Share::start(Setup { options, directory: Directory::on_disk(), ..Setup::default() })
    }

    /// A share in memory and one on disk; the latter is left out, with the reason printed, where files have no handles.
    pub fn with_file_handles() -> Vec<Share> {
        let mut shares = vec![Share::new(), Share::on_disk(&[])];
        shares.retain(|share| {
            let has = share.is_served_by_handles();
            if !has {
                eprintln!("skipped: no file handles in {}", share.root().display());
            }
            has
        });
        assert!(!shares.is_empty(), "a tmpfs has file handles");
        shares
    }

    /// Starts the daemon, connects the guest and sends INIT.
    pub fn start(setup: Setup<'_>) -> Share {
        let mut share = Share::start_unmounted(setup);
        share.client().init().expect("INIT succeeds");
        share
    }

    /// Starts the daemon and connects the guest.
    pub fn start_unmounted(setup: Setup<'_>) -> Share {
        let Setup { directory: shared, options, guest, before } = setup;
        let everyone = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(shared.path(), everyone).expect("the shared directory's mode");
        let run = Directory::in_memory();
        // A daemon that runs as another user makes its socket here.
        std::fs::set_permissions(run.path(), std::fs::Permissions::from_mode(0o777)).expect("the socket's directory");
        let socket = run.path().join("socket");
        let program = program().to_str().expect("text").to_owned();
        let words: Vec<String> = before.into_iter().chain([program]).collect();
        let mut daemon = Command::new(&words[0])
            .args(&words[1..])
            .arg("--shared-dir")
            .arg(shared.path())
            .arg("--socket-path")
            .arg(&socket)
            .args(["--sandbox", "none", "--log-level", "warn"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("gatherfsd starts");
        let stderr = daemon.stderr.take().expect("stderr is piped");
        let log = Arc::new(Log::default());
        let reader = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    log.lines().push(line);
                    log.more.notify_all();
                }
            })
        };
        let mut share = Share { client: None, daemon, log, reader: Some(reader), shared, run };
        let guest = Guest::connect(&socket, &guest);
        let guest = guest.unwrap_or_else(|e| panic!("the guest cannot start: {e}; the daemon printed {:#?}", share.log.lines()));
        let mut client = Client::new(&guest, FIRST_REQUEST);
        // A daemon that is not root can act for nobody else.
        client.caller.uid = rustix::process::geteuid().as_raw();
        client.caller.gid = rustix::process::getegid().as_raw();
        share.client = Some(client);
        share
    }

    /// The mounted client.
    pub fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("there is a client until Drop")
    }

    /// The shared directory on the host.
    pub fn root(&self) -> &Path {
        self.shared.path()
    }

    /// Whether the daemon finds files by handles, and keeps no descriptor for each node.
    pub fn is_served_by_handles(&self) -> bool {
        places::is_served_by_handles(self.root())
    }

    /// The inode number that the guest is to be told for a file of the host's: that file's own, and with an index in the
    /// upper 16 bits where it is on another device than the share. Most files of an overlay are, all on one.
    pub fn number(&self, device: u64, ino: u64) -> u64 {
        let root = std::fs::metadata(self.root()).expect("the shared directory");
        if device == root.dev() { ino } else { 1 << 48 | ino }
    }

    /// A name in the shared directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A name outside the shared directory.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    /// Writes a file on the host.
    pub fn put(&self, name: &str, contents: &[u8]) {
        std::fs::write(self.path(name), contents).expect("the host writes a file");
    }

    /// Reads a file on the host.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("the host reads a file")
    }

    /// Makes a file in the root and opens it for reading and writing.
    pub fn make(&mut self, name: &str) -> File {
        self.client().create(ROOT, name, 0o644, libc::O_RDWR | libc::O_EXCL).expect("CREATE succeeds").into()
    }

    /// Looks a name in the root up and opens it.
    pub fn open(&mut self, name: &str, flags: i32) -> File {
        let entry = self.client().lookup(ROOT, name).expect("LOOKUP succeeds");
        let open = self.client().open(entry.nodeid, flags).expect("OPEN succeeds");
        File { node: entry.nodeid, fh: open.fh }
    }

    /// The flags with which the daemon has the file `name` open now, O_PATH descriptors left out.
    pub fn host_flags(&mut self, name: &str) -> Vec<i32> {
        let pid = self.client().guest().peer_pid().expect("the daemon's process is known");
        let path = self.path(name);
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon runs");
        let of_file = descriptors.flatten().filter(|d| std::fs::read_link(d.path()).is_ok_and(|to| to == path));
        let flags = of_file.filter_map(|d| {
            let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", d.file_name().to_str()?)).ok()?;
            let octal = info.lines().find_map(|l| l.strip_prefix("flags:"))?;
            i32::from_str_radix(octal.trim(), 8).ok()
        });
        flags.filter(|f| f & libc::O_PATH == 0).collect()
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// What the daemon printed so far, without its counters.
    pub fn printed(&mut self) -> Vec<String> {
        // What it prints now comes after all that it printed before.
        self.counters();
        self.log.lines().iter().filter(|l| !l.starts_with(METRICS)).cloned().collect()
    }

    /// The daemon's counters now.
    pub fn counters(&mut self) -> Counters {
        let seen = self.log.lines().len();
        let pid = self.client().guest().peer_pid().expect("the daemon's process is known");
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id is not 0");
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).expect("the daemon runs");
        Counters(self.log.wait_for(seen, |l| l.starts_with(METRICS)))
    }

    /// Ends the guest's connection and waits until the daemon has ended.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        let connected = self.client.take().is_some();
        let deadline = Instant::now() + PATIENCE;
        let mut status = None;
        while connected && status.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
            status = self.daemon.try_wait().expect("the daemon is our child");
        }
        if status.is_none() {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        status
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let status = self.end();
        let lines = self.log.lines();
        if std::thread::panicking() {
            eprintln!("the daemon ended with {status:?} and printed {lines:#?}");
            return;
        }
        assert!(status.is_some_and(|s| s.success()), "the daemon ended with {status:?} and printed {lines:#?}");
        assert!(!lines.iter().any(|l| l.contains("panicked at")), "the daemon panicked: {lines:#?}");
    }
}

/// An open file of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Its node.
    pub node: u64,
    /// Its handle.
    pub fh: u64,
}

impl From<CreateOut> for File {
    fn from(out: CreateOut) -> File {
        File { node: out.entry.nodeid, fh: out.open.fh }
    }
}

/// The errno that a call failed with.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: Result<T, CallError>) -> i32 {
    match result {
        Err(CallError::Errno(errno)) => errno,
        other => panic!("an errno was expected, not {other:?}"),
    }
}

/// A SETATTR of what `valid` names, to be filled in.
pub fn change(valid: u32) -> SetattrIn {
    SetattrIn { valid, ..SetattrIn::default() }
}

/// Whether the test runs as root; tells why a test is skipped where not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root may act for other users");
    }
    root
}

/// `len` bytes that look random and are the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
