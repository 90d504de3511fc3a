//! gatherfs: a virtio-fs device that runs as a vhost-user daemon.
//!
//! Each guest READ or WRITE, whatever the number of its descriptors, becomes one vectored
//! host I/O. `docs/ARCHITECTURE.md` is the map of these modules; imports go down its floors only.

// Tests may cast.
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation, clippy::cast_sign_loss))]

pub mod config;
pub mod device;
pub mod fuse;
pub mod guest;
pub mod host;
pub mod io;
pub mod keeper;
pub mod metrics;
pub mod outer;
pub mod sandbox;
pub mod state;
pub mod sys;
pub mod trace;
pub mod types;
pub mod virtqueue;
