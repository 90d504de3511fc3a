//! A daemon under load: started, connected to and mounted, loaded through its guest, ended.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse;
use gatherfs_support::guest::memory::PAGE_SIZE;

use crate::cpu::pin_tree;
use crate::figures::Counts;
use crate::leftovers::Started;
use crate::load::{Io, LOAD_DIR, LOAD_FILE, Meta, READDIR_SIZE};
use crate::options::Setup;
use crate::pump::Pump;
use crate::{Failure, MIB};

/// How long a daemon may take until its socket is there.
const START_MAX: Duration = Duration::from_secs(10);

/// Starts a daemon from a command line with {sock} or {socket}, {dir} and {tag}, and waits until its socket is there.
pub fn start(command: &str, socket: &Path, share: &Path) -> Result<Started, Failure> {
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
    let started = Started::spawn(Command::new(&program).args(words)).map_err(|e| format!("{program}: {e}"))?;
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
pub struct Daemon {
    pub name: String,
    pub pid: u32,
    child: Option<Started>,
    pub guest: Arc<Guest>,
    pub client: Client,
    pub nodeid: u64,
    pub fh: u64,
    entries_dir: u64,
    pub file_size: u64,
}

impl Daemon {
    /// Connects to `socket`, which `child` or somebody else serves, and mounts.
    pub fn connect(name: String, socket: &Path, child: Option<Started>, setup: &Setup) -> Result<Self, Failure> {
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
    pub fn prepare(&mut self, setup: &Setup, entries: usize) -> Result<(), Failure> {
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
    pub fn meta(&mut self, meta: Meta) -> Result<(), Failure> {
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
    pub fn io(&mut self, io: Io, end: Instant) -> Result<Counts, Failure> {
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
        if self.child.as_ref().is_some_and(Started::has_ended) {
            eprintln!("virtual_guest: {} has ended by itself", self.name);
        }
    }
}
