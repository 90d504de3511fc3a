//! Guest memory: the host address of a guest-physical range, page descriptors, the three parts of a virtqueue, and the log of
//! dirty pages. Knows nothing of the rules of descriptor chains, of FUSE or of files.
//!
//! Only this room accesses guest memory. Addresses come from a [`GuestMap`], and what holds an address borrows or owns the map,
//! so that the mapping outlives the address.

mod blocks;
mod buffers;
mod copy;
mod dirty;
mod mapping;
mod memory;
mod pages;
mod region;
mod ring_memory;
mod table;

pub use blocks::MemoryBlocks;
pub use buffers::{ChainBuffers, Collector, ReadableBuffers, WritableBuffers, Writer};
pub use dirty::DirtyLog;
pub use memory::{GuestMap, GuestPiece, MappedMemory};
pub use pages::{Appender, PageDescriptor};
pub use ring_memory::RingMemory;
pub use table::DescriptorTable;
