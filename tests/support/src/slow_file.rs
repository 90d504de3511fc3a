//! A file on the host whose reads wait until the test lets them: a slow disk without a clock.
//!
//! Made of fanotify permission events (man fanotify(7)), which need root. Make it before the daemon
//! opens the file; the test itself must not read it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::daemon::PATIENCE;

/// Size of one event; none carries more than this.
const EVENT_LEN: usize = size_of::<libc::fanotify_event_metadata>();

/// The file's watch. Dropping it lets all its reads go on.
#[derive(Debug)]
pub struct SlowFile {
    events: Mutex<File>,
}

/// A read that waits. Dropping it leaves the read waiting for as long as the [`SlowFile`] lives.
#[derive(Debug)]
#[must_use]
pub struct WaitingRead {
    /// The kernel names the read by this descriptor of the file.
    file: File,
}

impl SlowFile {
    /// Slows down the file at `path`; `None`, with the reason printed, where the kernel does not let us.
    pub fn new(path: &Path) -> Option<Self> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        // SAFETY: fanotify_init(2) takes two numbers.
        let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned()) };
        if fd < 0 {
            println!("skipped: no fanotify: {}", std::io::Error::last_os_error());
            return None;
        }
        // SAFETY: the call above made the descriptor.
        let events = unsafe { File::from_raw_fd(fd) };
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
        // SAFETY: the path is a C string.
        let marked = unsafe { libc::fanotify_mark(fd, libc::FAN_MARK_ADD, libc::FAN_ACCESS_PERM, libc::AT_FDCWD, name.as_ptr()) };
        if marked < 0 {
            println!("skipped: no permission events: {}", std::io::Error::last_os_error());
            return None;
        }
        Some(Self { events: Mutex::new(events) })
    }

    /// Waits until somebody reads the file.
    pub fn wait_for_read(&self) -> WaitingRead {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = Timespec::try_from(PATIENCE).expect("a short time");
        let ready = poll(&mut [PollFd::new(&*events, PollFlags::IN)], Some(&patience)).expect("poll");
        assert_eq!(ready, 1, "nobody reads the file");
        let mut event = [0; EVENT_LEN];
        assert_eq!(events.read(&mut event).expect("an event"), EVENT_LEN);
        // SAFETY: the kernel wrote a whole event, which is plain numbers.
        let event: libc::fanotify_event_metadata = unsafe { std::ptr::read_unaligned(event.as_ptr().cast()) };
        // SAFETY: the event's descriptor is ours from here on.
        WaitingRead { file: unsafe { File::from_raw_fd(event.fd) } }
    }

    /// Lets a read go on.
    pub fn let_go(&self, read: WaitingRead) {
        let response = libc::fanotify_response { fd: read.file.as_raw_fd(), response: libc::FAN_ALLOW };
        let bytes = [response.fd.to_ne_bytes(), response.response.to_ne_bytes()].concat();
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.write_all(&bytes).expect("the read takes the answer");
        drop(read);
    }
}
