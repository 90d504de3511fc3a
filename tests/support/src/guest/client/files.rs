//! Open files: opened and released, made durable, their space, their locks.

use zerocopy::{FromBytes, IntoBytes};

use super::super::fuse::{
    CopyFileRangeIn, CopyFileRangeOut, FallocateIn, FileLock, FlushIn, FsyncIn, IoctlIn, IoctlOut, LkIn, LkOut, LseekIn, LseekOut, OpenIn,
    OpenOut, ReleaseIn, SyncfsIn, WriteOut, flag, opcode,
};
use super::error::violation;
use super::{Call, Client, Result};

impl Client {
    /// OPEN with `O_*` flags.
    pub fn open(&mut self, nodeid: u64, flags: i32) -> Result<OpenOut> {
        self.open_as(opcode::OPEN, nodeid, flags)
    }

    pub(super) fn open_as(&mut self, opcode: u32, nodeid: u64, flags: i32) -> Result<OpenOut> {
        let request = OpenIn { flags: flags as u32, open_flags: 0 };
        self.call_for(Call::new(opcode, nodeid, &[request.as_bytes()]))
    }

    /// RELEASE.
    pub fn release(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        self.release_as(opcode::RELEASE, nodeid, fh)
    }

    pub(super) fn release_as(&mut self, opcode: u32, nodeid: u64, fh: u64) -> Result<()> {
        let (flags, lock_owner) = (self.file_flags, self.lock_owner);
        let request = ReleaseIn { fh, flags, release_flags: 0, lock_owner };
        self.call_empty(opcode, nodeid, &[request.as_bytes()])
    }

    /// FLUSH.
    pub fn flush(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        let request = FlushIn { fh, lock_owner: self.lock_owner, ..FlushIn::default() };
        self.call_empty(opcode::FLUSH, nodeid, &[request.as_bytes()])
    }

    /// FSYNC; `data_only` is fdatasync(2).
    pub fn fsync(&mut self, nodeid: u64, fh: u64, data_only: bool) -> Result<()> {
        self.fsync_as(opcode::FSYNC, nodeid, fh, data_only)
    }

    pub(super) fn fsync_as(&mut self, opcode: u32, nodeid: u64, fh: u64, data_only: bool) -> Result<()> {
        let fsync_flags = if data_only { flag::FSYNC_FDATASYNC } else { 0 };
        let request = FsyncIn { fh, fsync_flags, padding: 0 };
        self.call_empty(opcode, nodeid, &[request.as_bytes()])
    }

    /// SYNCFS.
    pub fn syncfs(&mut self, nodeid: u64) -> Result<()> {
        self.call_empty(opcode::SYNCFS, nodeid, &[SyncfsIn::default().as_bytes()])
    }

    /// FALLOCATE with `FALLOC_FL_*` mode.
    pub fn fallocate(&mut self, nodeid: u64, request: &FallocateIn) -> Result<()> {
        self.call_empty(opcode::FALLOCATE, nodeid, &[request.as_bytes()])
    }

    /// LSEEK with `SEEK_*`.
    pub fn lseek(&mut self, nodeid: u64, fh: u64, offset: u64, whence: i32) -> Result<u64> {
        let request = LseekIn { fh, offset, whence: whence as u32, padding: 0 };
        let reply: LseekOut = self.call_for(Call::new(opcode::LSEEK, nodeid, &[request.as_bytes()]))?;
        Ok(reply.offset)
    }

    /// COPY_FILE_RANGE; `nodeid` is the source.
    pub fn copy_file_range(&mut self, nodeid: u64, request: &CopyFileRangeIn) -> Result<u32> {
        let call = Call::new(opcode::COPY_FILE_RANGE, nodeid, &[]);
        let reply: WriteOut = self.call_for(Call { args: &[request.as_bytes()], ..call })?;
        Ok(reply.size)
    }

    /// COPY_FILE_RANGE_64; `nodeid` is the source.
    pub fn copy_file_range_64(&mut self, nodeid: u64, request: &CopyFileRangeIn) -> Result<u64> {
        let call = Call::new(opcode::COPY_FILE_RANGE_64, nodeid, &[]);
        let reply: CopyFileRangeOut = self.call_for(Call { args: &[request.as_bytes()], ..call })?;
        Ok(reply.bytes_copied)
    }

    /// IOCTL `command` with `data`, for at most `out_size` bytes.
    pub fn ioctl(&mut self, nodeid: u64, fh: u64, command: u32, data: &[u8], out_size: u32) -> Result<Vec<u8>> {
        self.ioctl_with(nodeid, &IoctlIn { fh, cmd: command, in_size: data.len() as u32, out_size, ..IoctlIn::default() }, data)
    }

    /// IOCTL as `request` says.
    pub fn ioctl_with(&mut self, nodeid: u64, request: &IoctlIn, data: &[u8]) -> Result<Vec<u8>> {
        let args: &[&[u8]] = &[request.as_bytes(), data];
        let room = size_of::<IoctlOut>() as u32 + request.out_size;
        let reply = self.call(&Call { room, ..Call::new(opcode::IOCTL, nodeid, args) })?;
        let (out, data) = IoctlOut::read_from_prefix(&reply.payload).map_err(|_| violation("IOCTL has no fuse_ioctl_out".into()))?;
        if out != IoctlOut::default() {
            return Err(violation(format!("{out:?} is for character devices")));
        }
        Ok(data.to_vec())
    }

    /// GETLK.
    pub fn getlk(&mut self, nodeid: u64, request: &LkIn) -> Result<FileLock> {
        let reply: LkOut = self.call_for(Call::new(opcode::GETLK, nodeid, &[request.as_bytes()]))?;
        Ok(reply.lk)
    }

    /// SETLK, or SETLKW when `wait` is set.
    pub fn setlk(&mut self, nodeid: u64, request: &LkIn, wait: bool) -> Result<()> {
        let opcode = if wait { opcode::SETLKW } else { opcode::SETLK };
        self.call_empty(opcode, nodeid, &[request.as_bytes()])
    }
}
