//! What the frontend has set up of one ring.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::FrontendReq;

use super::descriptors::optional;
use super::message::{Message, long_word};

/// A ring as its messages describe it. Does not know guest memory: addresses are the frontend's, and never followed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Ring {
    /// Entries.
    pub size: u32,
    /// Flags, index and addresses, as the payload of SET_VRING_ADDR.
    pub addresses: Vec<u8>,
    /// The avail index from which it is served.
    pub base: u32,
    /// The frontend has said so. A program that does not tell says it in any case.
    #[serde(default = "said")]
    pub has_base: bool,
    /// By SET_VRING_ENABLE; `None` where the frontend does not use it.
    pub enabled: Option<bool>,
    /// The frontend's kick.
    #[serde(with = "optional")]
    pub kick: Option<OwnedFd>,
    /// The call to the guest.
    #[serde(with = "optional")]
    pub call: Option<OwnedFd>,
    /// Where errors are signalled.
    #[serde(with = "optional")]
    pub err: Option<OwnedFd>,
}

fn said() -> bool {
    true
}

impl Ring {
    /// Sets where it is served from.
    pub fn set_base(&mut self, base: u32) {
        self.base = base;
        self.has_base = true;
    }

    /// Stops it at `base`; kick and call have to be set again (the specification's "Ring states").
    pub fn stop(&mut self, base: u32) {
        self.set_base(base);
        self.kick = None;
        self.call = None;
    }

    /// Adds the messages that set it up in another worker, as ring number `index`. `enables`: SET_VRING_ENABLE was agreed on. `is_known`:
    /// whether an address is in the guest's memory; that of a ring which was stopped may not be any more. EMFILE where the process has
    /// too many descriptors.
    pub fn messages(&self, index: u32, (enables, is_known): (bool, impl Fn(u64) -> bool), messages: &mut Vec<Message>) -> io::Result<()> {
        let mut say = |request, payload: Vec<u8>, fds| messages.push(Message::new(request, 0, payload, fds));
        let state = |value: u32| index.to_ne_bytes().into_iter().chain(value.to_ne_bytes()).collect();
        if self.size > 0 {
            say(FrontendReq::SET_VRING_NUM, state(self.size), Vec::new());
        }
        // The worker takes the first for one that was said before.
        if self.has_base {
            say(FrontendReq::SET_VRING_BASE, state(self.base), Vec::new());
        }
        // Index and flags, of 4 bytes each; then the addresses of the descriptors, the used and the avail ring.
        if !self.addresses.is_empty() && [8, 16, 24].iter().all(|at| is_known(long_word(&self.addresses, *at))) {
            say(FrontendReq::SET_VRING_ADDR, self.addresses.clone(), Vec::new());
        }
        if let Some(enabled) = self.enabled.filter(|_| enables) {
            say(FrontendReq::SET_VRING_ENABLE, state(enabled.into()), Vec::new());
        }
        let events =
            [(FrontendReq::SET_VRING_ERR, &self.err), (FrontendReq::SET_VRING_CALL, &self.call), (FrontendReq::SET_VRING_KICK, &self.kick)];
        for (request, event) in events {
            if let Some(event) = event {
                say(request, u64::from(index).to_ne_bytes().to_vec(), vec![event.try_clone()?]);
            }
        }
        Ok(())
    }
}
