//! What is done and measured: the rows of a table, and the files they work on.

use clap::ValueEnum;
use gatherfs_support::guest::memory::PAGE_SIZE;

use crate::options::Workload;

/// The file every READ and WRITE goes to, in the shared directory.
pub const LOAD_FILE: &str = "virtual-guest.load";
/// The directory whose entries READDIRPLUS lists.
pub const LOAD_DIR: &str = "virtual-guest.entries";
/// The buffer of one READDIRPLUS: what glibc's readdir asks for.
pub const READDIR_SIZE: u32 = 32 << 10;

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Op {
    Read,
    Write,
}

/// The order of offsets.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    Seq,
    Random,
}

/// One kind of READ or WRITE load.
#[derive(Clone, Copy)]
pub struct Io {
    pub op: Op,
    pub pattern: Pattern,
    pub block_size: u32,
    pub segment_size: u32,
    pub depth: usize,
    pub contiguous: bool,
}

impl Io {
    pub fn segments(&self) -> u64 {
        u64::from(self.block_size.div_ceil(self.segment_size))
    }

    /// Bytes from one segment to the next in guest memory.
    pub fn stride(&self) -> u64 {
        let size = u64::from(self.segment_size);
        if self.contiguous { size } else { size.next_multiple_of(PAGE_SIZE) + PAGE_SIZE }
    }
}

/// One kind of metadata load; an operation is the whole cycle its name tells.
#[derive(Clone, Copy)]
pub enum Meta {
    Getattr,
    Lookup,
    LookupForget,
    OpenRelease,
    CreateUnlink,
    Readdirplus,
}

/// One row of a table.
#[derive(Clone, Copy)]
pub enum Load {
    Io(Io),
    Meta(Meta),
}

/// The rows of the table for a mode.
pub fn rows(mode: &Workload, contiguous: bool) -> Vec<(String, Load)> {
    let row = |op, pattern, block_size, segment_size, depth| {
        let verb = if op == Op::Read { "READ" } else { "WRITE" };
        let order = if pattern == Pattern::Seq { "" } else { " random" };
        let deep = if depth == 1 { String::new() } else { format!(" depth {depth}") };
        let name = format!("{verb} {} KiB{order}{deep}", f64::from(block_size) / 1024.0);
        (name, Load::Io(Io { op, pattern, block_size, segment_size, depth, contiguous }))
    };
    let named = |name: &str, (_, load): (String, Load)| (name.to_owned(), load);
    let meta = |name: &str, meta| (name.to_owned(), Load::Meta(meta));
    let (read, write, seq) = (Op::Read, Op::Write, Pattern::Seq);
    match *mode {
        Workload::Origin { segments, segment_size: size } => vec![
            named("readv packed", row(read, seq, segments * size, size, 1)),
            named("readv unpacked", row(read, seq, size, size, 1)),
            named("writev packed", row(write, seq, segments * size, size, 1)),
            named("writev unpacked", row(write, seq, size, size, 1)),
        ],
        Workload::Io { op, pattern, block_size, segment_size, depth } => {
            vec![row(op, pattern, block_size, segment_size, depth)]
        }
        Workload::Meta { .. } => vec![
            meta("GETATTR", Meta::Getattr),
            meta("LOOKUP of a known name", Meta::Lookup),
            meta("LOOKUP + FORGET", Meta::LookupForget),
            meta("OPEN + RELEASE", Meta::OpenRelease),
            meta("CREATE+RELEASE+UNLINK+FORGET", Meta::CreateUnlink),
            meta("READDIRPLUS of all entries", Meta::Readdirplus),
        ],
        Workload::Suite | Workload::Verify { .. } | Workload::Lookups { .. } => vec![
            row(read, seq, 4 << 10, 4096, 1),
            row(write, seq, 4 << 10, 4096, 1),
            row(read, seq, 128 << 10, 4096, 1),
            row(write, seq, 128 << 10, 4096, 1),
            row(read, Pattern::Random, 4 << 10, 4096, 16),
            row(read, seq, 128 << 10, 4096, 16),
            meta("GETATTR", Meta::Getattr),
            meta("LOOKUP of a known name", Meta::Lookup),
        ],
    }
}
