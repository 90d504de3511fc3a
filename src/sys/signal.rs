//! What signals do to the process (man signal(7)): which wait until they are watched, which mean nothing.

use std::io;

const WATCHED: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];

/// The signals that the daemon watches. A SIGHUP or SIGINT that is ignored is not among them: nohup(1) has the one so,
/// a shell's script the other for what it starts in the background.
pub fn watched() -> impl Iterator<Item = i32> {
    WATCHED.into_iter().filter(|signal| ![libc::SIGHUP, libc::SIGINT].contains(signal) || !is_ignored(*signal))
}

fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is changed; the second pointer is to room for an action.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: filled by the call above, which succeeded.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Lets the watched signals wait. Threads and processes that are started afterwards do the same, so that a
/// signal that comes before its watcher is neither deadly nor lost, not even to the first process of a pid
/// namespace.
pub fn hold() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Lets them through to this thread. To be called when they are watched.
pub fn release() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK)
}

fn mask(how: i32) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to room for a set, which the call fills.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: filled by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in WATCHED {
        // SAFETY: a valid set and a signal's number.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: a valid set; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Makes a write above RLIMIT_FSIZE fail with EFBIG and do nothing else: SIGXFSZ would end the process.
pub fn ignore_file_size_limit() {
    // SAFETY: SIG_IGN is no function of ours; SIGXFSZ is raised by system calls that then fail.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
