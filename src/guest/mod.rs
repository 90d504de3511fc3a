//! Guest memory as a place: which host address a guest-physical range has, the page descriptors that
//! point into it, where a virtqueue's rings lie, and the log of pages that we dirtied. Knows nothing of
//! chains' rules, FUSE or files.
//!
//! Everything that touches guest memory is here, and sound by construction: addresses are made by a
//! [`GuestMap`] alone, and whatever holds one borrows or keeps the map.

mod buffers;
mod copy;
mod dirty;
mod mapping;
mod memory;
mod pages;
mod ring_memory;
mod table;

pub use buffers::{ChainBuffers, Collector, ReadableBuffers, WritableBuffers};
pub use dirty::DirtyLog;
pub use memory::{GuestMap, GuestPiece, MappedMemory};
pub use pages::{Appender, PageDescriptor};
pub use ring_memory::RingMemory;
pub use table::DescriptorTable;
