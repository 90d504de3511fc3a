//! The command line, and the rows that a mode measures.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gatherfs_harness::load::{Io, Load, Meta, Op, Pattern};

/// Measure vhost-user-fs daemons with a synthetic guest.
///
/// The guest speaks vhost-user, virtqueues and FUSE itself; no virtual machine is needed. Figures
/// are medians over the rounds; with several daemons each round runs all of them in turn. "CPU x" is the CPU time of an
/// operation as a multiple of the first daemon's in the same round.
#[derive(Parser)]
pub struct Cli {
    #[command(flatten)]
    pub setup: Setup,
    #[command(subcommand)]
    pub mode: Workload,
}

#[derive(Args)]
pub struct Setup {
    /// Socket of a daemon that runs already
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Command line of a daemon to start, with {sock} or {socket}, {dir} and {tag} [default, without --socket, --vs and --local:
    /// the gatherfsd of the same build]
    #[arg(long, global = true, value_name = "CMD")]
    pub daemon: Option<String>,
    /// Another daemon to compare; may be repeated. Ratios are to the first one
    #[arg(long, global = true, value_name = "NAME=CMD")]
    pub vs: Vec<String>,
    /// Shared directory of the daemons to start [default: a new one on /dev/shm]
    #[arg(long, global = true)]
    pub dir: Option<PathBuf>,
    /// Do the same work by direct system calls too: the floor
    #[arg(long, global = true)]
    pub local: bool,
    /// Rounds; the figures are their medians
    #[arg(long, global = true, default_value_t = 3)]
    pub rounds: usize,
    /// Seconds per row, daemon and round
    #[arg(long, global = true, default_value_t = 0.5)]
    pub seconds: f64,
    /// Request queues to use, one guest thread each
    #[arg(long, global = true, default_value_t = 1)]
    pub queues: usize,
    /// Descriptors per queue
    #[arg(long, global = true, default_value_t = 1024)]
    pub queue_size: u16,
    /// Look for completions instead of waiting for interrupts
    #[arg(long, global = true)]
    pub busy_poll: bool,
    /// Do not use VIRTIO_RING_F_EVENT_IDX
    #[arg(long, global = true)]
    pub no_event_idx: bool,
    /// Do not use VIRTIO_RING_F_INDIRECT_DESC
    #[arg(long, global = true)]
    pub no_indirect: bool,
    /// CPUs to pin guest and daemons to
    #[arg(long, global = true, value_name = "GUEST,DAEMON", value_delimiter = ',', num_args = 1)]
    pub pin: Vec<usize>,
    /// Size of the file that is read and written, in MiB
    #[arg(long, global = true, default_value_t = 64)]
    pub file_size: u64,
    /// Let the segments of a request adjoin each other in guest memory instead of lying apart
    #[arg(long, global = true)]
    pub contiguous: bool,
    /// Open the file with O_DIRECT (virtiofsd needs --allow-direct-io)
    #[arg(long, global = true)]
    pub direct: bool,
    /// Drop the file's pages from the host's page cache before each measurement
    #[arg(long, global = true)]
    pub cold: bool,
}

#[derive(Subcommand)]
pub enum Workload {
    /// The origin: readv/writev of many segments, as one FUSE request or as one per segment
    Origin {
        /// Segments per call
        #[arg(long, default_value_t = 32)]
        segments: u32,
        /// Bytes per segment
        #[arg(long, default_value_t = 4096)]
        segment_size: u32,
    },
    /// READ or WRITE
    Io {
        /// Direction
        #[arg(long, value_enum, default_value_t = Op::Read)]
        op: Op,
        /// Order of the offsets
        #[arg(long, value_enum, default_value_t = Pattern::Seq)]
        pattern: Pattern,
        /// Bytes per request
        #[arg(long, default_value_t = 4096)]
        block_size: u32,
        /// Bytes per data descriptor
        #[arg(long, default_value_t = 4096)]
        segment_size: u32,
        /// Requests in flight per queue
        #[arg(long, default_value_t = 1)]
        depth: usize,
    },
    /// GETATTR, LOOKUP, OPEN, CREATE, READDIRPLUS and their like
    Meta {
        /// Entries of the directory that READDIRPLUS lists
        #[arg(long, default_value_t = 1000)]
        entries: usize,
    },
    /// Descriptors and memory of the daemons while the guest knows many files
    Lookups {
        /// Files that are made on the host and looked up once each
        #[arg(long, default_value_t = 100_000)]
        files: usize,
    },
    /// Random descriptor layouts and offsets, compared byte by byte with the host's file
    #[command(long_flag = "verify")]
    Verify {
        /// READs and WRITEs to do
        #[arg(long, default_value_t = 2000)]
        count: u32,
        /// Seed of the random numbers
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Leave out buffers across two memory regions, which virtiofsd never answers
        #[arg(long)]
        no_crossing: bool,
    },
    /// SIGKILL of gatherfsd's worker at random moments, and live upgrades, under a load of which every answer is checked; with --queues 4 on four
    /// queues
    ///
    /// Of eight requests in flight five are READs and WRITEs of 1, 4 and 16 pages whose contents are known; one each makes, renames,
    /// links and removes a file; appends to one; looks names and attributes up and lists a directory. At the end the tree is compared
    /// on the host. Prints the longest time without an answer around each kill, and the same for moments without a kill.
    Kills(Kills),
    /// The table: 4 KiB and 128 KiB READ and WRITE, GETATTR, LOOKUP
    Suite,
}

#[derive(Args)]
pub struct Kills {
    /// Kills, each of a new worker
    #[arg(long, default_value_t = 200)]
    pub count: usize,
    /// Live upgrades between the kills, to the file from which the daemon was started. In a sandbox it must be linked statically
    #[arg(long, default_value_t = 0)]
    pub upgrades: usize,
    /// Mean time between two kills; one in ten comes within 20 ms of the last one
    #[arg(long, default_value_t = 100)]
    pub every_ms: u64,
    /// Time under load before the first kill
    #[arg(long, default_value_t = 5.0)]
    pub quiet_seconds: f64,
    /// Requests in flight per queue
    #[arg(long, default_value_t = 64)]
    pub depth: usize,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The rows of the table for a mode.
pub fn rows(mode: &Workload, contiguous: bool) -> Vec<(String, Load)> {
    let row = |op, pattern, block_size, segment_size, depth| {
        let verb = format!("{op:?}").to_uppercase();
        let order = if pattern == Pattern::Seq { "" } else { " random" };
        let deep = if depth == 1 { String::new() } else { format!(" depth {depth}") };
        let size = if op == Op::Getattr { String::new() } else { format!(" {} KiB{order}", f64::from(block_size) / 1024.0) };
        (format!("{verb}{size}{deep}"), Load::Io(Io { op, pattern, block_size, segment_size, depth, contiguous }))
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
            meta("RENAME", Meta::Rename),
            meta("READDIRPLUS of all entries", Meta::Readdirplus),
        ],
        Workload::Suite | Workload::Verify { .. } | Workload::Lookups { .. } | Workload::Kills(_) => vec![
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
