//! Dispositions and masks of signals (man signal(7)): which are blocked until a thread watches them, which are ignored.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const WATCHED: [i32; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

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
    let set = set_of(WATCHED.into_iter());
    // SAFETY: an initialized set; a null pointer for the old one.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn set_of(signals: impl Iterator<Item = i32>) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the call initializes the set that the pointer leads to.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialized by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: an initialized set and a valid signal number.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Whether a watched signal asks the daemon to end.
pub fn is_end(signal: i32) -> bool {
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP].contains(&signal)
}

/// A signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// The kernel sent it, as a terminal's driver does on ^C to all processes in the foreground.
    pub by_kernel: bool,
}

/// The watched signals as something to poll (man signalfd(2)). They must be blocked ([`hold`]).
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Watches them. EMFILE, ENFILE or ENOMEM where the kernel is out of descriptors or memory.
    pub fn new() -> io::Result<Signals> {
        let set = set_of(watched());
        // SAFETY: an initialized set; -1 asks for a new descriptor.
        match unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a new descriptor, which nobody else owns.
            fd => Ok(Signals(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    }

    /// The next signal that has arrived, if there is one.
    pub fn next(&self) -> io::Result<Option<Arrived>> {
        // struct signalfd_siginfo: number, errno, code, each of 4 bytes; then what is not needed here.
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            Ok(len) if len == info.len() => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let word = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        Ok(Some(Arrived { signal: word(0), by_kernel: word(8) == libc::SI_KERNEL }))
    }
}

impl Signals {
    /// Waits for the next signal: its number. `None` where none has arrived until `until`.
    pub fn wait(&self, until: Option<Instant>) -> io::Result<Option<i32>> {
        loop {
            if let Some(arrived) = self.next()? {
                return Ok(Some(arrived.signal));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            match poll(&mut [PollFd::new(self, PollFlags::IN)], left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ignores SIGXFSZ, which would end the process: a write above RLIMIT_FSIZE then fails with EFBIG.
pub fn ignore_file_size_limit() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
