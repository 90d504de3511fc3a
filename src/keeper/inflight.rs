//! The protocol feature INFLIGHT_SHMFD (the specification's "Inflight I/O tracking"), which the keeper has alone: a file that the
//! frontend gets, and shows when it connects again. What counts is which file it is. Nothing is written to it, so that it stays what the
//! specification calls uninitialized: what is in flight is in the records of the workers. Does not know those, or the worker.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, MemfdFlags, StatxFlags, statx};
use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::descriptors::one;
use super::message::{Message, half_word, long_word};

/// Queues of one file at most, as many as a kick can name.
const QUEUES_MAX: u16 = 256;
/// Entries of a ring at most (virtio 1.3, 2.7).
const ENTRIES_MAX: u16 = 1 << 15;
/// What the specification puts before a queue's entries, and each of them: QueueRegionSplit and DescStateSplit, in bytes.
const HEADING_LEN: u64 = 16;
const ENTRY_LEN: u64 = 16;
/// A queue begins at a multiple of it.
const ALIGNMENT: u64 = 64;
/// In the payload: the bytes of the file, its offset, of 8 bytes each, the number of queues and their entries, of 2 bytes each. What
/// follows is padding.
const PAYLOAD_MIN: usize = 20;

/// The file of one device. No two have the same, so that it tells that a frontend is the one that got it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Region {
    #[serde(with = "one")]
    file: OwnedFd,
    /// A worker that a guest has taken over can put another file at the number of this one.
    identity: Identity,
}

/// Which file: its device and its number there. No other file has them as long as this one is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: (u32, u32),
    ino: u64,
}

impl Identity {
    /// The file system is not asked: it may be one that does not respond. No failpoint either, which are for workers.
    fn of(file: BorrowedFd<'_>) -> io::Result<Identity> {
        let st = statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
        Ok(Identity { device: (st.stx_dev_major, st.stx_dev_minor), ino: st.stx_ino })
    }
}

impl Region {
    /// Takes no memory. EMFILE, ENFILE or ENOMEM; EFBIG where RLIMIT_FSIZE is lower.
    fn new(len: u64) -> io::Result<Region> {
        let file = rustix::fs::memfd_create(c"gatherfs-inflight", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len)?;
        Ok(Region { identity: Identity::of(file.as_fd())?, file })
    }

    /// Whether `file` is this one.
    pub fn is(&self, file: BorrowedFd<'_>) -> bool {
        Identity::of(file).is_ok_and(|identity| identity == self.identity)
    }

    /// Adds the number of its descriptor to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.push(self.file.as_raw_fd());
    }
}

/// How far a frontend has agreed on the feature.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Inflight {
    is_offered: bool,
    is_agreed: bool,
    region: Option<Region>,
}

impl Inflight {
    /// Nothing is agreed on.
    pub fn new(is_offered: bool) -> Inflight {
        Inflight { is_offered, ..Inflight::default() }
    }

    /// Adds the feature to what the worker offers.
    pub fn offer(&self, reply: &mut Message) {
        if self.is_offered && reply.request() == Some(FrontendReq::GET_PROTOCOL_FEATURES) {
            reply.change_long_word(|features| features | VhostUserProtocolFeatures::INFLIGHT_SHMFD.bits());
        }
    }

    /// Takes the feature out of what the worker is told, which does not know it.
    pub fn agree(&mut self, request: &mut Message) {
        if self.is_offered && request.request() == Some(FrontendReq::SET_PROTOCOL_FEATURES) {
            let feature = VhostUserProtocolFeatures::INFLIGHT_SHMFD.bits();
            self.is_agreed = long_word(request.payload(), 0) & feature != 0;
            request.change_long_word(|features| features & !feature);
        }
    }

    /// Whether `request` is for this module, and not for the worker.
    pub fn answers(&self, request: &Message) -> bool {
        self.is_agreed && matches!(request.request(), Some(FrontendReq::GET_INFLIGHT_FD | FrontendReq::SET_INFLIGHT_FD))
    }

    /// The reply to GET_INFLIGHT_FD: another file. One of 0 bytes without a descriptor where there is none, as libvhost-user answers.
    pub fn give(&mut self, request: &Message) -> Message {
        let made = layout(request.payload()).map(|len| {
            let region = Region::new(len)?;
            let copy = region.file.try_clone()?;
            self.region = Some(region);
            Ok((len, copy))
        });
        let (len, file) = match made {
            Some(Ok((len, file))) => (len, Some(file)),
            Some(Err(e)) => {
                let e: io::Error = e;
                tracing::error!("the VMM gets no file for INFLIGHT_SHMFD, and its session ends when it disconnects: {e}");
                (0, None)
            }
            None => (0, None),
        };
        let rest = request.payload().get(16..).unwrap_or_default();
        let payload = len.to_ne_bytes().into_iter().chain([0; 8]).chain(rest.iter().copied()).collect();
        Message::new(FrontendReq::GET_INFLIGHT_FD, super::message::REPLY, payload, file.into_iter().collect())
    }

    /// SET_INFLIGHT_FD. A file that was not made for this frontend is accepted, and no reason to keep its session: there is nothing to go on
    /// with. False where the message makes no sense.
    pub fn take(&mut self, request: &Message) -> bool {
        let Some(file) = shown(request) else { return false };
        self.region.take_if(|region| !region.is(file));
        true
    }

    /// The frontend has shown `region`, which one before it has got.
    pub fn know(&mut self, region: Region) {
        self.region = Some(region);
    }

    /// Whether the frontend has a file to show when it connects again.
    pub fn can_return(&self) -> bool {
        self.is_agreed && self.region.is_some()
    }

    /// Its file.
    pub fn into_region(self) -> Option<Region> {
        self.region.filter(|_| self.is_agreed)
    }

    /// Adds the number of its descriptor to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        self.region.iter().for_each(|region| region.name_descriptors(named));
    }
}

/// The file that SET_INFLIGHT_FD brings. `None` where the message makes no sense, or is another one.
pub fn shown(request: &Message) -> Option<BorrowedFd<'_>> {
    let is_set = request.request() == Some(FrontendReq::SET_INFLIGHT_FD);
    let file = request.fds.first().filter(|_| is_set && request.fds.len() == 1);
    file.filter(|_| layout(request.payload()).is_some()).map(AsFd::as_fd)
}

/// The bytes of the file that a payload asks for, or describes. `None` where it makes no sense.
fn layout(payload: &[u8]) -> Option<u64> {
    let (queues, entries) = (half_word(payload, 16), half_word(payload, 18));
    let is_valid = payload.len() >= PAYLOAD_MIN && (1..=QUEUES_MAX).contains(&queues) && (1..=ENTRIES_MAX).contains(&entries);
    is_valid.then(|| u64::from(queues) * (HEADING_LEN + ENTRY_LEN * u64::from(entries)).next_multiple_of(ALIGNMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(queues: u16, entries: u16) -> Vec<u8> {
        [&[0; 16][..], &queues.to_ne_bytes(), &entries.to_ne_bytes(), &[0; 4]].concat()
    }

    fn get(queues: u16, entries: u16) -> Message {
        Message::new(FrontendReq::GET_INFLIGHT_FD, 0, payload(queues, entries), Vec::new())
    }

    fn agreed() -> Inflight {
        let mut inflight = Inflight::new(true);
        let features = VhostUserProtocolFeatures::all().bits().to_ne_bytes().to_vec();
        let mut request = Message::new(FrontendReq::SET_PROTOCOL_FEATURES, 0, features, Vec::new());
        inflight.agree(&mut request);
        assert_eq!(
            long_word(request.payload(), 0),
            (VhostUserProtocolFeatures::all() - VhostUserProtocolFeatures::INFLIGHT_SHMFD).bits(),
            "the worker is not told"
        );
        inflight
    }

    #[test]
    fn a_file_is_as_long_as_the_specification_says_and_takes_no_memory() {
        let mut inflight = agreed();
        for (queues, entries, len) in [(1, 1, 64), (2, 256, 2 * 4160), (3, 1024, 3 * 16448), (256, 32768, 256 * 524_352)] {
            let reply = inflight.give(&get(queues, entries));
            assert!(reply.is_reply() && reply.number() == 31 && reply.payload().len() == 24);
            assert_eq!((long_word(reply.payload(), 0), long_word(reply.payload(), 8)), (len, 0));
            assert_eq!((half_word(reply.payload(), 16), half_word(reply.payload(), 18)), (queues, entries));
            let st = rustix::fs::fstat(&reply.fds[0]).unwrap();
            assert_eq!((st.st_size as u64, st.st_blocks), (len, 0));
        }
    }

    #[test]
    fn absurd_numbers_get_no_file_and_leave_the_one_before() {
        let mut inflight = agreed();
        let file = inflight.give(&get(2, 8)).fds.remove(0);
        let mut refused: Vec<Message> =
            [(0, 8), (8, 0), (257, 8), (u16::MAX, 8), (8, 32769), (8, u16::MAX)].map(|(queues, entries)| get(queues, entries)).into();
        for len in [0, 8, 16, 19] {
            refused.push(Message::new(FrontendReq::GET_INFLIGHT_FD, 0, vec![1; len], Vec::new()));
        }
        for request in refused {
            let reply = inflight.give(&request);
            assert_eq!((long_word(reply.payload(), 0), reply.fds.len()), (0, 0), "{request:?}");
        }
        assert!(inflight.can_return() && inflight.into_region().unwrap().is(file.as_fd()));
    }

    #[test]
    fn a_file_that_was_not_given_is_accepted_and_not_known_again() {
        let set = |fds| Message::new(FrontendReq::SET_INFLIGHT_FD, 0, payload(2, 8), fds);
        let mut inflight = agreed();
        let (first, second) = (inflight.give(&get(2, 8)).fds.remove(0), inflight.give(&get(2, 8)).fds.remove(0));
        for _ in 0..2 {
            assert!(inflight.take(&set(vec![second.try_clone().unwrap()])));
            assert!(inflight.can_return());
        }
        assert!(!inflight.take(&set(Vec::new())), "without a descriptor");
        assert!(!inflight.take(&set(vec![first.try_clone().unwrap(), second])), "with two");
        assert!(!inflight.take(&Message::new(FrontendReq::SET_INFLIGHT_FD, 0, Vec::new(), vec![first.try_clone().unwrap()])));
        assert!(inflight.can_return());
        assert!(inflight.take(&set(vec![first])));
        assert!(!inflight.can_return(), "the one before");
    }

    #[test]
    fn what_is_not_offered_is_neither_agreed_on_nor_answered() {
        let mut inflight = Inflight::new(false);
        let features = u64::MAX.to_ne_bytes().to_vec();
        let mut request = Message::new(FrontendReq::SET_PROTOCOL_FEATURES, 0, features, Vec::new());
        inflight.agree(&mut request);
        assert_eq!(long_word(request.payload(), 0), u64::MAX);
        assert!(!inflight.answers(&get(1, 1)) && agreed().answers(&get(1, 1)));
        let mut reply = Message::new(FrontendReq::GET_PROTOCOL_FEATURES, super::super::message::REPLY, vec![0; 8], Vec::new());
        inflight.offer(&mut reply);
        assert_eq!(long_word(reply.payload(), 0), 0);
        Inflight::new(true).offer(&mut reply);
        assert_eq!(long_word(reply.payload(), 0), VhostUserProtocolFeatures::INFLIGHT_SHMFD.bits());
    }
}
