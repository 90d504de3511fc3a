//! The split virtqueue as the device sees it (virtio 1.3 section 2.7): chains come out of the avail ring,
//! answers go into the used ring. Knows guest memory; knows nothing of FUSE or files.
#![forbid(unsafe_code)]

mod chain;
mod ring;

pub use chain::{Chain, ChainFault};
pub use ring::{Arrivals, AvailJump, Ring};
