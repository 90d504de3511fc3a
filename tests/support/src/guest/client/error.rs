//! The result of a call, and why there is none.

use std::fmt;

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The device answered with this (positive) errno.
    Errno(i32),
    /// The device broke the protocol.
    Violation(String),
    /// No answer within the client's timeout, or the daemon has closed the connection. The request
    /// stays with the device, its buffers with it.
    NoReply,
}

impl CallError {
    /// The errno, if the device gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno(errno) => Some(*errno),
            _ => None,
        }
    }
}

impl From<i32> for CallError {
    fn from(errno: i32) -> Self {
        Self::Errno(errno)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => std::io::Error::from_raw_os_error(*errno).fmt(f),
            Self::Violation(what) => write!(f, "protocol violation: {what}"),
            Self::NoReply => f.write_str("no reply"),
        }
    }
}

impl std::error::Error for CallError {}

/// The result of a call.
pub type Result<T> = std::result::Result<T, CallError>;

/// The device broke the protocol: `what` says how.
pub(super) fn violation(what: String) -> CallError {
    CallError::Violation(what)
}
