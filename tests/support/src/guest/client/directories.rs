//! Open directories and their entries.

use super::super::fuse::{self, Dirent, OpenOut, opcode};
use super::error::violation;
use super::{Client, Result, pages};

impl Client {
    /// OPENDIR.
    pub fn opendir(&mut self, nodeid: u64) -> Result<OpenOut> {
        self.open_as(opcode::OPENDIR, nodeid, libc::O_RDONLY | libc::O_DIRECTORY)
    }

    /// RELEASEDIR.
    pub fn releasedir(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        self.release_as(opcode::RELEASEDIR, nodeid, fh)
    }

    /// FSYNCDIR.
    pub fn fsyncdir(&mut self, nodeid: u64, fh: u64, data_only: bool) -> Result<()> {
        self.fsync_as(opcode::FSYNCDIR, nodeid, fh, data_only)
    }

    /// READDIR of at most `size` bytes from `offset`.
    pub fn readdir(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<Dirent>> {
        self.readdir_as(opcode::READDIR, nodeid, (fh, offset), size)
    }

    /// READDIRPLUS of at most `size` bytes from `offset`.
    pub fn readdirplus(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<Dirent>> {
        self.readdir_as(opcode::READDIRPLUS, nodeid, (fh, offset), size)
    }

    fn readdir_as(&mut self, opcode: u32, nodeid: u64, at: (u64, u64), size: u32) -> Result<Vec<Dirent>> {
        let segments = self.place(&pages(size), true);
        let count = self.read_as(opcode, nodeid, at, &segments)?;
        let bytes = self.gather(&segments, count);
        fuse::dirents(&bytes, opcode == opcode::READDIRPLUS).ok_or_else(|| violation("a directory entry is cut off or has no name".into()))
    }
}
