//! A running gatherfsd that shares a fresh directory, with a guest that has mounted it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::daemon::{self, Metrics, Process, gatherfsd_by};
use crate::guest::client::{CallError, Client};
use crate::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use crate::guest::fuse::{CreateOut, ROOT, SetattrIn, init};
use crate::places;

pub use crate::scratch::Scratch;

/// How to start a share.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Where the shared directory lies.
    pub directory: Scratch,
    /// Options beside --shared-dir, --socket-path, --sandbox and --log-level.
    pub options: &'a [&'a str],
    /// The guest.
    pub guest: GuestOptions,
    /// A command that starts the daemon, given before its name: a tracer and its options.
    pub before: Vec<String>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup { directory: Scratch::on_tmpfs(), options: &[], guest: GuestOptions::default(), before: Vec::new() }
    }
}

/// A daemon, its shared directory, a guest and a client that has sent INIT. Drop ends the daemon and
/// fails the test where it did not end well.
#[derive(Debug)]
pub struct Share {
    client: Option<Client>,
    daemon: Process,
    // Removed last.
    shared: Scratch,
    run: Scratch,
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
        Share::start(Setup { options, directory: Scratch::on_disk(), ..Setup::default() })
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
        let run = Scratch::on_tmpfs();
        // A daemon that runs as another user makes its socket here.
        std::fs::set_permissions(run.path(), std::fs::Permissions::from_mode(0o777)).expect("the socket's directory");
        let socket = run.path().join("socket");
        let mut command = gatherfsd_by(&before);
        command.arg("--shared-dir").arg(shared.path()).arg("--socket-path").arg(&socket);
        // STATX is an option, and many tests hold it to the other ways of asking for attributes.
        command.args(["--sandbox", "none", "--log-level", "warn", "--birth-times"]).args(options).stdout(Stdio::null());
        let daemon = Process::spawn(&mut command);
        let guest = Guest::connect(&socket, &guest).unwrap_or_else(|e| panic!("the guest cannot start: {e}"));
        let mut client = Client::new(&guest, FIRST_REQUEST);
        // A daemon that is not root can act for nobody else.
        client.caller.uid = rustix::process::geteuid().as_raw();
        client.caller.gid = rustix::process::getegid().as_raw();
        Share { client: Some(client), daemon, shared, run }
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
        let pid = self.keeper();
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

    /// The process that owns the connection.
    pub fn keeper(&self) -> u32 {
        self.daemon.keeper()
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        self.daemon.serving()
    }

    /// What the daemon printed so far, without its counters.
    pub fn printed(&mut self) -> Vec<String> {
        // What it prints now comes after all that it printed before.
        self.metrics();
        self.daemon.log().lines().filter(|line| !Metrics::is(line)).map(str::to_owned).collect()
    }

    /// The daemon's counters now.
    pub fn metrics(&mut self) -> Metrics {
        let pid = self.keeper();
        self.daemon.metrics_of(pid)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // The daemon ends with its guest's connection.
        let connected = self.client.take().is_some();
        let status = if connected { self.daemon.end() } else { None };
        if std::thread::panicking() {
            return eprintln!("the daemon ended with {status:?}");
        }
        let log = self.daemon.log();
        assert!(status.is_some_and(|s| s.success()), "the daemon ended with {status:?}\n{log}");
        assert!(!log.contains("panicked at"), "the daemon panicked\n{log}");
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

/// Whether the test runs as root; says that it is skipped where not.
pub fn is_root() -> bool {
    daemon::is_root("acting for other users")
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
