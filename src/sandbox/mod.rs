//! What confines the serving process, before it sees the first byte of a guest: namespaces with the share
//! as root, or a chroot; capabilities; a list of system calls; Landlock. Knows nothing of what is served.
#![forbid(unsafe_code)]

mod capabilities;
mod id_map;
mod landlock;
mod limits;
mod namespace;
mod seccomp;
mod system_calls;
mod user_namespace;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::process::{Pid, Signal};

use crate::sys::process::{self, Side};
use crate::sys::signal;
use crate::sys::working_dir::DescriptorDir;

pub use capabilities::{Capabilities, CapabilityError};
pub use id_map::{IdMapError, IdMaps, IdRange, parse as parse_id_map};
pub use limits::{LimitError, raise_open_files};
pub use seccomp::Seccomp;

/// How the serving process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Mount, pid and network namespaces, in a user namespace where the daemon is not root; the share is the
    /// root directory.
    Namespace,
    /// The share is the root directory.
    Chroot,
    /// No change of root.
    None,
}

/// What a sandbox is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the process is confined.
    pub mode: Mode,
    /// Who is who in the user namespace.
    pub id_maps: IdMaps,
    /// The rights that are kept.
    pub capabilities: Capabilities,
    /// The system calls that are left, see [`seal`].
    pub seccomp: Seccomp,
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
        /// The directory or file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The share is a fifo, a socket or a device.
    #[error("cannot share {0}: it is neither a directory nor a regular file; give one of these with --shared-dir")]
    Special(PathBuf),
    /// The process runs in a plain chroot, where nothing can be mounted on its root.
    #[error(
        "cannot make the sandbox's mounts: / is not a mount point, as in a plain chroot; {}",
        if *.is_root {
            "say --sandbox chroot, or bind the directory to itself (mount --bind DIR DIR) before chroot(1)"
        } else {
            "run gatherfsd outside of the chroot, or say --sandbox none and confine it otherwise"
        }
    )]
    NoMountPoint {
        /// Whether root runs it.
        is_root: bool,
    },
    /// No user namespace.
    #[error(
        "cannot make a user namespace for the sandbox: {0}; allow them to users (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), run gatherfsd as root, \
         or say --sandbox none and confine it otherwise"
    )]
    UserNamespace(io::Error),
    /// The ids could not be mapped: the option, why, and what to do.
    #[error("{0}")]
    IdMap(String),
    /// No list of system calls.
    #[error("cannot restrict system calls: {0}; say --seccomp none where the kernel has no seccomp filters")]
    Seccomp(seccompiler::Error),
}

fn hint(source: &io::Error) -> &'static str {
    if source.kind() != io::ErrorKind::PermissionDenied {
        ""
    } else if rustix::process::geteuid().is_root() {
        "; root lacks a capability here: grant CAP_SYS_ADMIN for --sandbox namespace or CAP_SYS_CHROOT for chroot, \
         or say --sandbox none and confine it otherwise"
    } else {
        "; run gatherfsd as root, or say --sandbox none and confine it otherwise"
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

/// The confined process: the share, and its descriptors' directory, opened before /proc went.
#[derive(Debug)]
pub struct Jail {
    /// The shared directory or file: open for reading, or a directory with O_PATH where it may only be searched.
    pub share: OwnedFd,
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

/// Confines the process to `shared`, a directory or a regular file. Where that takes another process, both
/// come back: the serving one at once, the waiting one when the other has ended. Call it before any thread
/// is started, and [`seal`] when everything that serving needs is open.
pub fn enter(options: &Options, shared: &Path) -> Result<Entered, JailError> {
    let kind = std::fs::metadata(shared).map_err(|source| JailError::Share { path: shared.to_owned(), source })?;
    if !kind.is_dir() && !kind.is_file() {
        return Err(JailError::Special(shared.to_owned()));
    }
    // The guest has applied its own umask to every mode that it sends.
    rustix::process::umask(rustix::fs::Mode::empty());
    if options.mode == Mode::None {
        let descriptor_dir = DescriptorDir::open().step("open /proc/self/fd (is /proc mounted?)")?;
        let share = open_share(shared, shared)?;
        capabilities::leave_groups()?;
        options.capabilities.confine()?;
        return Ok(Entered::Inside(Jail { share, descriptor_dir }));
    }
    if options.mode == Mode::Namespace && !namespace::root_is_mount_point() {
        return Err(JailError::NoMountPoint { is_root: rustix::process::geteuid().is_root() });
    }
    let in_user_namespace = options.mode == Mode::Namespace && !rustix::process::geteuid().is_root();
    match options.mode {
        Mode::Namespace if in_user_namespace => user_namespace::leave_host(&options.id_maps)?,
        Mode::Namespace => namespace::leave_host()?,
        _ => {}
    }
    // Its other end closes with the outer process, also one that ends before it can be signalled for.
    let (outer, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    match process::fork().step("start the serving process")? {
        Side::Parent(child) => {
            let waited = capabilities::confine_outside().and_then(|()| wait_outside(child));
            drop(alive);
            waited
        }
        Side::Child => {
            if in_user_namespace {
                // Before the signal is asked for: a change of user would take that back.
                user_namespace::become_root(&options.id_maps)?;
            }
            // The serving process does not outlive the one that its user knows.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("ask for a signal when the parent ends")?;
            drop(alive);
            if outer_has_ended(&outer) {
                return Err(JailError::Step { step: "go on without the outer process", source: io::Error::from_raw_os_error(libc::ESRCH) });
            }
            change_root(options, shared, kind.is_dir()).map(Entered::Inside)
        }
    }
}

/// Makes the share all that the process sees. A file has no place in its own root: it is opened before, and
/// the root is empty.
fn change_root(options: &Options, shared: &Path, is_dir: bool) -> Result<Jail, JailError> {
    let descriptor_dir = match DescriptorDir::open_alone() {
        // Containers seldom have CAP_SYS_ADMIN, and chroot(2) does not take it.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && options.mode == Mode::Chroot => DescriptorDir::open(),
        opened => opened,
    };
    let descriptor_dir = descriptor_dir.step("open /proc/self/fd (is /proc mounted?)")?;
    capabilities::leave_groups()?;
    if is_dir {
        // Whoever may not search it cannot make it the root either: said here, where its name is known.
        open_to_search(shared).map_err(|e| JailError::Share { path: shared.to_owned(), source: e.into() })?;
    }
    let file = if is_dir { None } else { Some(open_share(shared, shared)?) };
    match (options.mode, is_dir) {
        (Mode::Namespace, true) => namespace::enter_share(shared)?,
        (Mode::Namespace, false) => namespace::enter_empty()?,
        (_, true) => namespace::change_root(shared)?,
        (_, false) => namespace::change_root_to_empty()?,
    }
    let share = file.map_or_else(|| open_share(Path::new("/"), shared), Ok)?;
    options.capabilities.confine()?;
    Ok(Jail { share, descriptor_dir })
}

/// Opens the share, which lies at `path` for this process and is called `name` on the command line.
fn open_share(path: &Path, name: &Path) -> Result<OwnedFd, JailError> {
    let failed = |source: rustix::io::Errno| JailError::Share { path: name.to_owned(), source: source.into() };
    // A fifo that was put in its place would not let go otherwise.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let share = match rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        Err(e @ rustix::io::Errno::ACCESS) => open_to_search(path).map_err(|_| failed(e))?,
        opened => opened.map_err(failed)?,
    };
    match FileType::from_raw_mode(rustix::fs::fstat(&share).map_err(failed)?.st_mode) {
        FileType::Directory | FileType::RegularFile => Ok(share),
        _ => Err(JailError::Special(name.to_owned())),
    }
}

/// Opens a directory that may be searched and not read: what is known by name can be served.
fn open_to_search(path: &Path) -> rustix::io::Result<OwnedFd> {
    let directory = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    // Takes the right to search, which O_PATH does not.
    rustix::fs::statat(&directory, ".", rustix::fs::AtFlags::empty())?;
    Ok(directory)
}

/// What the sealed process may still do by path.
#[derive(Debug, Clone, Copy)]
pub struct Reach<'f> {
    /// The share.
    pub share: BorrowedFd<'f>,
    /// Whether its inodes are kept as file handles.
    pub by_handle: bool,
    /// A directory from which this process removes a file when it ends.
    pub removable: Option<BorrowedFd<'f>>,
}

/// Gives up for good what serving does not need: other files, other system calls. To be called after `enter`,
/// when everything is open, and before the first thread is started. False where the kernel has no Landlock.
pub fn seal(seccomp: Seccomp, reach: &Reach<'_>) -> Result<bool, JailError> {
    let kind = rustix::fs::fstat(reach.share).step("look at the share")?.st_mode;
    let is_directory = FileType::from_raw_mode(kind) == FileType::Directory;
    let files = landlock::Files { share: reach.share.as_fd(), is_directory, removable: reach.removable };
    let has_landlock = landlock::restrict((!reach.by_handle).then_some(&files));
    seccomp::install(seccomp).map_err(JailError::Seccomp)?;
    Ok(has_landlock)
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
    let mut signals = signal_hook::iterator::Signals::new(signal::watched().chain([SIGCHLD])).step("watch signals")?;
    signal::release().step("watch signals")?;
    loop {
        // First, for a child that ended before its signal was watched.
        if let Some(status) = process::ended(child).step("wait for the serving process")? {
            if status == 128 + libc::SIGSYS {
                tracing::error!(
                    "a system call that is not on the list ended the serving process; --seccomp log writes it to the kernel's log"
                );
            }
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
