//! Guest memory as a place: which host address a guest-physical range has, the page descriptors that
//! point into it, and the log of pages that we dirtied. Knows nothing of queues, FUSE or files.

mod buffers;
mod dirty;
mod memory;

pub use buffers::{PageDescriptor, PageList, ReadableBuffers, WritableBuffers};
pub use dirty::DirtyLog;
pub use memory::{GuestMap, GuestPiece, GuestRegion, MappedMemory, RingView};
