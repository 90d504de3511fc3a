//! The split virtqueue as the device sees it (virtio 1.3 section 2.7): chains come out of the avail ring,
//! answers go into the used ring. Knows guest memory; knows nothing of FUSE operations or files.
#![forbid(unsafe_code)]

mod claim;
mod request;
mod responder;
mod ring;

pub use claim::Claim;
pub use request::{ChainFault, Request};
pub use responder::Responder;
pub use ring::{AvailJump, Ring};
