//! Errors of a host that lacks something at the moment, and may have it in the next.

use std::io;

/// Whether `e` says that there is no thread or process (EAGAIN), memory or open file left. Not EMFILE: what fills the process's own table
/// goes away by nothing that others do.
pub fn is_one(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::ENFILE))
}
