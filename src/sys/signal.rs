//! Dispositions and masks of signals (man signal(7)): which are blocked until a thread watches them, which are ignored.

use std::io;

const WATCHED: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];

/// The signals that the daemon watches. SIGHUP and SIGINT only where they are not ignored: nohup(1) ignores SIGHUP, a shell
/// script SIGINT in what it starts in the background.
pub fn watched() -> impl Iterator<Item = i32> {
    WATCHED.into_iter().filter(|signal| ![libc::SIGHUP, libc::SIGINT].contains(signal) || !is_ignored(*signal))
}

fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action changes nothing; the kernel writes the old one to `action`.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: filled by the call above, which succeeded.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Blocks the watched signals in this thread and in threads and processes that it starts afterwards. A signal that arrives
/// before its watcher is then pending: it neither ends the process nor is lost, also in the first process of a pid namespace.
pub fn hold() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Unblocks the watched signals in this thread. Call it when they are watched.
pub fn release() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK)
}

fn mask(how: i32) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the call initializes the set that the pointer leads to.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialized by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in WATCHED {
        // SAFETY: an initialized set and a valid signal number.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: an initialized set; a null pointer for the old one.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Ignores SIGXFSZ, which would end the process: a write above RLIMIT_FSIZE then fails with EFBIG.
pub fn ignore_file_size_limit() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
