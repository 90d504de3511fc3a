//! INIT: the features of one FUSE session. Only flags that the daemon implements are accepted.

use super::abi::{InitCompatIn, InitExtIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_MINOR_VERSION_MIN, KERNEL_VERSION, init_flags as f};
use super::cursor::Cursor;
use crate::types::Errno;

/// Background requests that the guest may have in flight: no limit. The guest's own `max_background` is lower.
const MAX_BACKGROUND: u16 = u16::MAX;
/// The granularity of timestamps.
const TIME_GRANULARITY_NS: u32 = 1;
/// The page size in which the protocol counts `max_pages`.
const PAGE_SIZE: u32 = 4096;

/// A decoded INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitRequest {
    /// Major version: 7.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// The guest's maximum read-ahead, bytes.
    pub max_readahead: u32,
    /// The guest's flags, `flags2` in the upper half.
    pub flags: u64,
}

impl InitRequest {
    /// Decodes the arguments. EINVAL where they are too short.
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

/// The daemon's side of the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flags that the daemon implements and its options enable.
    pub wanted: u64,
    /// Pages of the largest READ or WRITE, which depends on the queue size.
    pub max_pages: u16,
}

/// The result of the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Flags of both sides.
    pub flags: u64,
    /// The guest's minor version.
    pub minor: u32,
}

/// Bits of a [`Negotiated::to_word`] that are flags. The protocol has 43 flags so far.
const FLAG_BITS: u32 = 48;
// The highest flag that is offered.
const _: () = assert!(f::ALLOW_IDMAP < 1 << FLAG_BITS);
/// The highest minor version that is told from higher ones.
const MINOR_MAX: u32 = 0xffff;

impl Negotiated {
    /// Whether all of `flags` were negotiated.
    pub fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// The result in one word, for an atomic. Not 0, as no supported minor version is.
    pub fn to_word(self) -> u64 {
        self.flags & ((1 << FLAG_BITS) - 1) | u64::from(self.minor) << FLAG_BITS
    }

    /// What [`Negotiated::to_word`] returned; `None` for 0.
    pub fn from_word(word: u64) -> Option<Negotiated> {
        (word != 0).then_some(Negotiated { flags: word & ((1 << FLAG_BITS) - 1), minor: (word >> FLAG_BITS) as u32 })
    }
}

/// Why an INIT does not begin a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitError {
    /// The guest has a newer major version. This reply tells it the daemon's version, with which it sends INIT again.
    RetryWithOurs(InitOut),
    /// The guest's version is too old. The reply is EPROTO.
    TooOld,
}

/// Negotiates the features of a session: the reply to INIT and its meaning. [`InitError`] for a guest whose version is newer than
/// 7 or older than 7.27.
pub fn negotiate(request: &InitRequest, limits: &Limits) -> Result<(InitOut, Negotiated), InitError> {
    if request.major > KERNEL_VERSION {
        return Err(InitError::RetryWithOurs(InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() }));
    }
    if request.major < KERNEL_VERSION || request.minor < KERNEL_MINOR_VERSION_MIN {
        return Err(InitError::TooOld);
    }
    let flags = request.flags & limits.wanted;
    // A guest without MAX_PAGES uses 32 pages (FUSE_DEFAULT_MAX_PAGES_PER_REQ).
    let max_pages = if flags & f::MAX_PAGES != 0 { limits.max_pages } else { 32 };
    let max_write = u32::from(max_pages) * PAGE_SIZE;
    let out = InitOut {
        major: KERNEL_VERSION,
        minor: KERNEL_MINOR_VERSION,
        max_readahead: request.max_readahead,
        flags: lower_half(flags),
        flags2: lower_half(flags >> 32),
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write,
        time_gran: TIME_GRANULARITY_NS,
        max_pages,
        ..InitOut::default()
    };
    Ok((out, Negotiated { flags, minor: request.minor.min(MINOR_MAX) }))
}

#[expect(clippy::cast_possible_truncation, reason = "the upper half is another word of the reply")]
fn lower_half(flags: u64) -> u32 {
    flags as u32
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
        let (out, negotiated) = negotiate(&guest(45, u64::MAX), &LIMITS).unwrap();
        assert_eq!(negotiated.flags, LIMITS.wanted);
        assert_eq!(out.flags2, (f::CREATE_SUPP_GROUP >> 32) as u32);
        assert_eq!((out.max_pages, out.max_write, out.max_readahead), (1020, 1020 * 4096, 131_072));
        let (out, negotiated) = negotiate(&guest(38, f::BIG_WRITES), &LIMITS).unwrap();
        assert_eq!((negotiated.flags, out.flags2, out.max_write), (f::BIG_WRITES, 0, 32 * 4096));
    }

    #[test]
    fn a_result_is_one_word_and_no_session_is_none() {
        let (_, negotiated) = negotiate(&guest(45, u64::MAX), &Limits { wanted: u64::MAX, ..LIMITS }).unwrap();
        let kept = Negotiated { flags: negotiated.flags & ((1 << FLAG_BITS) - 1), ..negotiated };
        assert_eq!(Negotiated::from_word(negotiated.to_word()), Some(kept));
        let (_, oldest) = negotiate(&guest(27, 0), &LIMITS).unwrap();
        assert_eq!(Negotiated::from_word(oldest.to_word()), Some(oldest));
        let (_, newest) = negotiate(&guest(u32::MAX, 0), &LIMITS).unwrap();
        assert_eq!(Negotiated::from_word(newest.to_word()), Some(Negotiated { flags: 0, minor: MINOR_MAX }));
        assert_eq!(Negotiated::from_word(0), None);
    }

    #[test]
    fn newer_majors_get_our_version_and_old_guests_are_refused() {
        let newer = InitRequest { major: 8, ..guest(0, 0) };
        assert!(matches!(negotiate(&newer, &LIMITS), Err(InitError::RetryWithOurs(out)) if out.major == 7));
        assert_eq!(negotiate(&guest(26, 0), &LIMITS), Err(InitError::TooOld));
        assert_eq!(negotiate(&InitRequest { major: 6, ..guest(45, 0) }, &LIMITS), Err(InitError::TooOld));
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
