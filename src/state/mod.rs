//! Records that outlive a worker: plain slots of atomics in one memfd-backed arena. Knows what a record
//! holds, not what it means on the host.

mod arena;
mod budget;
mod handles;
mod inodes;
mod slots;

pub use arena::{Arena, ArenaError};
pub use budget::{Budget, Reserved};
pub use handles::{HandleTable, HeldFile, OpenFile, TABLE_LEN as HANDLES_LEN};
pub use inodes::{InodeIdentity, InodeRecords, inodes_max, table_len as inodes_len};
pub use slots::TableFull;
