//! fork(2), waitpid(2) and unshare(2), for the sandbox's process in its own pid namespace.

use std::io;

use rustix::process::{Pid, WaitOptions, WaitStatus};

/// Which process returned from [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The child.
    Child,
    /// The parent, with the child's process id.
    Parent(Pid),
}

/// fork(2). An error where the process has more than one thread, because the child could then call only async-signal-safe
/// functions; EAGAIN or ENOMEM of fork(2).
pub fn fork() -> io::Result<Side> {
    // man unshare(2): fails in a process with more than one thread, and has no effect in others.
    // SAFETY: the call changes nothing.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::other("the process has more than one thread"));
    }
    // SAFETY: this is the only thread, as checked above, so no other thread holds a lock or changes memory at the fork.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Pid::from_raw(pid).map(Side::Parent).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// The exit status of `child` as a shell reports it, `None` while it runs. ECHILD where it is not a child of this process or
/// was waited for.
pub fn ended(child: Pid) -> io::Result<Option<i32>> {
    Ok(rustix::process::waitpid(Some(child), WaitOptions::NOHANG)?.map(|(_, status)| shell_status(status)))
}

fn shell_status(status: WaitStatus) -> i32 {
    status.exit_status().or(status.terminating_signal().map(|s| 128 + s)).unwrap_or(1)
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
        drop(end);
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn descriptors_are_not_unshared() {
        assert_eq!(unshare(rustix::thread::UnshareFlags::FILES).map_err(|e| e.raw_os_error()), Err(Some(libc::EINVAL)));
    }
}
