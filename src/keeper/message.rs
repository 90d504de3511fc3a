//! A message of vhost-user (the specification's "Message Specification"): header, payload, descriptors. Does not know what a request
//! means beyond its number.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

use super::descriptors::several;

/// Request, flags and size of the payload, of 4 bytes each, in the host's byte order.
pub const HEADER_LEN: usize = 12;
/// The worker ends a connection that brings a longer payload.
pub const PAYLOAD_MAX: usize = MAX_MSG_SIZE;
/// Descriptors of one message. The kernel closes what comes beyond them, and the worker refuses even fewer.
pub const FDS_MAX: usize = MAX_ATTACHED_FD_ENTRIES;

/// The version of the protocol, in the lower two bits of the flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
/// The message answers the request of its number.
pub const REPLY: u32 = 1 << 2;
/// The frontend asks for an answer (REPLY_ACK).
const NEED_REPLY: u32 = 1 << 3;
/// Version, reply, and need for a reply; the others are reserved.
const FLAGS_KNOWN: u32 = 0xf;

/// A message, or what came instead of one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Message {
    /// Header and payload as they came.
    pub bytes: Vec<u8>,
    /// The descriptors that came with them.
    #[serde(with = "several")]
    pub fds: Vec<OwnedFd>,
}

/// The 16-bit number at byte `at`; 0 where there is none.
pub fn half_word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u16::from_ne_bytes(*word))
}

/// The 32-bit number at byte `at`; 0 where there is none.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

/// The 64-bit number at byte `at`; 0 where there is none.
pub fn long_word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

/// The size of the payload that a header announces; `None` where the worker will end the connection for this header.
pub fn payload_len(header: &[u8]) -> Option<usize> {
    let (request, flags, size) = (word(header, 0), word(header, 4), word(header, 8) as usize);
    let is_valid =
        FrontendReq::try_from(request).is_ok() && flags & VERSION_MASK == VERSION && flags & !FLAGS_KNOWN == 0 && size <= PAYLOAD_MAX;
    is_valid.then_some(size)
}

impl Message {
    /// A message put together here. `flags` without its version.
    pub fn new(request: FrontendReq, flags: u32, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = [u32::from(request), flags | VERSION, size];
        let bytes = header.iter().flat_map(|word| word.to_ne_bytes()).chain(payload).collect();
        Message { bytes, fds }
    }

    /// The same message, with descriptors of its own. EMFILE where the process has too many.
    pub fn try_clone(&self) -> io::Result<Message> {
        let fds = self.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok(Message { bytes: self.bytes.clone(), fds })
    }

    /// The number of its request.
    pub fn number(&self) -> u32 {
        word(&self.bytes, 0)
    }

    /// Whether the frontend asks for an answer that only says whether it was accepted.
    pub fn wants_reply(&self) -> bool {
        word(&self.bytes, 4) & NEED_REPLY != 0
    }

    /// Whether this is an answer that says that `request` was not accepted.
    pub fn refuses(&self, request: &Message) -> bool {
        let is_acknowledgement = request.wants_reply() && self.payload().len() == size_of::<u64>();
        is_acknowledgement && !request.has_own_reply() && long_word(self.payload(), 0) != 0
    }

    /// Whether the worker answers it with what it asks for.
    pub fn has_own_reply(&self) -> bool {
        matches!(
            self.request(),
            Some(
                FrontendReq::GET_FEATURES
                    | FrontendReq::GET_PROTOCOL_FEATURES
                    | FrontendReq::GET_VRING_BASE
                    | FrontendReq::GET_QUEUE_NUM
                    | FrontendReq::GET_CONFIG
                    | FrontendReq::GET_MAX_MEM_SLOTS
                    | FrontendReq::SET_LOG_BASE
            )
        )
    }

    /// The request; `None` where it has an unknown number.
    pub fn request(&self) -> Option<FrontendReq> {
        FrontendReq::try_from(word(&self.bytes, 0)).ok()
    }

    /// Whether it is an answer of the worker's.
    pub fn is_reply(&self) -> bool {
        word(&self.bytes, 4) & REPLY != 0
    }

    /// Changes the payload where it begins with a 64-bit number.
    pub fn change_long_word(&mut self, change: impl FnOnce(u64) -> u64) {
        if let Some(word) = self.bytes.get_mut(HEADER_LEN..).and_then(|payload| payload.first_chunk_mut()) {
            *word = change(u64::from_ne_bytes(*word)).to_ne_bytes();
        }
    }

    /// What follows the header.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
        [request, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_header_that_the_worker_refuses_announces_nothing() {
        assert_eq!(payload_len(&header(1, 1, 0)), Some(0));
        assert_eq!(payload_len(&header(5, 9, 4096)), Some(4096));
        for (request, flags, size) in [(0, 1, 0), (9999, 1, 0), (1, 0, 0), (1, 2, 0), (1, 0x11, 0), (1, 1, 4097), (1, 1, u32::MAX)] {
            assert_eq!(payload_len(&header(request, flags, size)), None, "{request} {flags} {size}");
        }
    }

    #[test]
    fn numbers_beyond_the_end_are_zero() {
        assert_eq!(word(&[1, 0, 0], 0), 0);
        assert_eq!(word(&[1, 0, 0, 0], 0), u32::from_ne_bytes([1, 0, 0, 0]));
        assert_eq!(word(&[1; 8], 6), 0);
        assert_eq!(long_word(&[1; 8], 1), 0);
        assert_eq!(long_word(&[1; 8], usize::MAX), 0);
    }
}
