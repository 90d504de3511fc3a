//! What confines the serving process, before it sees the first byte of a guest: namespaces with the share
//! as root, or a chroot, and capabilities. Knows nothing of what is served.
#![forbid(unsafe_code)]

mod capabilities;
mod limits;
mod namespace;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use crate::sys::process::{self, Side};
use crate::sys::signal;
use crate::sys::working_dir::DescriptorDir;

pub use limits::{LimitError, raise_open_files};

/// How the serving process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Mount, pid and network namespaces; the share is the root directory.
    Namespace,
    /// The share is the root directory.
    Chroot,
    /// Not at all, but for capabilities.
    None,
}

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A step failed.
    #[error("cannot {step}: {source}{hint}", hint = hint(.source))]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The share is not there.
    #[error("cannot share {path}: {source}")]
    Share {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        "; run gatherfsd as root, or say --sandbox none and confine it otherwise"
    } else {
        ""
    }
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, JailError> {
        self.map_err(|e| JailError::Step { step, source: e.into() })
    }
}

/// The confined process: where it finds the share, and its descriptors' directory, opened before /proc went.
#[derive(Debug)]
pub struct Jail {
    /// The share's path for this process.
    pub root: PathBuf,
    /// /proc/self/fd.
    pub descriptor_dir: DescriptorDir,
}

/// Which process came back from `enter`.
#[derive(Debug)]
pub enum Entered {
    /// The one that serves.
    Inside(Jail),
    /// The one that waited outside; the other has ended with this status.
    Outside(i32),
}

/// Confines the process to `shared_dir`. Where that takes another process, both come back: the serving
/// one at once, the waiting one when the other has ended. Call it before any thread is started.
pub fn enter(mode: Mode, shared_dir: &Path) -> Result<Entered, JailError> {
    let share = |source: io::Error| JailError::Share { path: shared_dir.to_owned(), source };
    if !std::fs::metadata(shared_dir).map_err(share)?.is_dir() {
        return Err(share(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    // The guest has applied its own umask to every mode that it sends.
    rustix::process::umask(rustix::fs::Mode::empty());
    if mode == Mode::None {
        let descriptor_dir = DescriptorDir::open().step("open /proc/self/fd (is /proc mounted?)")?;
        capabilities::confine()?;
        return Ok(Entered::Inside(Jail { root: shared_dir.to_owned(), descriptor_dir }));
    }
    if mode == Mode::Namespace {
        namespace::leave_host()?;
    }
    // Its other end closes with the outer process, also one that ends before it can be signalled for.
    let (outer, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    match process::fork().step("start the serving process")? {
        Side::Parent(child) => {
            let waited = wait_outside(child);
            drop(alive);
            waited
        }
        Side::Child => {
            // The serving process does not outlive the one that its user knows.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("ask for a signal when the parent ends")?;
            drop(alive);
            if outer_has_ended(&outer) {
                return Err(JailError::Step { step: "go on without the outer process", source: io::Error::from_raw_os_error(libc::ESRCH) });
            }
            let descriptor_dir = DescriptorDir::open_alone().step("open /proc/self/fd (is /proc mounted?)")?;
            match mode {
                Mode::Namespace => namespace::enter_share(shared_dir)?,
                _ => namespace::change_root(shared_dir)?,
            }
            capabilities::confine()?;
            Ok(Entered::Inside(Jail { root: PathBuf::from("/"), descriptor_dir }))
        }
    }
}

/// Whether the process that holds the other end of `outer` has ended.
fn outer_has_ended(outer: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(outer, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Passes signals on to the serving process and waits for its end. Without a thread: a process whose
/// children live in another pid namespace may start none.
fn wait_outside(child: Pid) -> Result<Entered, JailError> {
    use signal_hook::consts::SIGCHLD;
    let mut signals = signal_hook::iterator::Signals::new(signal::WATCHED.into_iter().chain([SIGCHLD])).step("watch signals")?;
    signal::release().step("watch signals")?;
    loop {
        // First, for a child that ended before its signal was watched.
        if let Some(status) = process::ended(child).step("wait for the serving process")? {
            return Ok(Entered::Outside(status));
        }
        for signal in signals.wait() {
            if signal != SIGCHLD
                && let Some(signal) = Signal::from_named_raw(signal)
            {
                let _ = rustix::process::kill_process(child, signal);
            }
        }
    }
}
