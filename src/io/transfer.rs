//! A transfer: what is to be done with a file, and the object that owns the file and the guest's pages.

use std::os::fd::BorrowedFd;

use crate::guest::PageDescriptor;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// From the file into guest memory.
    Read,
    /// From guest memory into the file.
    Write {
        /// To the end of the file, whatever the offset (man pwritev2(2), RWF_APPEND).
        append: bool,
    },
    /// What was written is to be on the disk (man fsync(2)). Without pages.
    Sync {
        /// Metadata that is not needed to read it may wait (man fdatasync(2)).
        data_only: bool,
    },
}

/// Which thread may make the host call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// Any thread, or a kernel worker, with the daemon's own credentials and capabilities.
    Any,
    /// Only the thread that submits, which has laid down a capability for this call (CAP_FSETID, so that the kernel clears
    /// setuid and setgid), or one that has done the same.
    Submitting,
}

/// What follows when direct I/O refuses the transfer because it is not aligned (EINVAL, man open(2), O_DIRECT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unaligned {
    /// The error stands.
    Fail,
    /// The transfer is made again through a descriptor without O_DIRECT.
    Buffered,
}

/// Owns what a transfer needs until it is finished. It may be moved meanwhile; its file and pages stay where they are.
pub trait TransferOwner: Send {
    /// The host file.
    fn file(&self) -> BorrowedFd<'_>;

    /// The guest's pages, in order. They stay mapped as long as the owner lives.
    fn pages(&self) -> &[PageDescriptor];

    /// An engine takes the transfer over and finishes it later. Called before any other thread can see the transfer.
    fn note_submitted(&self);
}

/// One READ, WRITE or FSYNC.
#[derive(Debug)]
pub struct Transfer<O> {
    /// Owns file and pages; comes back with the result.
    pub owner: O,
    /// Byte offset in the file.
    pub offset: u64,
    /// What is to be done.
    pub action: Action,
    /// Which thread may make the call.
    pub thread: Thread,
    /// What follows a refusal for alignment.
    pub unaligned: Unaligned,
    /// It waits for a disk, and the file system lets others be in flight meanwhile: direct I/O, for example on ext4.
    pub waits_for_disk: bool,
    /// No other request waited when this one was taken.
    pub is_alone: bool,
}
