//! What is to be moved: a file, an offset, a direction and the guest's pages.

use std::os::fd::BorrowedFd;

use crate::guest::PageDescriptor;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the file into guest memory.
    Read,
    /// From guest memory into the file.
    Write {
        /// To the end of the file, whatever the offset (man pwritev2(2), RWF_APPEND).
        append: bool,
    },
}

/// One READ or WRITE.
#[derive(Debug, Clone, Copy)]
pub struct Transfer<'a> {
    /// The host file.
    pub file: BorrowedFd<'a>,
    /// Byte offset in the file.
    pub offset: u64,
    /// Which way.
    pub direction: Direction,
    /// The guest's pages, in order.
    pub pages: &'a [PageDescriptor],
}
