//! Entering the sandbox: which process serves, and what it sees of the host's files. Knows nothing of what the process outside does
//! while it waits.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::process::{Pid, Signal};

use super::capabilities::{self, Capabilities};
use super::error::{JailError, Step};
use super::id_map::IdMaps;
use super::namespace;
use super::seccomp::{RootDirectory, Seccomp};
use super::user_namespace;
use crate::sys::oom;
use crate::sys::process::{self, Side};
use crate::sys::working_dir::DescriptorDir;

/// How the serving process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Mount, pid and network namespaces, and a user namespace where the daemon is not root. The share is the root
    /// directory.
    Namespace,
    /// The share is the root directory.
    Chroot,
    /// No change of root.
    None,
}

impl Mode {
    /// What the root directory is in it.
    pub fn root(self) -> RootDirectory {
        if self == Mode::None { RootDirectory::Host } else { RootDirectory::Share }
    }
}

/// The parts of a sandbox.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the process is confined.
    pub mode: Mode,
    /// The id maps of the user namespace.
    pub id_maps: IdMaps,
    /// The capabilities that are kept.
    pub capabilities: Capabilities,
    /// What happens to other system calls after [`super::seal`].
    pub seccomp: Seccomp,
    /// Whether a process waits outside with [`Mode::None`] too. In the other modes there is always one.
    pub has_outer: bool,
}

/// What the confined process has open: the share, and /proc/self/fd, which it opened before /proc was unmounted.
#[derive(Debug)]
pub struct Jail {
    /// The shared directory or file, open for reading. O_PATH for a directory that the process may search and not read.
    pub share: OwnedFd,
    /// /proc/self/fd.
    pub descriptor_dir: DescriptorDir,
}

/// Which process returned from [`enter`].
#[derive(Debug)]
pub enum Entered {
    /// The process that is to serve.
    Inside(Jail),
    /// The process outside the sandbox, which is to wait for the other one.
    Outside(Confined),
}

/// The process inside the sandbox, as the one outside knows it. It ends when this is dropped, if it has not begun yet.
#[derive(Debug)]
pub struct Confined {
    /// Its process id.
    pub process: Pid,
    /// The kernel spares it and the process outside when memory is short; this is what the processes that serve are to have instead
    /// (man proc_pid_oom_score_adj(5)). `None` where the kernel spares nobody.
    pub oom_score: Option<i16>,
    /// The other end is the confined process's, which by it learns of a parent that ended early.
    _alive: OwnedFd,
}

/// Confines the process to `shared`, a directory or a regular file. Where another process is to wait outside, this forks: the child
/// is the confined one, the parent the one outside. Call it before any thread is started, and [`super::seal`] when everything that
/// serving needs is open.
///
/// [`JailError::Share`] or [`JailError::Special`] where `shared` cannot be shared, [`JailError::NoMountPoint`],
/// [`JailError::UserNamespace`] or [`JailError::IdMap`] where the host does not allow the namespaces, and
/// [`JailError::Step`] for any other system call that failed.
pub fn enter(options: &Options, shared: &Path) -> Result<Entered, JailError> {
    let kind = std::fs::metadata(shared).map_err(|source| JailError::Share { path: shared.to_owned(), source })?;
    if !kind.is_dir() && !kind.is_file() {
        return Err(JailError::Special(shared.to_owned()));
    }
    // The guest applies its umask before it sends a mode.
    rustix::process::umask(rustix::fs::Mode::empty());
    if options.mode == Mode::None && !options.has_outer {
        return confine(options, shared, kind.is_dir()).map(Entered::Inside);
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
    // By the kernel when memory is short: the guest's mount ends with either process, and neither has much memory if the confined one
    // does not serve. Only root can give those that serve another value.
    let is_spared = options.has_outer && rustix::process::geteuid().is_root();
    // The parent's end closes when it ends. PR_SET_PDEATHSIG alone misses a parent that ended before the call.
    let (outer, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    match process::fork().step("start the serving process")? {
        Side::Parent(process) => {
            let oom_score = if is_spared { oom::spare() } else { None };
            capabilities::confine_outside()?;
            Ok(Entered::Outside(Confined { process, oom_score, _alive: alive }))
        }
        Side::Child => {
            if in_user_namespace {
                // Before PR_SET_PDEATHSIG, which a change of user clears (man prctl(2)).
                user_namespace::become_root(&options.id_maps)?;
            }
            // The serving process ends with its parent, whose process id the user knows.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("request a signal for the end of the parent")?;
            if is_spared {
                let _ = oom::spare();
            }
            drop(alive);
            if outer_has_ended(&outer) {
                return Err(JailError::Step {
                    step: "continue without the outer process",
                    source: io::Error::from_raw_os_error(libc::ESRCH),
                });
            }
            confine(options, shared, kind.is_dir()).map(Entered::Inside)
        }
    }
}

/// Gives up what serving does not need: other files, as far as the mode says, groups and capabilities.
fn confine(options: &Options, shared: &Path, is_dir: bool) -> Result<Jail, JailError> {
    if options.mode != Mode::None {
        return change_root(options, shared, is_dir);
    }
    let descriptor_dir = DescriptorDir::open().step("open /proc/self/fd (is /proc mounted?)")?;
    let share = open_share(shared, shared)?;
    capabilities::leave_groups()?;
    options.capabilities.confine()?;
    Ok(Jail { share, descriptor_dir })
}

/// Makes the share the root directory. A share that is a file is opened first; the root directory is then empty.
fn change_root(options: &Options, shared: &Path, is_dir: bool) -> Result<Jail, JailError> {
    let descriptor_dir = match DescriptorDir::open_alone() {
        // chroot(2) does not need CAP_SYS_ADMIN, which containers seldom have.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && options.mode == Mode::Chroot => DescriptorDir::open(),
        opened => opened,
    };
    let descriptor_dir = descriptor_dir.step("open /proc/self/fd (is /proc mounted?)")?;
    capabilities::leave_groups()?;
    if is_dir {
        // A directory that may not be searched cannot become the root directory: reported here, with its path.
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

/// Opens the share at `path`. Errors name it `name`, as on the command line.
fn open_share(path: &Path, name: &Path) -> Result<OwnedFd, JailError> {
    let failed = |source: rustix::io::Errno| JailError::Share { path: name.to_owned(), source: source.into() };
    // O_NONBLOCK: an open of a fifo, which may have replaced the share, would wait.
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

/// Opens a directory that may be searched and perhaps not read. Its entries can be served by name.
fn open_to_search(path: &Path) -> rustix::io::Result<OwnedFd> {
    let directory = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    // This checks the search permission; O_PATH does not.
    rustix::fs::statat(&directory, ".", rustix::fs::AtFlags::empty())?;
    Ok(directory)
}

/// Whether the process that holds the other end of `outer` has ended.
fn outer_has_ended(outer: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(outer, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
}
