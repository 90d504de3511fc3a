//! The record of a session: what a frontend has set up so far, with the descriptors that came with it, and the messages that set it
//! up again in another worker. A message counts when the worker owes no answer to it any more.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use super::descriptors::{one, optional};
use super::message::{Message, long_word, word};
use super::ring::Ring;

/// Rings that a kick's message can name, in 8 bits.
const RINGS_MAX: u32 = 256;
/// Regions of guest memory, as many as vhost-user-backend takes.
const REGIONS_MAX: usize = 509;
/// Regions of one SET_MEM_TABLE: each has a descriptor. A frontend with more adds them one by one (CONFIGURE_MEM_SLOTS).
const TABLE_REGIONS_MAX: usize = MAX_ATTACHED_FD_ENTRIES;
/// A region in SET_MEM_TABLE: guest address, size, address in the frontend, offset in its file, of 8 bytes each.
const REGION_LEN: usize = 32;
/// What precedes the regions of SET_MEM_TABLE and the region of ADD_MEM_REG: their number, or padding.
const BEFORE_REGIONS: usize = 8;
/// In the payload of SET_VRING_KICK, CALL and ERR: no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// A region of guest memory. Nothing of it is mapped.
#[derive(Debug, Serialize, Deserialize)]
pub struct Region {
    /// Guest address, size, address in the frontend and offset in its file, as they came.
    pub layout: [u8; REGION_LEN],
    /// Its file.
    #[serde(with = "one")]
    pub file: OwnedFd,
    /// It came after the log of dirty pages, which need not reach it.
    pub is_behind_log: bool,
}

impl Region {
    fn try_clone(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    fn guest_address(&self) -> u64 {
        long_word(&self.layout, 0)
    }

    /// Guest address and size, by which a region is named.
    fn place(layout: &[u8; REGION_LEN]) -> (u64, u64) {
        (long_word(layout, 0), long_word(layout, 8))
    }

    /// Whether `address` of the frontend's is in it.
    fn has(&self, address: u64) -> bool {
        let (size, start) = (long_word(&self.layout, 8), long_word(&self.layout, 16));
        address.checked_sub(start).is_some_and(|offset| offset < size)
    }
}

/// The log of dirty pages.
#[derive(Debug, Serialize, Deserialize)]
pub struct DirtyLog {
    /// Size and offset, as they came.
    pub layout: Vec<u8>,
    /// Its file.
    #[serde(with = "one")]
    pub file: OwnedFd,
}

/// What was set up.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Session {
    /// SET_OWNER came.
    pub has_owner: bool,
    /// GET_FEATURES was answered: the worker's library only then looks at what was agreed on.
    pub has_features: bool,
    /// Of SET_FEATURES.
    pub features: Option<u64>,
    /// Of SET_PROTOCOL_FEATURES.
    pub protocol_features: Option<u64>,
    /// Guest memory.
    pub memory: Vec<Region>,
    /// Rings by their index.
    pub rings: BTreeMap<u32, Ring>,
    /// The channel for requests of the backend.
    #[serde(with = "optional")]
    pub backend_channel: Option<OwnedFd>,
    /// The log of dirty pages.
    pub dirty_log: Option<DirtyLog>,
}

impl Session {
    /// Takes note of the worker's reply to a request.
    pub fn record_reply(&mut self, reply: &Message) {
        let payload = reply.payload();
        if reply.request() == Some(FrontendReq::GET_VRING_BASE)
            && let Some(ring) = self.ring(word(payload, 0))
        {
            ring.stop(word(payload, 4));
        }
    }

    /// Takes note of a request.
    pub fn record(&mut self, message: Message) {
        let Some(request) = message.request() else { return };
        let payload = message.bytes.get(super::message::HEADER_LEN..).unwrap_or_default();
        let mut fds = message.fds.into_iter();
        match request {
            FrontendReq::SET_OWNER => self.has_owner = true,
            FrontendReq::GET_FEATURES => self.has_features = true,
            FrontendReq::SET_FEATURES => self.set_features(long_word(payload, 0)),
            FrontendReq::RESET_OWNER => {
                self.has_owner = false;
                (self.features, self.protocol_features) = (None, None);
            }
            FrontendReq::SET_PROTOCOL_FEATURES => self.protocol_features = Some(long_word(payload, 0)),
            FrontendReq::SET_MEM_TABLE => {
                let layouts = payload.get(BEFORE_REGIONS..).unwrap_or_default().as_chunks::<REGION_LEN>().0;
                let count = word(payload, 0) as usize;
                let is_behind_log = self.dirty_log.is_some();
                let region = |(layout, file): (&[u8; REGION_LEN], OwnedFd)| Region { layout: *layout, file, is_behind_log };
                self.memory = layouts.iter().take(count).zip(fds).map(region).collect();
            }
            FrontendReq::ADD_MEM_REG => {
                if let (Some(layout), Some(file)) = (region_of(payload), fds.next())
                    && self.memory.len() < REGIONS_MAX
                {
                    self.memory.push(Region { layout, file, is_behind_log: self.dirty_log.is_some() });
                }
            }
            FrontendReq::REM_MEM_REG => {
                if let Some(removed) = region_of(payload) {
                    self.memory.retain(|region| Region::place(&region.layout) != Region::place(&removed));
                }
            }
            FrontendReq::SET_LOG_BASE => {
                self.dirty_log = fds.next().map(|file| DirtyLog { layout: payload.to_vec(), file });
                self.memory.iter_mut().for_each(|region| region.is_behind_log = false);
            }
            FrontendReq::SET_BACKEND_REQ_FD => self.backend_channel = fds.next(),
            FrontendReq::SET_VRING_NUM => self.change_ring(payload, |ring, size| ring.size = size),
            FrontendReq::SET_VRING_BASE => self.change_ring(payload, |ring, base| ring.set_base(base)),
            FrontendReq::SET_VRING_ENABLE => self.change_ring(payload, |ring, enable| ring.enabled = Some(enable != 0)),
            FrontendReq::SET_VRING_ADDR => {
                let addresses = payload.to_vec();
                self.change_ring(payload, |ring, _| ring.addresses = addresses);
            }
            FrontendReq::SET_VRING_KICK => self.set_event(payload, fds.next(), |ring| &mut ring.kick),
            FrontendReq::SET_VRING_CALL => self.set_event(payload, fds.next(), |ring| &mut ring.call),
            FrontendReq::SET_VRING_ERR => self.set_event(payload, fds.next(), |ring| &mut ring.err),
            FrontendReq::RESET_DEVICE => {
                self.features = None;
                for ring in self.rings.values_mut() {
                    ring.enabled = ring.enabled.and(Some(false));
                }
            }
            _ => {}
        }
    }

    fn set_features(&mut self, features: u64) {
        let logs = |features: u64| features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        if self.features.is_some_and(logs) && !logs(features) {
            // The migration is over or was given up.
            self.dirty_log = None;
        }
        self.features = Some(features);
    }

    /// Whether the worker answers every request that asks for it.
    pub fn acknowledges(&self) -> bool {
        self.protocol_features.is_some_and(|features| features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0)
    }

    fn ring(&mut self, index: u32) -> Option<&mut Ring> {
        (index < RINGS_MAX).then(|| self.rings.entry(index).or_default())
    }

    /// A ring's index and a number are the payload.
    fn change_ring(&mut self, payload: &[u8], change: impl FnOnce(&mut Ring, u32)) {
        let value = word(payload, 4);
        if let Some(ring) = self.ring(word(payload, 0)) {
            change(ring, value);
        }
    }

    /// A ring's index in the lower 8 bits is the payload.
    fn set_event(&mut self, payload: &[u8], fd: Option<OwnedFd>, event: impl FnOnce(&mut Ring) -> &mut Option<OwnedFd>) {
        let payload = long_word(payload, 0);
        let index = payload.to_ne_bytes();
        let index = if cfg!(target_endian = "big") { index[7] } else { index[0] };
        if let Some(ring) = self.ring(index.into()) {
            *event(ring) = fd.filter(|_| payload & NO_FD == 0);
        }
    }
}

/// The messages that set up in another worker what is recorded here, in an order in which every one finds what it needs: the
/// features, memory before addresses in it, and a ring's kick, which starts it, last. The worker ends the connection on one that it
/// refuses.
impl Session {
    /// These messages, with descriptors of their own. EMFILE where the process has too many.
    pub fn messages(&self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        let mut say = |request, payload: Vec<u8>, fds: Vec<OwnedFd>| messages.push(Message::new(request, 0, payload, fds));
        if self.has_owner {
            say(FrontendReq::SET_OWNER, Vec::new(), Vec::new());
        }
        if self.has_features {
            say(FrontendReq::GET_FEATURES, Vec::new(), Vec::new());
        }
        if let Some(features) = self.features {
            say(FrontendReq::SET_FEATURES, features.to_ne_bytes().to_vec(), Vec::new());
        }
        if let Some(features) = self.protocol_features {
            say(FrontendReq::SET_PROTOCOL_FEATURES, features.to_ne_bytes().to_vec(), Vec::new());
        }
        let mut regions: Vec<&Region> = self.memory.iter().collect();
        regions.sort_by_key(|region| region.guest_address());
        let is_logged = |region: &&&Region| self.dirty_log.is_none() || !region.is_behind_log;
        memory_messages(&regions.iter().filter(is_logged).copied().collect::<Vec<_>>(), &mut messages)?;
        if let Some(log) = &self.dirty_log {
            messages.push(Message::new(FrontendReq::SET_LOG_BASE, 0, log.layout.clone(), vec![log.file.try_clone()?]));
            if self.memory.iter().any(|region| region.is_behind_log) {
                memory_messages(&regions, &mut messages)?;
            }
        }
        if let Some(channel) = &self.backend_channel {
            messages.push(Message::new(FrontendReq::SET_BACKEND_REQ_FD, 0, Vec::new(), vec![channel.try_clone()?]));
        }
        let enables = self.features.is_some_and(|features| features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0);
        let is_known = |address| self.memory.iter().any(|region| region.has(address));
        for (index, ring) in &self.rings {
            ring.messages(*index, (enables, is_known), &mut messages)?;
        }
        Ok(messages)
    }

    /// Adds the descriptors that this owns to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.extend(self.memory.iter().map(|region| region.file.as_raw_fd()));
        named.extend(self.dirty_log.iter().map(|log| log.file.as_raw_fd()));
        named.extend(self.backend_channel.iter().map(AsRawFd::as_raw_fd));
        let events = self.rings.values().flat_map(|ring| [&ring.kick, &ring.call, &ring.err]);
        named.extend(events.flatten().map(AsRawFd::as_raw_fd));
    }
}

/// Adds the messages that make `regions`, in the order of their addresses, the guest's memory.
fn memory_messages(regions: &[&Region], messages: &mut Vec<Message>) -> io::Result<()> {
    let (table, added) = regions.split_at(regions.len().min(TABLE_REGIONS_MAX));
    if !table.is_empty() {
        let count = u32::try_from(table.len()).unwrap_or(u32::MAX).to_ne_bytes();
        let layouts = table.iter().flat_map(|region| region.layout);
        let payload = count.into_iter().chain([0; 4]).chain(layouts).collect();
        let files = table.iter().map(|region| region.try_clone()).collect::<io::Result<_>>()?;
        messages.push(Message::new(FrontendReq::SET_MEM_TABLE, 0, payload, files));
    }
    for region in added {
        let payload = [0; BEFORE_REGIONS].into_iter().chain(region.layout).collect();
        messages.push(Message::new(FrontendReq::ADD_MEM_REG, 0, payload, vec![region.try_clone()?]));
    }
    Ok(())
}

/// The region in the payload of ADD_MEM_REG and REM_MEM_REG.
fn region_of(payload: &[u8]) -> Option<[u8; REGION_LEN]> {
    payload.get(BEFORE_REGIONS..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    fn message(request: FrontendReq, flags: u32, payload: &[u8], fds: usize) -> Message {
        let header = [u32::from(request), flags, u32::try_from(payload.len()).unwrap()];
        let bytes = header.iter().flat_map(|word| word.to_ne_bytes()).chain(payload.iter().copied()).collect();
        Message { bytes, fds: (0..fds).map(|_| fd()).collect() }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn longs(longs: &[u64]) -> Vec<u8> {
        longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
    }

    #[test]
    fn what_is_set_up_is_recorded_and_what_is_taken_back_is_not() {
        let mut session = Session::default();
        let mut say = |request, payload: &[u8], fds| session.record(message(request, 1, payload, fds));
        say(FrontendReq::SET_OWNER, &[], 0);
        say(FrontendReq::SET_FEATURES, &longs(&[0x1234]), 0);
        say(FrontendReq::SET_PROTOCOL_FEATURES, &longs(&[0x5678]), 0);
        let table = [words(&[2, 0]), longs(&[0, 4096, 1, 0, 8192, 4096, 2, 4096])].concat();
        say(FrontendReq::SET_MEM_TABLE, &table, 2);
        say(FrontendReq::ADD_MEM_REG, &longs(&[0, 1 << 30, 4096, 3, 0]), 1);
        say(FrontendReq::REM_MEM_REG, &longs(&[0, 8192, 4096, 2, 0]), 0);
        say(FrontendReq::SET_LOG_BASE, &longs(&[4096, 0]), 1);
        say(FrontendReq::SET_BACKEND_REQ_FD, &[], 1);
        say(FrontendReq::SET_VRING_NUM, &words(&[1, 256]), 0);
        say(FrontendReq::SET_VRING_ADDR, &[words(&[1, 0]), longs(&[1, 2, 3, 4])].concat(), 0);
        say(FrontendReq::SET_VRING_BASE, &words(&[1, 9]), 0);
        say(FrontendReq::SET_VRING_KICK, &longs(&[1]), 1);
        say(FrontendReq::SET_VRING_CALL, &longs(&[1]), 1);
        say(FrontendReq::SET_VRING_ERR, &longs(&[1 | NO_FD]), 0);
        say(FrontendReq::SET_VRING_ENABLE, &words(&[1, 1]), 0);
        assert!(session.has_owner);
        assert_eq!((session.features, session.protocol_features), (Some(0x1234), Some(0x5678)));
        let begins: Vec<u64> = session.memory.iter().map(|region| long_word(&region.layout, 0)).collect();
        assert_eq!(begins, [0, 1 << 30]);
        assert!(session.dirty_log.is_some() && session.backend_channel.is_some());
        let ring = &session.rings[&1];
        assert_eq!((ring.size, ring.base, ring.enabled, ring.addresses.len()), (256, 9, Some(true), 40));
        assert!(ring.kick.is_some() && ring.call.is_some() && ring.err.is_none());
        let started = |session: &Session| session.rings.values().filter(|ring| ring.kick.is_some()).count();
        assert_eq!(started(&session), 1);

        session.record(message(FrontendReq::GET_VRING_BASE, 1, &words(&[1, 0]), 0));
        assert_eq!(started(&session), 1, "a request is no answer");
        session.record_reply(&message(FrontendReq::GET_VRING_BASE, 5, &words(&[1, 77]), 0));
        assert_eq!((started(&session), session.rings[&1].base), (0, 77));
        session.record(message(FrontendReq::RESET_DEVICE, 1, &[], 0));
        assert!(session.features.is_none() && session.rings[&1].enabled == Some(false));
    }

    #[test]
    fn short_and_wild_payloads_are_bounded() {
        let mut session = Session::default();
        for request in (1..=44).filter_map(|number| FrontendReq::try_from(number).ok()) {
            for len in [0, 1, 7, 8, 12, 40, 4096] {
                session.record(message(request, 1, &vec![0xff; len], 3));
                session.record_reply(&message(request, 5, &vec![0xff; len], 0));
            }
        }
        for index in 0..1000 {
            session.record(message(FrontendReq::SET_VRING_NUM, 1, &words(&[index, 1]), 0));
            session.record(message(FrontendReq::ADD_MEM_REG, 1, &longs(&[0, index.into(), 1, 1, 0]), 1));
        }
        assert!(session.rings.len() <= RINGS_MAX as usize && session.memory.len() <= REGIONS_MAX);
    }
}
