//! What a load does: transfers and metadata operations, without the daemon that they go to.

use clap::ValueEnum;
use gatherfs_support::guest::memory::PAGE_SIZE;

/// What a request kept in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// READ
    Read,
    /// WRITE
    Write,
    /// 7 READs to 3 WRITEs, at random
    Mixed,
    /// GETATTR, which has no block
    Getattr,
}

/// The order of offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// One after the other
    Seq,
    /// At random
    Random,
}

/// Requests of one kind, kept in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// The requests.
    pub op: Op,
    /// The order of their offsets.
    pub pattern: Pattern,
    /// Bytes of a request.
    pub block_size: u32,
    /// Bytes of a data descriptor.
    pub segment_size: u32,
    /// Requests in flight on each queue.
    pub depth: usize,
    /// The segments of a request adjoin each other in guest memory.
    pub contiguous: bool,
}

impl Io {
    /// Data descriptors of a request.
    pub fn segments(&self) -> u64 {
        match self.op {
            Op::Getattr => 0,
            _ => u64::from(self.block_size.div_ceil(self.segment_size)),
        }
    }

    /// Bytes from one segment to the next in guest memory.
    pub fn stride(&self) -> u64 {
        let size = u64::from(self.segment_size);
        if self.contiguous { size } else { size.next_multiple_of(PAGE_SIZE) + PAGE_SIZE }
    }

    /// The same bytes for a device that takes at most `max` bytes a request: how many requests each becomes, and the requests.
    pub fn split(self, max: u32) -> (u32, Self) {
        let parts = self.block_size.div_ceil(max.max(1)).max(1);
        (parts, Self { block_size: self.block_size / parts, depth: self.depth * parts as usize, ..self })
    }
}

/// One kind of metadata load; an operation is the whole cycle its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// GETATTR of the load file.
    Getattr,
    /// LOOKUP of a name that the device knows.
    Lookup,
    /// LOOKUP of a name that it does not know, and FORGET.
    LookupForget,
    /// LOOKUP of one name after another that it does not know. They are forgotten outside the measurement.
    LookupNew,
    /// LOOKUP of a name that is not there.
    LookupMissing,
    /// OPEN and RELEASE.
    OpenRelease,
    /// CREATE, RELEASE, UNLINK and FORGET.
    CreateUnlink,
    /// RENAME to another name in the directory.
    Rename,
    /// OPENDIR, READDIR of all entries, RELEASEDIR.
    Readdir,
    /// OPENDIR, READDIRPLUS of all entries, RELEASEDIR.
    Readdirplus,
    /// LOOKUP of a known small file, OPEN, READ, RELEASE.
    SmallFile,
}

/// What is measured in one row of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Requests kept in flight.
    Io(Io),
    /// Requests that are due at random times, so many a second, whether or not earlier ones are answered. At most
    /// `Io::depth` are in flight; their latency counts from when they were due.
    Paced(Io, f64),
    /// One metadata operation after the other.
    Meta(Meta),
}

#[cfg(test)]
mod tests {
    use super::*;

    const IO: Io = Io { op: Op::Read, pattern: Pattern::Seq, block_size: 4 << 20, segment_size: 4096, depth: 1, contiguous: false };

    #[test]
    fn a_block_that_is_too_large_for_the_device_becomes_several_requests_in_flight() {
        let (parts, io) = IO.split(1 << 20);
        assert_eq!((parts, io.block_size, io.depth), (4, 1 << 20, 4));
        let (parts, io) = IO.split(1020 * 4096);
        assert_eq!((parts, io.block_size, io.depth), (2, 2 << 20, 2));
        assert_eq!(IO.split(4 << 20), (1, IO));
    }

    #[test]
    fn segments_lie_a_page_apart_unless_they_adjoin() {
        assert_eq!((IO.segments(), IO.stride()), (1024, 8192));
        let packed = Io { contiguous: true, segment_size: 512, ..IO };
        assert_eq!((packed.segments(), packed.stride()), (8192, 512));
        assert_eq!(Io { op: Op::Getattr, ..IO }.segments(), 0);
    }
}
