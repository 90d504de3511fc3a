//! Records of inodes and open files: slots of atomics in one shared mapping. Knows the fields of a record, not what they mean on
//! the host.

mod arena;
mod attached;
mod attached_inodes;
mod budget;
mod check;
mod handles;
mod header;
mod index;
mod inodes;
mod locks;
mod mounts;
mod request_slot;
mod requests;
mod session;
mod slots;

#[cfg(test)]
pub(crate) use arena::PAGE_LEN_MAX;
pub use arena::{Arena, ArenaError};
pub use attached::named_twice;
pub use attached_inodes::{AttachedInodes, Pinned};
pub use budget::{Budget, Reserved};
pub use handles::{HandleTable, HeldFile, OpenFile, TABLE_LEN as HANDLES_LEN};
pub use index::FileKey;
pub use inodes::{Birth, InodeIdentity, InodeRecords, LockedKey, Retention, inodes_max, table_len as inodes_len};
pub use locks::{
    AttachedLocks, AttachedOwner, HeldLock, LockRecords, OwnerNote, OwnerSlot, RangeSlot, RecordedOwner, TABLE_LEN as LOCKS_LEN,
};
pub use mounts::{AttachedMounts, MountNote, MountRecords, MountSlot, TABLE_LEN as MOUNTS_LEN};
pub use request_slot::{Phase, RequestName, Unfinished, UsedElement};
pub use requests::{HeadTwice, Left, Positions, QueueRecords, RequestRecord, RequestRecords};
pub use session::{Agreed, AttachedRoot, SessionRecord};
pub use slots::TableFull;
