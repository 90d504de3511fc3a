//! fork(2) and waiting for the child, for the sandbox's process in its own pid namespace.

use std::io;

use rustix::process::{Pid, WaitOptions, WaitStatus};

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The new process.
    Child,
    /// The old one, with the child's id.
    Parent(Pid),
}

/// Splits the process in two. An error in a process with more than one thread, whose child may call nothing that
/// takes a lock.
pub fn fork() -> io::Result<Side> {
    // man unshare(2): refused to a process with more than one thread, without effect on others.
    // SAFETY: changes nothing.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::other("the process has more than one thread"));
    }
    // SAFETY: just seen: this is the only thread, and it starts no other, so the child's memory is whole and no lock is held.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Pid::from_raw(pid).map(Side::Parent).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Whether `child` has ended: the status that a shell would show.
pub fn ended(child: Pid) -> io::Result<Option<i32>> {
    Ok(rustix::process::waitpid(Some(child), WaitOptions::NOHANG)?.map(|(_, status)| shell_status(status)))
}

fn shell_status(status: WaitStatus) -> i32 {
    status.exit_status().or(status.terminating_signal().map(|s| 128 + s)).unwrap_or(1)
}

/// Ends this process at once, without what others have registered for its end: for a child that was forked
/// for one task and shares its parent's buffers.
pub fn end_now(status: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(status) }
}

/// Leaves the namespaces that `flags` name (man unshare(2)). EINVAL for FILES: descriptors stay shared by all
/// threads.
pub fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    if flags.contains(rustix::thread::UnshareFlags::FILES) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: without FILES no descriptor changes its meaning under another thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
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
