//! READ and WRITE.

use zerocopy::IntoBytes;

use super::super::fuse::{OutHeader, ReadIn, WriteIn, WriteOut, flag, opcode};
use super::super::ring::Segment;
use super::{Call, Client, Piece, Result, pages};

impl Client {
    /// READ of `size` bytes into whole pages.
    pub fn read(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        self.read_pieces(nodeid, fh, offset, &pages(size))
    }

    /// READ into `pieces`; returns the bytes in their order.
    pub fn read_pieces(&mut self, nodeid: u64, fh: u64, offset: u64, pieces: &[Piece]) -> Result<Vec<u8>> {
        let segments = self.place(pieces, true);
        let count = self.read_segments(nodeid, fh, offset, &segments)?;
        Ok(self.gather(&segments, count))
    }

    /// READ into writable `segments` of the caller's; returns the number of bytes.
    pub fn read_segments(&mut self, nodeid: u64, fh: u64, offset: u64, segments: &[Segment]) -> Result<u32> {
        self.read_as(opcode::READ, nodeid, (fh, offset), segments)
    }

    pub(super) fn read_as(&mut self, opcode: u32, nodeid: u64, (fh, offset): (u64, u64), segments: &[Segment]) -> Result<u32> {
        let size = segments.iter().map(|s| s.len).sum();
        let (lock_owner, flags) = (self.lock_owner, self.file_flags);
        let read_flags = if lock_owner != 0 { flag::READ_LOCKOWNER } else { 0 };
        let request = ReadIn { fh, offset, size, read_flags, lock_owner, flags, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes()];
        let reply = self.call(&Call { data_out: segments, ..Call::new(opcode, nodeid, args) })?;
        Ok(reply.header.len - size_of::<OutHeader>() as u32)
    }

    /// WRITE of `data` from whole pages; returns the number of bytes written.
    pub fn write(&mut self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let segments = self.place(&pages(data.len() as u32), false);
        self.scatter(&segments, data);
        self.write_segments(nodeid, fh, offset, &segments)
    }

    /// WRITE of `data` from `pieces`, whose lengths must sum up to that of `data`.
    pub fn write_pieces(&mut self, nodeid: u64, (fh, offset): (u64, u64), data: &[u8], pieces: &[Piece]) -> Result<u32> {
        let segments = self.place(pieces, false);
        self.scatter(&segments, data);
        self.write_segments(nodeid, fh, offset, &segments)
    }

    /// WRITE from readable `segments` of the caller's.
    pub fn write_segments(&mut self, nodeid: u64, fh: u64, offset: u64, segments: &[Segment]) -> Result<u32> {
        let size = segments.iter().map(|s| s.len).sum();
        let (lock_owner, flags) = (self.lock_owner, self.file_flags);
        let write_flags = self.write_flags;
        let request = WriteIn { fh, offset, size, write_flags, lock_owner, flags, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes()];
        let call = Call { data_in: segments, ..Call::new(opcode::WRITE, nodeid, args) };
        let reply: WriteOut = self.call_for(call)?;
        Ok(reply.size)
    }
}
