//! What the frontend has set up of one ring.

use std::os::fd::OwnedFd;

/// A ring as its messages describe it. Does not know guest memory: addresses are the frontend's, and never followed.
#[derive(Debug, Default)]
pub struct Ring {
    /// Entries.
    pub size: u32,
    /// Flags, index and addresses, as the payload of SET_VRING_ADDR.
    pub addresses: Vec<u8>,
    /// The avail index from which it is served.
    pub base: u32,
    /// By SET_VRING_ENABLE.
    pub is_enabled: bool,
    /// The frontend's kick.
    pub kick: Option<OwnedFd>,
    /// The call to the guest.
    pub call: Option<OwnedFd>,
    /// Where errors are signalled.
    pub err: Option<OwnedFd>,
}

impl Ring {
    /// Stops it at `base`; kick and call have to be set again (the specification's "Ring states").
    pub fn stop(&mut self, base: u32) {
        self.base = base;
        self.kick = None;
        self.call = None;
    }
}
