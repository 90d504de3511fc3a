//! INIT: what guest and daemon agree on for one FUSE session. Only what has logic behind it is accepted.

use super::abi::{InitCompatIn, InitExtIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_MINOR_VERSION_MIN, KERNEL_VERSION, init_flags as f};
use super::cursor::Cursor;
use crate::types::Errno;

/// Background requests that the guest may keep in flight; its own `max_background` is below this.
const MAX_BACKGROUND: u16 = u16::MAX;
/// Timestamps are exact to the nanosecond.
const TIME_GRANULARITY_NS: u32 = 1;
/// The page size of the protocol's `max_pages`.
const PAGE_SIZE: u32 = 4096;

/// A decoded INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitRequest {
    /// Major version: 7.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Read-ahead that the guest would like, bytes.
    pub max_readahead: u32,
    /// What the guest can do: both flag words joined.
    pub flags: u64,
}

impl InitRequest {
    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<InitRequest, Errno> {
        let head: InitCompatIn = cursor.take()?;
        let mut flags = u64::from(head.flags);
        if flags & f::INIT_EXT != 0 {
            let more: InitExtIn = cursor.take()?;
            flags |= u64::from(more.flags2) << 32;
        }
        Ok(InitRequest { major: head.major, minor: head.minor, max_readahead: head.max_readahead, flags })
    }
}

/// What the daemon brings to the agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flags that the daemon has logic for and its options ask for.
    pub wanted: u64,
    /// Pages of the largest READ or WRITE; follows the queue size.
    pub max_pages: u16,
}

/// What was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Flags that both sides know.
    pub flags: u64,
    /// The guest's minor version.
    pub minor: u32,
    /// Bytes of the largest WRITE.
    pub max_write: u32,
}

impl Negotiated {
    /// Whether all of `flags` were agreed on.
    pub fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }
}

/// Why there is no session yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionError {
    /// The guest speaks a newer major version: it must send INIT again with ours.
    RetryWithOurs(InitOut),
    /// The guest is too old: EPROTO.
    TooOld,
}

/// Answers an INIT: the reply to send and what it means, or why there is no session.
pub fn negotiate(request: &InitRequest, limits: &Limits) -> Result<(InitOut, Negotiated), SessionError> {
    if request.major > KERNEL_VERSION {
        return Err(SessionError::RetryWithOurs(InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() }));
    }
    if request.major < KERNEL_VERSION || request.minor < KERNEL_MINOR_VERSION_MIN {
        return Err(SessionError::TooOld);
    }
    let flags = request.flags & limits.wanted;
    // Without MAX_PAGES a guest stays at 32 pages (FUSE_DEFAULT_MAX_PAGES_PER_REQ).
    let max_pages = if flags & f::MAX_PAGES != 0 { limits.max_pages } else { 32 };
    let max_write = u32::from(max_pages) * PAGE_SIZE;
    let out = InitOut {
        major: KERNEL_VERSION,
        minor: KERNEL_MINOR_VERSION,
        max_readahead: request.max_readahead,
        flags: (flags & u64::from(u32::MAX)) as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write,
        time_gran: TIME_GRANULARITY_NS,
        max_pages,
        ..InitOut::default()
    };
    Ok((out, Negotiated { flags, minor: request.minor, max_write }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { wanted: f::MAX_PAGES | f::INIT_EXT | f::CREATE_SUPP_GROUP | f::BIG_WRITES, max_pages: 1020 };

    fn guest(minor: u32, flags: u64) -> InitRequest {
        InitRequest { major: 7, minor, max_readahead: 131_072, flags }
    }

    #[test]
    fn only_flags_known_to_both_are_agreed_in_both_words() {
        let (out, agreed) = negotiate(&guest(45, u64::MAX), &LIMITS).unwrap();
        assert_eq!(agreed.flags, LIMITS.wanted);
        assert_eq!(out.flags2, (f::CREATE_SUPP_GROUP >> 32) as u32);
        assert_eq!((out.max_pages, out.max_write, out.max_readahead), (1020, 1020 * 4096, 131_072));
        let (out, agreed) = negotiate(&guest(38, f::BIG_WRITES), &LIMITS).unwrap();
        assert_eq!((agreed.flags, out.flags2, out.max_write), (f::BIG_WRITES, 0, 32 * 4096));
    }

    #[test]
    fn newer_majors_are_told_ours_and_old_guests_are_refused() {
        let newer = InitRequest { major: 8, ..guest(0, 0) };
        assert!(matches!(negotiate(&newer, &LIMITS), Err(SessionError::RetryWithOurs(out)) if out.major == 7));
        assert_eq!(negotiate(&guest(26, 0), &LIMITS), Err(SessionError::TooOld));
        assert_eq!(negotiate(&InitRequest { major: 6, ..guest(45, 0) }, &LIMITS), Err(SessionError::TooOld));
    }

    #[test]
    fn init_ext_without_its_second_half_is_refused() {
        let mut bytes = Vec::new();
        for word in [7u32, 38, 0, 1 << 30] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(InitRequest::decode(&mut Cursor::new(&bytes)), Err(Errno::EINVAL));
        bytes.extend_from_slice(&[0xff; 48]);
        assert_eq!(InitRequest::decode(&mut Cursor::new(&bytes)).unwrap().flags >> 32, 0xffff_ffff);
    }
}
