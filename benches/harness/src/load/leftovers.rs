//! What must not outlive a run: the daemons that it started and the directories that it made. They go when the run ends,
//! fails, panics or gets SIGINT, SIGTERM or SIGHUP. SIGKILL leaves the directories, and no daemon: the kernel ends it.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process_group, set_parent_process_death_signal, waitid};

/// How long a daemon may take to end by SIGTERM before SIGKILL ends it.
const GRACE: Duration = Duration::from_secs(2);

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers { daemons: Vec::new(), directories: Vec::new() });

/// A signal ends the process.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Lets a signal that ends the process end it, although the run fails when its daemons end.
pub fn leave_to_signal() {
    while IS_ENDING.load(Ordering::Acquire) {
        std::thread::park();
    }
}

struct Leftovers {
    daemons: Vec<Pid>,
    directories: Vec<PathBuf>,
}

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has panics and signals remove everything. To be called once, before there is anything.
pub fn watch() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        remove_all();
    }));
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            IS_ENDING.store(true, Ordering::Release);
            remove_all();
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    Ok(())
}

/// Ends every daemon and removes every directory.
fn remove_all() {
    let (daemons, directories) = {
        let mut all = leftovers();
        (std::mem::take(&mut all.daemons), std::mem::take(&mut all.directories))
    };
    daemons.into_iter().for_each(end);
    for directory in directories {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Whether the process has ended; it can still be waited for.
fn has_ended(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
}

/// Ends the process group of `pid`, a child of ours that nobody has waited for: so its number is nobody else's.
fn end(pid: Pid) {
    let _ = kill_process_group(pid, Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while !has_ended(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Those of the group that are left, the daemon's own children among them.
    let _ = kill_process_group(pid, Signal::KILL);
}

/// A daemon that was started, in a process group of its own. It ends when this is dropped.
#[derive(Debug)]
pub struct Started(Child);

impl Started {
    /// Starts `command`. Call it on a thread that lives as long as the process: the kernel ends the daemon with that thread.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let parent = getpid();
        let follow = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The eventfds and sockets of other guests would be inherited and counted as its descriptors.
            // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing before exec.
            unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
            // The parent may have ended before that.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        };
        // SAFETY: prctl(2), close_range(2) and getppid(2) are system calls and may be made between fork and exec.
        unsafe { command.pre_exec(follow) };
        let mut all = leftovers();
        let child = command.process_group(0).spawn()?;
        all.daemons.push(Pid::from_child(&child));
        Ok(Self(child))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        has_ended(Pid::from_child(&self.0))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.0);
        let was_there = {
            let mut all = leftovers();
            let before = all.daemons.len();
            all.daemons.retain(|daemon| *daemon != pid);
            before != all.daemons.len()
        };
        if was_there {
            end(pid);
            let _ = self.0.wait();
        }
    }
}

/// A directory of this run; what `new` has made goes with it.
#[derive(Debug)]
pub struct Scratch {
    /// Where it is.
    pub path: PathBuf,
}

impl Scratch {
    /// A new directory in `parent`, `name` with the process id.
    pub fn new(parent: &Path, name: &str) -> io::Result<Self> {
        let path = parent.join(format!("{name}-{}", std::process::id()));
        leftovers().directories.push(path.clone());
        std::fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    /// The directory `path`, made if it is missing, and kept.
    pub fn keep(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self { path: path.into() })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let was_there = {
            let mut all = leftovers();
            let before = all.directories.len();
            all.directories.retain(|directory| *directory != self.path);
            before != all.directories.len()
        };
        if was_there {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
