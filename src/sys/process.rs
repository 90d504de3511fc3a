//! fork(2), clone(2), execveat(2), waiting and unshare(2), for the processes of the daemon.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

/// Which process returned from [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The child.
    Child,
    /// The parent, with the child's process id.
    Parent(Pid),
}

/// An error where the process has more than one thread.
fn check_single_threaded() -> io::Result<()> {
    // man unshare(2): fails in a process with more than one thread, and has no effect in others.
    // SAFETY: the call changes nothing.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 { Ok(()) } else { Err(io::Error::other("the process has more than one thread")) }
}

/// fork(2). An error where the process has more than one thread, because the child could then call only async-signal-safe
/// functions; EAGAIN or ENOMEM of fork(2).
pub fn fork() -> io::Result<Side> {
    check_single_threaded()?;
    // SAFETY: this is the only thread, as checked above, so no other thread holds a lock or changes memory at the fork.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Pid::from_raw(pid).map(Side::Parent).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl End {
    /// The exit status as a shell reports it.
    pub fn shell_status(self) -> i32 {
        match self {
            End::Exit(status) => status,
            End::Signal(signal) => 128 + signal,
        }
    }
}

/// A child. It is not ended when this is dropped.
#[derive(Debug)]
pub struct Child {
    /// What to wait for: unlike the descriptor, no other process with the same table can replace it.
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// The child `pid`, which an earlier program of this process has started and not waited for. ESRCH where there is none.
    pub fn of(pid: i32) -> io::Result<Child> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Ok(Child { pid, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Readable when every thread of the process has ended.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends `signal` to it. ESRCH where it has ended.
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// Waits for its end. ECHILD after the first time.
    pub fn wait(&self) -> io::Result<End> {
        loop {
            match rustix::process::waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED) {
                Ok(Some(status)) => {
                    let signal = status.terminating_signal().map(End::Signal);
                    return Ok(signal.unwrap_or(End::Exit(status.exit_status().unwrap_or(1))));
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Splits this process by clone(2): parent and child share the table of descriptors, and nothing else. Each descriptor must have
/// one owner in both of them together: what the one closes is closed for the other. Returns `None` in the child.
///
/// An error where the process has more than one thread; EAGAIN, ENOMEM or EMFILE of clone(2).
pub fn split() -> io::Result<Option<Child>> {
    clone(libc::CLONE_FILES)
}

/// As [`fork`], for a child that executes another program or ends at once. Returns `None` in the child.
pub fn fork_watched() -> io::Result<Option<Child>> {
    clone(0)
}

/// clone(2) with no memory in common.
fn clone(shared: libc::c_int) -> io::Result<Option<Child>> {
    check_single_threaded()?;
    // With CLONE_PIDFD (Linux 5.2) the child's descriptor is there when the child is.
    let flags = libc::c_long::from(shared | libc::CLONE_PIDFD | libc::SIGCHLD);
    let none: libc::c_long = 0;
    let mut pidfd: libc::c_int = -1;
    // No stack is given: the child goes on with a copy of this one, as after fork(2). The C library is not told, so it keeps this
    // thread's id for the child's first thread: threads, mutexes and abort(3) do not need it.
    // SAFETY: this is the only thread, as checked above, so no other thread holds a lock or changes memory at the copy; the kernel
    // writes one integer to the pointer.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, &raw mut pidfd, none, none) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            // SAFETY: a new descriptor, which nobody else owns: the child has not been told its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
            Ok(Some(Child { pid, pidfd }))
        }
    }
}

/// Replaces the program of this process, which keeps its id, by the one that is open behind `program` (man execveat(2)). The
/// descriptors without FD_CLOEXEC stay open. Returns where that fails: EACCES for a file that may not be executed, ENOEXEC for one
/// that is no program, ENOENT without its interpreter.
pub fn execute(program: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    let path = c"".as_ptr();
    // SAFETY: strings, and arrays of them that end with a null pointer; they live until the call returns.
    unsafe { libc::syscall(libc::SYS_execveat, program.as_raw_fd(), path, arguments.as_ptr(), environment.as_ptr(), libc::AT_EMPTY_PATH) };
    io::Error::last_os_error()
}

/// What becomes readable when thread `id` of a child, not its first thread, has ended (man pidfd_open(2), PIDFD_THREAD). EINVAL before
/// Linux 6.9.
pub fn end_of_thread(id: u32) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: libc::c_uint = libc::O_EXCL.cast_unsigned();
    // SAFETY: the arguments are numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, PIDFD_THREAD) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ends this process by SIGKILL when the thread ends that started it, `parent`'s only one. To be called by the first thread after the
/// last change of its ids, which clears it (man prctl(2)). ESRCH where `parent` has ended already.
pub fn end_with(parent: Option<Pid>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Whether processes of the same user and rights may look into this one (man prctl(2), PR_SET_DUMPABLE): memory, descriptors, core
/// dumps.
pub fn is_visible() -> io::Result<bool> {
    Ok(rustix::process::dumpable_behavior()? == DumpableBehavior::Dumpable)
}

/// Changes what [`is_visible`] says. Returns what it was.
pub fn set_visible(visible: bool) -> io::Result<bool> {
    let was = is_visible()?;
    if was != visible {
        let now = if visible { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
        rustix::process::set_dumpable_behavior(now)?;
    }
    Ok(was)
}

/// The exit status of `child` as a shell reports it, `None` while it runs. ECHILD where it is not a child of this process or
/// was waited for.
pub fn ended(child: Pid) -> io::Result<Option<i32>> {
    Ok(rustix::process::waitpid(Some(child), WaitOptions::NOHANG)?.map(|(_, status)| shell_status(status)))
}

fn shell_status(status: WaitStatus) -> i32 {
    status.exit_status().or(status.terminating_signal().map(|s| 128 + s)).unwrap_or(1)
}

/// Removes `name` from the environment. An error where the process has more than one thread, of which another might read it.
pub fn forget_variable(name: &str) -> io::Result<()> {
    check_single_threaded()?;
    // SAFETY: this is the only thread, as checked above.
    unsafe { std::env::remove_var(name) };
    Ok(())
}

/// _exit(2): ends this process without exit handlers. For a forked child, which has copies of its parent's buffers.
pub fn end_now(status: i32) -> ! {
    // SAFETY: the call does not return.
    unsafe { libc::_exit(status) }
}

/// unshare(2). EINVAL for FILES, because all threads must share their descriptors; EPERM without the privilege that a namespace
/// needs; ENOSPC or EUSERS beyond a limit of namespaces.
pub fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    if flags.contains(rustix::thread::UnshareFlags::FILES) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: without FILES, threads still share one descriptor table.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// How often the calling thread has slept since it began: getrusage(2), voluntary context switches.
pub fn sleeps() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one rusage.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: all zero, or what the kernel wrote; both are numbers.
    unsafe { usage.assume_init() }.ru_nvcsw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_split() {
        // Waits for its end, so that there is a second thread whatever runs the tests.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || ended.recv());
        match fork() {
            Ok(Side::Child) => end_now(1),
            split => assert_eq!(split.map_err(|e| e.to_string()).err().as_deref(), Some("the process has more than one thread")),
        }
        match split() {
            Ok(None) => end_now(1),
            split => assert_eq!(split.map_err(|e| e.to_string()).err().as_deref(), Some("the process has more than one thread")),
        }
        drop(end);
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn descriptors_are_not_unshared() {
        assert_eq!(unshare(rustix::thread::UnshareFlags::FILES).map_err(|e| e.raw_os_error()), Err(Some(libc::EINVAL)));
    }
}
