//! A daemon under load: started, connected to and mounted, loaded through its guest, ended.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse;
use gatherfs_support::guest::memory::PAGE_SIZE;

use super::figures::Counts;
use super::leftovers::Started;
use super::meta::Names;
use super::pump::Pump;
use super::tree::{LOAD_DIR, LOAD_FILE, entry_name};
use super::work::{Io, Op};
use crate::{Failure, MIB};

/// How long a daemon may take until its socket is there.
const START_MAX: Duration = Duration::from_secs(10);
/// Descriptors of a request and its reply beside those of the data: two headers and their arguments.
const HEADER_SEGMENTS: u32 = 4;

/// Guest memory of a load: the second and the third region adjoin, for buffers that cross their border.
pub const LAYOUT: [(u64, u64); 3] = [(0, 1024 * MIB), (4096 * MIB, 64 * MIB), (4160 * MIB, 64 * MIB)];

/// Starts a daemon from a command line with {sock} or {socket}, {dir} and {tag}, and waits until its socket is there. `log` is
/// where it writes its messages.
pub fn start(command: &str, socket: &Path, share: &Path, log: impl Into<Stdio>) -> Result<Started, Failure> {
    if !["{sock}", "{socket}"].iter().any(|place| command.contains(place)) {
        return Err(format!("the daemon's command has no {{sock}}, the socket to listen on: {command}").into());
    }
    let (socket_name, share_name) = (socket.to_string_lossy(), share.to_string_lossy());
    let fill = |word: &str| {
        let word = word.replace("{sock}", &socket_name).replace("{socket}", &socket_name);
        word.replace("{dir}", &share_name).replace("{tag}", "virtual-guest")
    };
    let mut words = command.split_whitespace().map(fill);
    let program = words.next().ok_or("an empty daemon command")?;
    let started = Started::spawn(Command::new(&program).args(words).stderr(log)).map_err(|e| format!("{program}: {e}"))?;
    let deadline = Instant::now() + START_MAX;
    while !socket.exists() {
        if started.has_ended() {
            return Err(format!("{program} ended before it listened").into());
        }
        if Instant::now() > deadline {
            return Err(format!("{program} does not listen on {socket_name}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(started)
}

/// A daemon under load and the guest that loads it.
#[derive(Debug)]
pub struct Daemon {
    /// What it is called in tables.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// Where it listens.
    pub socket: PathBuf,
    child: Option<Started>,
    /// The guest.
    pub guest: Arc<Guest>,
    /// A client of the first request queue, mounted.
    pub client: Client,
    /// The load file's node, open file and size.
    pub nodeid: u64,
    /// The open file.
    pub fh: u64,
    /// Bytes of the load file.
    pub file_size: u64,
    pub(super) names: Names,
}

impl Daemon {
    /// Connects to `socket`, which `child` or somebody else serves, and mounts.
    pub fn connect(name: String, socket: &Path, child: Option<Started>, options: &GuestOptions) -> Result<Self, Failure> {
        let guest = Guest::connect(socket, options).map_err(|e| format!("{name}: {}: {e}", socket.display()))?;
        let pid = match &child {
            Some(child) => child.id(),
            None => guest.peer_pid()?,
        };
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.umask = 0;
        client.init()?;
        Ok(Self { name, pid, socket: socket.to_owned(), child, guest, client, nodeid: 0, fh: 0, file_size: 0, names: Names::default() })
    }

    /// Makes the load file and `entries` entries through the daemon, as far as they are missing, and opens the file.
    pub fn prepare(&mut self, file_size: u64, entries: usize, direct: bool) -> Result<(), Failure> {
        let client = &mut self.client;
        let created = client.create(fuse::ROOT, LOAD_FILE, 0o644, libc::O_RDWR)?;
        let node = created.entry.nodeid;
        let pages = u64::from(self.guest.lock(FIRST_REQUEST).options().size / 2).clamp(1, MIB / PAGE_SIZE);
        let block = vec![0x5a; (pages * PAGE_SIZE).min(client.init.max_write.into()) as usize];
        let mut offset = created.entry.attr.size;
        while offset < file_size {
            offset += u64::from(client.write(node, created.open.fh, offset, &block)?);
        }
        client.release(node, created.open.fh)?;
        if entries > 0 {
            let dir = match client.lookup(fuse::ROOT, LOAD_DIR) {
                Ok(entry) => entry.nodeid,
                Err(_) => client.mkdir(fuse::ROOT, LOAD_DIR, 0o755)?.nodeid,
            };
            self.names.entries_dir = dir;
            for index in 0..entries {
                match client.mknod(dir, &entry_name(index), libc::S_IFREG | 0o644, 0) {
                    Err(error) if error.errno() != Some(libc::EEXIST) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        self.open(file_size, direct)
    }

    /// Opens the load file and looks up the directories of `tree::make`.
    pub fn open_tree(&mut self, file_size: u64, entries: usize, direct: bool) -> Result<(), Failure> {
        self.find_names(entries)?;
        self.open(file_size, direct)
    }

    fn open(&mut self, file_size: u64, direct: bool) -> Result<(), Failure> {
        let direct = if direct { libc::O_DIRECT } else { 0 };
        self.file_size = file_size;
        self.nodeid = self.client.lookup(fuse::ROOT, LOAD_FILE)?.nodeid;
        self.client.file_flags = (libc::O_RDWR | direct) as u32;
        self.fh = self.client.open(self.nodeid, libc::O_RDWR | direct)?.fh;
        Ok(())
    }

    /// Bytes of the largest READ or WRITE that a Linux guest sends to this device.
    pub fn request_size_max(&self) -> u32 {
        let init = &self.client.init;
        let queue_pages = u32::from(self.guest.lock(FIRST_REQUEST).options().size) - HEADER_SEGMENTS;
        let pages = queue_pages.min(init.max_pages.into());
        init.max_write.min(pages * PAGE_SIZE as u32)
    }

    /// Kicks sent and calls received on all request queues so far.
    pub fn notifications(&self) -> (u64, u64) {
        let of_queue = |index| self.guest.lock(FIRST_REQUEST + index).notifications();
        (0..self.guest.request_queues()).map(of_queue).fold((0, 0), |(kicks, calls), (k, c)| (kicks + k, calls + c))
    }

    /// Has the guest look for replies instead of sleeping until a call comes, or sleep.
    pub fn set_busy_poll(&self, busy_poll: bool) {
        (0..self.guest.request_queues()).for_each(|index| self.guest.lock(FIRST_REQUEST + index).set_busy_poll(busy_poll));
    }

    /// Requests on every queue until `end`; with `rate`, when they are due. An operation is a whole block, whatever the number of
    /// requests that the device takes for it.
    pub fn io(&mut self, io: Io, rate: Option<f64>, end: Instant) -> Result<Counts, Failure> {
        let queues = self.guest.request_queues();
        let (parts, io) = if io.op == Op::Getattr { (1, io) } else { io.split(self.request_size_max()) };
        let this = &*self;
        let mut sum = std::thread::scope(|scope| {
            let run = move |index| {
                let pump = Pump::new(this, io, index, queues)?;
                match rate {
                    Some(rate) => pump.run_paced(rate / queues as f64, end),
                    None => pump.run(end),
                }
            };
            let workers: Vec<_> = (0..queues).map(|index| scope.spawn(move || run(index))).collect();
            let mut sum = Counts::new();
            for worker in workers {
                sum.add(&worker.join().expect("a worker does not panic")?);
            }
            Ok::<_, Failure>(sum)
        })?;
        sum.operations /= u64::from(parts);
        Ok(sum)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.as_ref().is_some_and(Started::has_ended) {
            eprintln!("{} has ended by itself", self.name);
        }
    }
}
