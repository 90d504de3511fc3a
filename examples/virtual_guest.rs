//! Load generator for vhost-user-fs daemons: a synthetic guest measures one or several of them.
//!
//! `cargo run --release --example virtual_guest -- --help`

mod guest;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};
use rustix::thread::{CpuSet, sched_setaffinity};
use zerocopy::IntoBytes;

use guest::client::{Client, Piece};
use guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use guest::fuse::{self, InHeader, OutHeader, ReadIn, WriteIn, WriteOut, opcode};
use guest::memory::PAGE_SIZE;
use guest::ring::{Ring, Segment};

/// The file every READ and WRITE goes to, in the shared directory.
const LOAD_FILE: &str = "virtual-guest.load";
/// The directory whose entries READDIRPLUS lists.
const LOAD_DIR: &str = "virtual-guest.entries";
/// The file that `verify` compares.
const VERIFY_FILE: &str = "virtual-guest.verify";
/// The buffer of one READDIRPLUS: what glibc's readdir asks for.
const READDIR_SIZE: u32 = 32 << 10;
/// How long a reply may take before the run fails.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

type Failure = Box<dyn Error + Send + Sync>;

/// Measure vhost-user-fs daemons with a synthetic guest.
///
/// The guest speaks vhost-user, virtqueues and FUSE itself; no virtual machine is needed. Figures
/// are medians over the rounds; with several daemons each round runs all of them in turn.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    setup: Setup,
    #[command(subcommand)]
    mode: Workload,
}

#[derive(Args)]
struct Setup {
    /// Socket of a daemon that runs already
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Command line of a daemon to start, with {sock}, {dir} and {tag}
    #[arg(long, global = true, value_name = "CMD")]
    daemon: Option<String>,
    /// Another daemon to compare; may be repeated. Ratios are to the first one
    #[arg(long, global = true, value_name = "NAME=CMD")]
    vs: Vec<String>,
    /// Shared directory of the daemons to start [default: a new one on /dev/shm]
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Do the same work by direct system calls too: the floor
    #[arg(long, global = true)]
    local: bool,
    /// Rounds; the figures are their medians
    #[arg(long, global = true, default_value_t = 3)]
    rounds: usize,
    /// Seconds per row, daemon and round
    #[arg(long, global = true, default_value_t = 0.5)]
    seconds: f64,
    /// Request queues to use, one guest thread each
    #[arg(long, global = true, default_value_t = 1)]
    queues: usize,
    /// Descriptors per queue
    #[arg(long, global = true, default_value_t = 1024)]
    queue_size: u16,
    /// Look for completions instead of waiting for interrupts
    #[arg(long, global = true)]
    busy_poll: bool,
    /// Do not use VIRTIO_RING_F_EVENT_IDX
    #[arg(long, global = true)]
    no_event_idx: bool,
    /// Do not use VIRTIO_RING_F_INDIRECT_DESC
    #[arg(long, global = true)]
    no_indirect: bool,
    /// CPUs to pin guest and daemons to
    #[arg(long, global = true, value_name = "GUEST,DAEMON", value_delimiter = ',', num_args = 1)]
    pin: Vec<usize>,
    /// Size of the file that is read and written, in MiB
    #[arg(long, global = true, default_value_t = 64)]
    file_size: u64,
    /// Let the segments of a request adjoin each other in guest memory instead of lying apart
    #[arg(long, global = true)]
    contiguous: bool,
    /// Open the file with O_DIRECT (virtiofsd needs --allow-direct-io)
    #[arg(long, global = true)]
    direct: bool,
}

#[derive(Subcommand)]
enum Workload {
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
    /// Random descriptor layouts and offsets, compared byte by byte with the host's file
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
    /// The table: 4 KiB and 128 KiB READ and WRITE, GETATTR, LOOKUP
    Suite,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Op {
    Read,
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pattern {
    Seq,
    Random,
}

/// One kind of READ or WRITE load.
#[derive(Clone, Copy)]
struct Io {
    op: Op,
    pattern: Pattern,
    block_size: u32,
    segment_size: u32,
    depth: usize,
    contiguous: bool,
}

impl Io {
    fn segments(&self) -> u64 {
        u64::from(self.block_size.div_ceil(self.segment_size))
    }

    /// Bytes from one segment to the next in guest memory.
    fn stride(&self) -> u64 {
        let size = u64::from(self.segment_size);
        if self.contiguous { size } else { size.next_multiple_of(PAGE_SIZE) + PAGE_SIZE }
    }
}

/// One kind of metadata load; an operation is the whole cycle its name tells.
#[derive(Clone, Copy)]
enum Meta {
    Getattr,
    Lookup,
    LookupForget,
    OpenRelease,
    CreateUnlink,
    Readdirplus,
}

/// One row of a table.
#[derive(Clone, Copy)]
enum Load {
    Io(Io),
    Meta(Meta),
}

/// Latencies in buckets of an eighth of a power of two nanoseconds.
#[derive(Clone)]
struct Latency(Vec<u64>);

impl Latency {
    fn record(&mut self, latency: Duration) {
        let ns = latency.as_nanos().clamp(8, u128::from(u32::MAX)) as u32;
        let power = ns.ilog2();
        // The three bits below the highest one choose the eighth.
        let eighth = ns >> (power - 3) & 7;
        self.0[(power * 8 + eighth) as usize] += 1;
    }

    /// The latency in microseconds that the fraction `part` of all operations does not exceed.
    fn quantile(&self, part: f64) -> f64 {
        let mut left = self.0.iter().sum::<u64>() as f64 * part;
        let reached = |count: &u64| {
            left -= *count as f64;
            left <= 0.0
        };
        let bucket = self.0.iter().position(reached).unwrap_or(0) as i32;
        f64::from(8 + bucket % 8 + 1) / 8.0 * 2f64.powi(bucket / 8) / 1e3
    }
}

/// What a load has done.
#[derive(Clone)]
struct Counts {
    operations: u64,
    bytes: u64,
    latency: Latency,
}

impl Counts {
    fn new() -> Self {
        let latency = Latency(vec![0; 32 * 8]);
        Self { operations: 0, bytes: 0, latency }
    }

    fn record(&mut self, bytes: u64, latency: Duration) {
        self.operations += 1;
        self.bytes += bytes;
        self.latency.record(latency);
    }

    fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        let buckets = self.latency.0.iter_mut().zip(&other.latency.0);
        buckets.for_each(|(sum, count)| *sum += count);
    }
}

/// What one run of a load came to.
#[derive(Clone)]
struct Measure {
    counts: Counts,
    seconds: f64,
    cpu_us: f64,
}

impl Measure {
    fn rate(&self) -> f64 {
        self.counts.operations as f64 / self.seconds
    }

    fn mb_per_second(&self) -> f64 {
        self.counts.bytes as f64 / self.seconds / 1e6
    }

    fn cpu_per_operation(&self) -> f64 {
        self.cpu_us / self.counts.operations as f64
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtual_guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    if let Some(cpu) = cli.setup.pin.first() {
        pin(0, *cpu)?;
    }
    let sockets = Scratch::new(&std::env::temp_dir())?;
    let share = match &cli.setup.dir {
        Some(dir) => Scratch::keep(dir)?,
        None => Scratch::new(Path::new("/dev/shm"))?,
    };
    run_in(cli, &share.path, &sockets.path)
}

/// A directory of this run; what `new` has made goes with it.
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn new(parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!("virtual-guest-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self { path, keep: false })
    }

    fn keep(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self { path: path.into(), keep: true })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn run_in(cli: &Cli, share: &Path, sockets: &Path) -> Result<(), Failure> {
    let mut targets = connect_all(&cli.setup, share, sockets)?;
    if let Workload::Verify { .. } = cli.mode {
        if cli.setup.socket.is_some() && cli.setup.dir.is_none() {
            return Err("verify needs --dir, the directory the daemon shares".into());
        }
        let daemons = targets.iter_mut().filter_map(Target::daemon);
        return daemons.into_iter().try_for_each(|daemon| verify(daemon, share, &cli.mode));
    }
    let rows = rows(&cli.mode, cli.setup.contiguous);
    let entries = if let Workload::Meta { entries } = cli.mode { entries } else { 0 };
    for target in &mut targets {
        target.prepare(&cli.setup, share, entries)?;
    }
    let table = measure_all(&cli.setup, &rows, &mut targets)?;
    print_table(&rows, &targets, &table);
    if let Workload::Origin { .. } = cli.mode {
        print_origin(&targets, &table);
    }
    Ok(())
}

/// The rows of the table for a mode.
fn rows(mode: &Workload, contiguous: bool) -> Vec<(String, Load)> {
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
        Workload::Suite | Workload::Verify { .. } => vec![
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

/// Runs every row on every target, round by round, and returns the medians by row and target.
fn measure_all(setup: &Setup, rows: &[(String, Load)], targets: &mut [Target]) -> Result<Vec<Vec<Measure>>, Failure> {
    let mut table = Vec::new();
    for (_, load) in rows {
        let mut runs = vec![Vec::new(); targets.len()];
        for _ in 0..setup.rounds.max(1) {
            for (target, runs) in targets.iter_mut().zip(&mut runs) {
                runs.push(target.measure(*load, setup)?);
            }
        }
        table.push(runs.iter_mut().map(|runs| median(runs)).collect());
    }
    Ok(table)
}

/// The run with the median rate.
fn median(runs: &mut [Measure]) -> Measure {
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    runs[runs.len() / 2].clone()
}

fn print_table(rows: &[(String, Load)], targets: &[Target], table: &[Vec<Measure>]) {
    println!(
        "{:<29} {:<10} {:>9} {:>8} {:>8} {:>8} {:>9} {:>7} {:>7}",
        "operation", "daemon", "op/s", "MB/s", "p50 us", "p99 us", "CPU us/op", "op/s x", "CPU x"
    );
    for ((name, _), measures) in rows.iter().zip(table) {
        let first = &measures[0];
        for (i, (target, measure)) in targets.iter().zip(measures).enumerate() {
            println!(
                "{:<29} {:<10} {:>9.0} {:>8} {:>8.1} {:>8.1} {:>9.2} {:>7.2} {:>7.2}",
                if i == 0 { name } else { "" },
                target.name(),
                measure.rate(),
                match measure.counts.bytes {
                    0 => "-".into(),
                    _ => format!("{:.1}", measure.mb_per_second()),
                },
                measure.counts.latency.quantile(0.5),
                measure.counts.latency.quantile(0.99),
                measure.cpu_per_operation(),
                measure.rate() / first.rate(),
                measure.cpu_per_operation() / first.cpu_per_operation(),
            );
        }
    }
}

/// How many times the bytes per second of one request per segment one packed request moves.
fn print_origin(targets: &[Target], table: &[Vec<Measure>]) {
    println!("\n{:<29} {:<10} {:>9} {:>9}", "packed / unpacked MB/s", "daemon", "readv x", "writev x");
    for (i, target) in targets.iter().enumerate() {
        let ratio = |a: usize, b: usize| table[a][i].mb_per_second() / table[b][i].mb_per_second();
        println!("{:<29} {:<10} {:>9.1} {:>9.1}", "", target.name(), ratio(0, 1), ratio(2, 3));
    }
}

/// What a load runs on.
enum Target {
    Daemon(Box<Daemon>),
    Local(Local),
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Daemon(daemon) => &daemon.name,
            Self::Local(_) => "local",
        }
    }

    fn daemon(&mut self) -> Option<&mut Daemon> {
        match self {
            Self::Daemon(daemon) => Some(daemon),
            Self::Local(_) => None,
        }
    }

    /// Makes and opens what the loads work on. Local comes last, when the file is there.
    fn prepare(&mut self, setup: &Setup, share: &Path, entries: usize) -> Result<(), Failure> {
        match self {
            Self::Daemon(daemon) => daemon.prepare(setup, entries),
            Self::Local(local) => local.prepare(setup, share),
        }
    }

    fn measure(&mut self, load: Load, setup: &Setup) -> Result<Measure, Failure> {
        let cpu = self.cpu_us()?;
        let start = Instant::now();
        let end = start + Duration::from_secs_f64(setup.seconds);
        let counts = match (&mut *self, load) {
            (Self::Daemon(daemon), Load::Io(io)) => daemon.io(io, end)?,
            (Self::Daemon(daemon), Load::Meta(meta)) => repeat(end, || daemon.meta(meta))?,
            (Self::Local(local), Load::Io(io)) => local.io(io, end)?,
            (Self::Local(local), Load::Meta(meta)) => repeat(end, || local.meta(meta))?,
        };
        let seconds = start.elapsed().as_secs_f64();
        Ok(Measure { counts, seconds, cpu_us: self.cpu_us()? - cpu })
    }

    /// CPU time the target has used so far, in microseconds.
    fn cpu_us(&self) -> Result<f64, Failure> {
        let processes = match self {
            Self::Daemon(daemon) => process_tree(daemon.pid),
            Self::Local(_) => vec![std::process::id()],
        };
        Ok(cpu_ns(&processes)? as f64 / 1e3)
    }
}

/// Repeats an operation until `end`.
fn repeat(end: Instant, mut operation: impl FnMut() -> Result<(), Failure>) -> Result<Counts, Failure> {
    let mut counts = Counts::new();
    let mut now = Instant::now();
    while now < end {
        let start = now;
        operation()?;
        now = Instant::now();
        counts.record(0, now - start);
    }
    Ok(counts)
}

/// Connects to the daemon of `--socket` and starts those of `--daemon` and `--vs`.
fn connect_all(setup: &Setup, share: &Path, sockets: &Path) -> Result<Vec<Target>, Failure> {
    let mut targets = Vec::new();
    let mut add = |daemon| targets.push(Target::Daemon(Box::new(daemon)));
    if let Some(path) = &setup.socket {
        add(Daemon::connect("daemon".into(), path, None, setup)?);
    }
    let named = setup.vs.iter().map(|vs| vs.split_once('=').ok_or("--vs wants NAME=CMD"));
    let mut commands = named.collect::<Result<Vec<_>, _>>()?;
    if let Some(command) = &setup.daemon {
        commands.insert(0, ("daemon", command));
    }
    for (i, (name, command)) in commands.into_iter().enumerate() {
        let socket = sockets.join(format!("{i}.sock"));
        let child = start(command, &socket, share)?;
        add(Daemon::connect(name.into(), &socket, Some(child), setup)?);
    }
    if targets.is_empty() && !setup.local {
        return Err("give --socket, --daemon, --vs or --local".into());
    }
    if setup.local {
        targets.push(Target::Local(Local::new()?));
    }
    Ok(targets)
}

/// Starts a daemon from a command line with {sock}, {dir} and {tag}.
fn start(command: &str, socket: &Path, share: &Path) -> Result<Child, Failure> {
    let fill = |word: &str| {
        word.replace("{sock}", &socket.to_string_lossy()).replace("{dir}", &share.to_string_lossy()).replace("{tag}", "virtual-guest")
    };
    let mut words = command.split_whitespace().map(fill);
    let program = words.next().ok_or("an empty daemon command")?;
    Ok(Command::new(&program).args(words).spawn().map_err(|e| format!("{program}: {e}"))?)
}

/// A daemon under load and the guest that loads it.
struct Daemon {
    name: String,
    pid: u32,
    child: Option<Child>,
    guest: Arc<Guest>,
    client: Client,
    nodeid: u64,
    fh: u64,
    entries_dir: u64,
    file_size: u64,
}

impl Daemon {
    /// Connects to `socket`, which `child` or somebody else serves, and mounts.
    fn connect(name: String, socket: &Path, child: Option<Child>, setup: &Setup) -> Result<Self, Failure> {
        let options = GuestOptions {
            // The second and the third region adjoin, for buffers that cross their border.
            layout: vec![(0, 1024 * MIB), (4096 * MIB, 64 * MIB), (4160 * MIB, 64 * MIB)],
            queue_size: setup.queue_size,
            request_queues: setup.queues,
            event_idx: !setup.no_event_idx,
            indirect: !setup.no_indirect,
            busy_poll: setup.busy_poll,
            ..GuestOptions::default()
        };
        let guest = Guest::connect(socket, &options).map_err(|e| format!("{name}: {}: {e}", socket.display()))?;
        let pid = match &child {
            Some(child) => child.id(),
            None => guest.peer_pid()?,
        };
        if let Some(cpu) = setup.pin.get(1) {
            pin_tree(pid, *cpu)?;
        }
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.umask = 0;
        client.init()?;
        let (nodeid, fh, entries_dir, file_size) = (0, 0, 0, 0);
        Ok(Self { name, pid, child, guest, client, nodeid, fh, entries_dir, file_size })
    }

    /// Makes the load file and the directory of entries through the daemon, and opens the file.
    fn prepare(&mut self, setup: &Setup, entries: usize) -> Result<(), Failure> {
        self.file_size = setup.file_size.max(1) * MIB;
        let client = &mut self.client;
        let created = client.create(fuse::ROOT, LOAD_FILE, 0o644, libc::O_RDWR)?;
        self.nodeid = created.entry.nodeid;
        let pages = u64::from(setup.queue_size / 2).clamp(1, MIB / PAGE_SIZE);
        let block = vec![0x5a; (pages * PAGE_SIZE).min(client.init.max_write.into()) as usize];
        let mut offset = created.entry.attr.size;
        while offset < self.file_size {
            offset += u64::from(client.write(self.nodeid, created.open.fh, offset, &block)?);
        }
        client.release(self.nodeid, created.open.fh)?;
        let direct = if setup.direct { libc::O_DIRECT } else { 0 };
        client.file_flags = (libc::O_RDWR | direct) as u32;
        self.fh = client.open(self.nodeid, libc::O_RDWR | direct)?.fh;
        if entries > 0 {
            self.entries_dir = match client.lookup(fuse::ROOT, LOAD_DIR) {
                Ok(entry) => entry.nodeid,
                Err(_) => client.mkdir(fuse::ROOT, LOAD_DIR, 0o755)?.nodeid,
            };
            for i in 0..entries {
                let name = format!("entry-{i:06}");
                match client.mknod(self.entries_dir, &name, libc::S_IFREG | 0o644, 0) {
                    Err(error) if error.errno() != Some(libc::EEXIST) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// One metadata operation.
    fn meta(&mut self, meta: Meta) -> Result<(), Failure> {
        let (client, nodeid) = (&mut self.client, self.nodeid);
        match meta {
            Meta::Getattr => drop(client.getattr(nodeid, None)?),
            Meta::Lookup => drop(client.lookup(fuse::ROOT, LOAD_FILE)?),
            Meta::LookupForget => {
                let entry = client.lookup(fuse::ROOT, LOAD_FILE)?;
                client.forget(entry.nodeid, 1)?;
            }
            Meta::OpenRelease => {
                let open = client.open(nodeid, libc::O_RDWR)?;
                client.release(nodeid, open.fh)?;
            }
            Meta::CreateUnlink => {
                let name = format!("virtual-guest.{}", self.name);
                let created = client.create(fuse::ROOT, &name, 0o644, libc::O_RDWR)?;
                client.release(created.entry.nodeid, created.open.fh)?;
                client.unlink(fuse::ROOT, &name)?;
                client.forget(created.entry.nodeid, 1)?;
            }
            Meta::Readdirplus => self.list()?,
        }
        Ok(())
    }

    /// Lists the directory of entries whole.
    fn list(&mut self) -> Result<(), Failure> {
        let dir = self.entries_dir;
        let open = self.client.opendir(dir)?;
        let mut offset = 0;
        loop {
            let list = self.client.readdirplus(dir, open.fh, offset, READDIR_SIZE)?;
            let Some(last) = list.last() else {
                break;
            };
            offset = last.off;
        }
        Ok(self.client.releasedir(dir, open.fh)?)
    }

    /// READs or WRITEs on every queue until `end`.
    fn io(&mut self, io: Io, end: Instant) -> Result<Counts, Failure> {
        let queues = self.guest.request_queues();
        let this = &*self;
        std::thread::scope(|scope| {
            let worker = |index| scope.spawn(move || Pump::new(this, io, index, queues)?.run(end));
            let workers: Vec<_> = (0..queues).map(worker).collect();
            let mut sum = Counts::new();
            for worker in workers {
                sum.add(&worker.join().expect("a worker does not panic")?);
            }
            Ok(sum)
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else {
            return;
        };
        if let Ok(Some(status)) = child.try_wait() {
            eprintln!("virtual_guest: {} has ended by itself: {status}", self.name);
            return;
        }
        // SIGTERM by id, and after two seconds SIGKILL.
        let pid = rustix::process::Pid::from_child(child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..200 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A request that is prepared once and sent again and again.
struct Slot {
    request: u64,
    reply: u64,
    segments: Vec<Segment>,
    sent: Instant,
}

/// Keeps `depth` requests in flight on one queue.
struct Pump<'a> {
    daemon: &'a Daemon,
    io: Io,
    queue: usize,
    slots: Vec<Slot>,
    by_head: Vec<usize>,
    offset: u64,
    random: Random,
    memory: (u64, u64),
}

/// Where the reply lies in the first page of a slot, behind request header and arguments.
const REPLY_AT: u64 = 128;

impl<'a> Pump<'a> {
    fn new(daemon: &'a Daemon, io: Io, index: usize, queues: usize) -> Result<Self, Failure> {
        let memory = daemon.guest.memory();
        let stride = PAGE_SIZE + io.segments() * io.stride();
        let len = stride * io.depth as u64;
        let base = memory.alloc(len, PAGE_SIZE);
        let queue = FIRST_REQUEST + index;
        let options = daemon.guest.lock(queue).options();
        let chain = if options.indirect { 1 } else { io.segments() as usize + 4 };
        if chain * io.depth > options.size.into() {
            return Err("the requests in flight need more descriptors than the queue has".into());
        }
        let share = daemon.file_size / queues as u64 * index as u64;
        let mut pump = Self {
            daemon,
            io,
            queue,
            slots: Vec::new(),
            by_head: vec![0; options.size.into()],
            offset: share - share % u64::from(io.block_size),
            random: Random(index as u64 + 1),
            memory: (base, len),
        };
        pump.slots = (0..io.depth as u64).map(|i| pump.slot(base + i * stride)).collect();
        Ok(pump)
    }

    /// Lays a request out at `gpa` the way Linux does: header, arguments, whole pages.
    fn slot(&self, gpa: u64) -> Slot {
        let Io { op, block_size: size, segment_size, .. } = self.io;
        let (fh, flags) = (self.daemon.fh, self.daemon.client.file_flags);
        let data_in = if op == Op::Write { size } else { 0 };
        let header = InHeader {
            len: (size_of::<InHeader>() + size_of::<ReadIn>()) as u32 + data_in,
            opcode: if op == Op::Read { opcode::READ } else { opcode::WRITE },
            nodeid: self.daemon.nodeid,
            pid: std::process::id(),
            ..InHeader::default()
        };
        let memory = self.daemon.guest.memory();
        memory.write(gpa, header.as_bytes());
        let args = gpa + size_of::<InHeader>() as u64;
        memory.write(args, ReadIn { fh, size, flags, ..ReadIn::default() }.as_bytes());
        const { assert!(size_of::<ReadIn>() == size_of::<WriteIn>()) };

        let reply = gpa + REPLY_AT;
        let mut segments = vec![Segment::readable(gpa, size_of::<InHeader>() as u32), Segment::readable(args, size_of::<ReadIn>() as u32)];
        let out_header = Segment::writable(reply, size_of::<OutHeader>() as u32);
        let out_args = reply + size_of::<OutHeader>() as u64;
        let data = (0..size).step_by(segment_size as usize).enumerate();
        let data = data.map(|(i, at)| Segment {
            addr: gpa + PAGE_SIZE + i as u64 * self.io.stride(),
            len: segment_size.min(size - at),
            writable: op == Op::Read,
        });
        if op == Op::Read {
            segments.push(out_header);
            segments.extend(data);
        } else {
            segments.extend(data);
            segments.push(out_header);
            segments.push(Segment::writable(out_args, size_of::<WriteOut>() as u32));
        }
        Slot { request: gpa, reply, segments, sent: Instant::now() }
    }

    fn next_offset(&mut self) -> u64 {
        let (block, size) = (u64::from(self.io.block_size), self.daemon.file_size);
        if self.io.pattern == Pattern::Random {
            return self.random.below(size / block) * block;
        }
        if self.offset + block > size {
            self.offset = 0;
        }
        self.offset += block;
        self.offset - block
    }

    /// Enters slot `index` in the ring with a new identity and offset.
    fn send(&mut self, ring: &mut Ring, index: usize) {
        let offset = self.next_offset();
        let unique = self.daemon.guest.next_unique();
        let slot = &self.slots[index];
        let memory = self.daemon.guest.memory();
        memory.write(slot.request + 8, unique.as_bytes());
        memory.write(slot.request + size_of::<InHeader>() as u64 + 8, offset.as_bytes());
        let head = ring.add(&slot.segments);
        self.by_head[usize::from(head)] = index;
        self.slots[index].sent = Instant::now();
    }

    /// Checks the reply of a slot; returns the bytes moved.
    fn finish(&self, index: usize, used_len: u32) -> Result<u64, Failure> {
        let slot = &self.slots[index];
        let memory = self.daemon.guest.memory();
        let (mut header, mut unique, mut written) = (OutHeader::default(), 0u64, 0u32);
        memory.read(slot.reply, header.as_mut_bytes());
        memory.read(slot.request + 8, unique.as_mut_bytes());
        let payload = header.len.wrapping_sub(size_of::<OutHeader>() as u32);
        memory.read(slot.reply + size_of::<OutHeader>() as u64, written.as_mut_bytes());
        let moved = if self.io.op == Op::Read { payload } else { written };
        let good = header.len == used_len && header.unique == unique && header.error == 0;
        if !good || moved != self.io.block_size {
            let size = self.io.block_size;
            let what = format!("{header:?}, used {used_len}, moved {moved} of {size}");
            return Err(format!("{}: bad reply: {what}", self.daemon.name).into());
        }
        Ok(moved.into())
    }

    fn run(mut self, end: Instant) -> Result<Counts, Failure> {
        let daemon = self.daemon;
        let mut ring = daemon.guest.lock(self.queue);
        let mut counts = Counts::new();
        let mut in_flight = self.slots.len();
        for index in 0..in_flight {
            self.send(&mut ring, index);
        }
        ring.publish();
        while in_flight > 0 {
            let now = Instant::now();
            let mut sent = false;
            while let Some((head, used_len)) = ring.poll_used() {
                let index = self.by_head[usize::from(head)];
                let bytes = self.finish(index, used_len)?;
                counts.record(bytes, now - self.slots[index].sent);
                if now < end {
                    self.send(&mut ring, index);
                    sent = true;
                } else {
                    in_flight -= 1;
                }
            }
            if sent {
                ring.publish();
            }
            if in_flight > 0 && !ring.wait(REPLY_TIMEOUT) {
                return Err(format!("{}: no reply: {}", daemon.name, ring.describe()).into());
            }
        }
        drop(ring);
        daemon.guest.memory().release(self.memory.0, self.memory.1);
        Ok(counts)
    }
}

/// The same work by direct system calls.
struct Local {
    dir: OwnedFd,
    file: File,
    handle: OwnedFd,
    file_size: u64,
}

impl Local {
    fn new() -> Result<Self, Failure> {
        let path = || rustix::fs::openat(CWD, "/", OFlags::PATH, Mode::empty());
        Ok(Self { dir: path()?, handle: path()?, file: File::open("/")?, file_size: 0 })
    }

    fn prepare(&mut self, setup: &Setup, share: &Path) -> Result<(), Failure> {
        self.file_size = setup.file_size.max(1) * MIB;
        self.dir = rustix::fs::openat(CWD, share, OFlags::PATH, Mode::empty())?;
        let direct = if setup.direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CREATE | direct;
        self.file = rustix::fs::openat(&self.dir, LOAD_FILE, flags, 0o644.into())?.into();
        if self.file.metadata()?.len() < self.file_size {
            rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, self.file_size)?;
        }
        self.handle = rustix::fs::openat(&self.dir, LOAD_FILE, OFlags::PATH, Mode::empty())?;
        Ok(())
    }

    fn io(&mut self, io: Io, end: Instant) -> Result<Counts, Failure> {
        let block = u64::from(io.block_size);
        let (segment, stride) = (io.segment_size as usize, io.stride() as usize);
        // Room to start at a page border, as O_DIRECT wants.
        let len = io.segments() as usize * stride;
        let mut room = vec![0x5a; len + PAGE_SIZE as usize];
        let skip = room.as_ptr().align_offset(PAGE_SIZE as usize);
        let data = &mut room[skip..skip + len];
        let (mut offset, mut random) = (0, Random(1));
        let mut counts = repeat(end, || {
            offset = match io.pattern {
                Pattern::Random => random.below(self.file_size / block) * block,
                Pattern::Seq if offset + 2 * block > self.file_size => 0,
                Pattern::Seq => offset + block,
            };
            let parts = data.chunks_mut(stride).enumerate();
            let parts = parts.map(|(i, part)| {
                let len = segment.min(block as usize - i * segment);
                &mut part[..len]
            });
            let moved = if io.op == Op::Read {
                let mut parts: Vec<_> = parts.map(IoSliceMut::new).collect();
                rustix::io::preadv(&self.file, &mut parts, offset)?
            } else {
                let parts: Vec<_> = parts.map(|part| IoSlice::new(part)).collect();
                rustix::io::pwritev(&self.file, &parts, offset)?
            };
            if moved as u64 == block { Ok(()) } else { Err("a short transfer".into()) }
        })?;
        counts.bytes = counts.operations * block;
        Ok(counts)
    }

    fn meta(&mut self, meta: Meta) -> Result<(), Failure> {
        let open = |flags| rustix::fs::openat(&self.dir, LOAD_FILE, flags, Mode::empty());
        match meta {
            Meta::Getattr => drop(rustix::fs::statat(&self.handle, "", AtFlags::EMPTY_PATH)?),
            Meta::Lookup => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::statat(&self.dir, LOAD_FILE, flags)?;
            }
            Meta::LookupForget => drop(open(OFlags::PATH | OFlags::NOFOLLOW)?),
            Meta::OpenRelease => drop(open(OFlags::RDWR)?),
            Meta::CreateUnlink => {
                let flags = OFlags::CREATE | OFlags::RDWR;
                let name = "virtual-guest.local";
                drop(rustix::fs::openat(&self.dir, name, flags, 0o644.into())?);
                rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?;
            }
            Meta::Readdirplus => self.list()?,
        }
        Ok(())
    }

    fn list(&self) -> Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = rustix::fs::openat(&self.dir, LOAD_DIR, flags, Mode::empty())?;
        let mut room = Vec::with_capacity(READDIR_SIZE as usize);
        let mut entries = RawDir::new(&dir, room.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            rustix::fs::statat(&dir, entry?.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

/// A small random number generator (xorshift64*), so that a seed tells the whole run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `limit` - 1.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// Reads and writes random ranges through `daemon` and compares with the host's file each time.
fn verify(daemon: &mut Daemon, share: &Path, mode: &Workload) -> Result<(), Failure> {
    let Workload::Verify { count, seed, no_crossing } = *mode else {
        return Ok(());
    };
    let mut random = Random(seed.max(1));
    let path = share.join(VERIFY_FILE);
    let content: Vec<u8> = (0..3 * MIB + 777).map(|_| random.next() as u8).collect();
    fs::write(&path, &content)?;
    let host = File::options().read(true).write(true).open(&path)?;
    let nodeid = daemon.client.lookup(fuse::ROOT, VERIFY_FILE)?.nodeid;
    let fh = daemon.client.open(nodeid, libc::O_RDWR)?.fh;
    let memory = daemon.guest.memory();
    let border = (!no_crossing).then(|| memory.alloc_across(1, 5000, 5000) + 5000);
    let small_queue = daemon.guest.lock(FIRST_REQUEST).options().size < 128;
    let (mut read, mut written) = (0, 0);
    for turn in 0..count {
        let size = host.metadata()?.len();
        let offset = match random.below(8) {
            0 => size - random.below(5000).min(size),
            1 => size + random.below(3),
            2 => random.below(size) & !(PAGE_SIZE - 1),
            _ => random.below(size),
        };
        let client = &mut daemon.client;
        // A small queue has no room for a long chain outside an indirect table.
        let indirect = random.below(4) > 0 || small_queue;
        daemon.guest.lock(FIRST_REQUEST).set_indirect(indirect);
        client.split_request = ragged_header(&mut random);
        client.split_reply = ragged_header(&mut random);
        let segments = ragged_payload(client, &mut random, border);
        let outcome = if random.below(2) == 0 {
            read += 1;
            verify_read(client, &host, (nodeid, fh, offset), segments)
        } else {
            written += 1;
            verify_write(client, &host, (nodeid, fh, offset), &segments, &mut random)
        };
        outcome.map_err(|e| format!("{}: turn {turn}, seed {seed}: {e}", daemon.name))?;
    }
    daemon.client.release(nodeid, fh)?;
    fs::remove_file(path)?;
    println!("{}: {read} READs and {written} WRITEs agree with the host's file", daemon.name);
    Ok(())
}

/// Random lengths of the descriptors of a header and its arguments.
fn ragged_header(random: &mut Random) -> Vec<u32> {
    (0..random.below(4)).map(|_| 1 + random.below(50) as u32).collect()
}

/// Random payload fragments: pages, odd lengths and offsets, and with `border` a buffer across the
/// border of two regions.
fn ragged_payload(client: &mut Client, random: &mut Random, border: Option<u64>) -> Vec<Segment> {
    let mut pieces: Vec<Piece> = Vec::new();
    let whole_pages = random.below(3) == 0;
    for _ in 0..1 + random.below(40) {
        let (offset, len) = if whole_pages { (0, PAGE_SIZE) } else { (random.below(PAGE_SIZE), 1 + random.below(2 * PAGE_SIZE)) };
        pieces.push(Piece { offset: offset as u32, len: len as u32 });
    }
    let mut segments = client.place(&pieces, false);
    if let Some(border) = border.filter(|_| random.below(2) == 0) {
        let (before, after) = (1 + random.below(5000), 1 + random.below(5000));
        let crossing = Segment::readable(border - before, (before + after) as u32);
        let at = random.below(segments.len() as u64 + 1) as usize;
        segments.insert(at, crossing);
    }
    segments
}

fn verify_read(client: &mut Client, host: &File, (nodeid, fh, offset): (u64, u64, u64), mut segments: Vec<Segment>) -> Result<(), Failure> {
    segments.iter_mut().for_each(|s| s.writable = true);
    let size: u32 = segments.iter().map(|s| s.len).sum();
    let untouched = vec![0xc3; size as usize];
    client.scatter(&segments, &untouched);
    let count = client.read_segments(nodeid, fh, offset, &segments)?;
    let mut expected = untouched;
    let available = read_host(host, &mut expected, offset)?;
    if count as usize != available {
        return Err(format!("READ of {size} at {offset} gave {count}, not {available}").into());
    }
    compare(&client.gather(&segments, size), &expected, offset)
}

fn verify_write(
    client: &mut Client,
    host: &File,
    (nodeid, fh, offset): (u64, u64, u64),
    segments: &[Segment],
    random: &mut Random,
) -> Result<(), Failure> {
    let size: u32 = segments.iter().map(|s| s.len).sum();
    let data: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
    let old_size = host.metadata()?.len();
    let (start, margin) = (offset.saturating_sub(100), 200 + u64::from(size));
    let mut expected = vec![0; (offset - start + margin) as usize];
    let old = read_host(host, &mut expected, start)? as u64;
    expected[(offset - start) as usize..][..size as usize].copy_from_slice(&data);
    expected.truncate(old.max(offset - start + u64::from(size)) as usize);

    client.scatter(segments, &data);
    let count = client.write_segments(nodeid, fh, offset, segments)?;
    if count != size {
        return Err(format!("WRITE of {size} at {offset} gave {count}").into());
    }
    let new_size = host.metadata()?.len();
    if new_size != old_size.max(offset + u64::from(size)) {
        return Err(format!("WRITE of {size} at {offset} made the file {new_size} long").into());
    }
    let mut found = vec![0; expected.len() + 1];
    let len = read_host(host, &mut found, start)?;
    found.truncate(len.min(expected.len()));
    compare(&found, &expected, start)
}

/// Reads as much as the file has; returns how much.
fn read_host(host: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match host.read_at(&mut bytes[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

fn compare(found: &[u8], expected: &[u8], offset: u64) -> Result<(), Failure> {
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    match differs {
        Some(at) => {
            let (a, b, at) = (found[at], expected[at], offset + at as u64);
            Err(format!("byte {at} is {a:#x}, not {b:#x}").into())
        }
        None if found.len() != expected.len() => Err(format!("{} bytes instead of {}", found.len(), expected.len()).into()),
        None => Ok(()),
    }
}

/// The process and all its descendants.
fn process_tree(pid: u32) -> Vec<u32> {
    let mut tree = vec![pid];
    let mut next = 0;
    while next < tree.len() {
        for task in tasks(tree[next]) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            tree.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
        next += 1;
    }
    tree
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let list = fs::read_dir(format!("/proc/{pid}/task"));
    list.into_iter().flatten().flatten().map(|task| task.path()).collect()
}

/// Run time of all threads of these processes: the first number of schedstat, in nanoseconds.
fn cpu_ns(processes: &[u32]) -> Result<u64, Failure> {
    let mut sum = 0;
    for task in processes.iter().copied().flat_map(tasks) {
        let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        sum += text.split_whitespace().next().map_or(Ok(0), str::parse::<u64>)?;
    }
    Ok(sum)
}

/// Pins thread `tid` (0 is the caller) to one CPU.
fn pin(tid: i32, cpu: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(rustix::thread::Pid::from_raw(tid), &set)?)
}

fn pin_tree(pid: u32, cpu: usize) -> Result<(), Failure> {
    for task in process_tree(pid).into_iter().flat_map(tasks) {
        let tid = task.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        pin(tid.parse()?, cpu)?;
    }
    Ok(())
}
