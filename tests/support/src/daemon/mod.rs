//! The real gatherfsd for a test: started on a fresh share, ended and cleaned up when dropped.
//!
//! It knows nothing of guests: give [`Daemon::socket`] to one. Every wait has a bound and ends in a panic that shows the
//! daemon's log.

mod killer;
mod process;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::places;

pub use crate::scratch::Scratch;
pub use killer::Killer;
pub use process::{Metrics, Process, children_of, is_there, only_child, status_field};

/// How long anything the daemon does may take in a test. Far beyond what a busy host needs.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The line that says that the daemon listens and its signals are watched.
const START_LINE: &str = "sharing ";

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

/// A command for the daemon under test, without any option but those of GATHERFS_OPTIONS, with which the tests of a whole file
/// can be run another way: `GATHERFS_OPTIONS="--io-engine uring" cargo test --test ops_data`. It ignores no signal, although nohup(1) or a script in the
/// background may have started the tests.
pub fn gatherfsd() -> Command {
    gatherfsd_by(&[])
}

/// As `gatherfsd`, started by the command `before`: a tracer with its options.
pub(crate) fn gatherfsd_by(before: &[String]) -> Command {
    let mut command = match before {
        [] => Command::new(program()),
        [tracer, options @ ..] => {
            let mut command = Command::new(tracer);
            command.args(options).arg(program());
            command
        }
    };
    if let Ok(options) = std::env::var("GATHERFS_OPTIONS") {
        command.args(options.split_whitespace());
    }
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
        Self::start_with(scratch, options, &[])
    }

    /// As `start_in`, with variables of the environment.
    pub fn start_with(scratch: Scratch, options: &[&str], variables: &[(&str, &Path)]) -> Self {
        let (share, socket) = (scratch.join("share"), scratch.join("s"));
        fs::create_dir_all(&share).expect("the shared directory");
        let mut command = gatherfsd();
        command.arg("--shared-dir").arg(&share).arg("--socket-path").arg(&socket);
        if !options.contains(&"--sandbox") {
            command.args(["--sandbox", "none"]);
        }
        let process = Process::spawn(command.args(options).envs(variables.iter().copied()));
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
