//! The daemons that are compared: gatherfs in its default configuration, and virtiofsd in those that are its best for some load.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use gatherfs_harness::load::daemon::{LAYOUT, start};
use gatherfs_harness::load::leftovers::{Scratch, Started};
use gatherfs_harness::load::{Daemon, Local, Target, tree};
use gatherfs_harness::{Failure, MIB};
use gatherfs_support::guest::frontend::GuestOptions;

use super::plan::Place;

/// What gatherfs is called in tables.
pub const GATHERFS: &str = "gatherfs";
/// The configurations of virtiofsd, and the options of each.
pub const PEERS: [(&str, &str); 6] = [
    ("default", ""),
    ("pool 1", "--thread-pool-size 1"),
    ("pool 4", "--thread-pool-size 4"),
    ("pool 16", "--thread-pool-size 16"),
    ("no file handles", "--inode-file-handles=never"),
    ("cache always", "--cache always"),
];
/// Descriptors of a queue: enough for a READ of 1020 pages.
const QUEUE_SIZE: u16 = 1024;
/// Entries of the directory that is listed.
const ENTRIES: usize = 5000;
/// Bytes of the load file on tmpfs and on the disk.
const FILE_SIZE: u64 = 64 * MIB;
const DISK_FILE_SIZE: u64 = 256 * MIB;
/// The end of a daemon's log that an error shows.
const LOG_LINES: usize = 5;

/// The programs, how they are sandboxed, and where their shares lie.
#[derive(Debug)]
pub struct Programs {
    pub gatherfsd: PathBuf,
    pub virtiofsd: PathBuf,
    /// `--sandbox` of both.
    pub sandbox: String,
    /// Sockets and logs.
    pub sockets: Scratch,
    pub tmpfs: Scratch,
    pub disk: Scratch,
}

impl Programs {
    /// The command line of gatherfs.
    pub fn gatherfs(&self, direct: bool) -> String {
        self.command(&self.gatherfsd, if direct { "--allow-direct-io" } else { "" })
    }

    /// The command line of virtiofsd in the configuration `options`.
    pub fn peer(&self, options: &str, direct: bool) -> String {
        self.command(&self.virtiofsd, &format!("{options}{}", if direct { " --allow-direct-io" } else { "" }))
    }

    fn command(&self, program: &Path, options: &str) -> String {
        let sandbox = &self.sandbox;
        let command =
            format!("{} --shared-dir {{dir}} --socket-path {{sock}} --sandbox {sandbox} --log-level error {options}", program.display());
        command.trim().to_owned()
    }

    /// Starts a daemon that listens on the socket `name`; what it says is shown where it does not start.
    pub fn start(&self, command: &str, name: &str, share: &Path) -> Result<(Started, PathBuf), Failure> {
        let (socket, log) = (self.sockets.path.join(name), self.sockets.path.join(format!("{name}.log")));
        let _ = fs::remove_file(&socket);
        let started = start(command, &socket, share, File::create(&log)?).map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            format!("{error}\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
        })?;
        Ok((started, socket))
    }

    /// Starts a daemon and connects a guest with `queues` request queues to it.
    pub fn connect(&self, name: &str, command: &str, share: &Path, queues: usize) -> Result<Daemon, Failure> {
        let (child, socket) = self.start(command, &format!("{}.sock", name.replace(' ', "-")), share)?;
        let options = GuestOptions { layout: LAYOUT.to_vec(), queue_size: QUEUE_SIZE, request_queues: queues, ..GuestOptions::default() };
        Daemon::connect(name.to_owned(), &socket, Some(child), &options)
    }

    /// The share of `place`.
    pub fn share(&self, place: Place) -> &Path {
        if place.disk { &self.disk.path } else { &self.tmpfs.path }
    }

    /// All daemons and the floor, with the load file opened: gatherfs first, the floor last.
    pub fn targets(&self, place: Place) -> Result<Vec<Target>, Failure> {
        let (share, size) = (self.share(place), if place.disk { DISK_FILE_SIZE } else { FILE_SIZE });
        tree::make(share, size, ENTRIES)?;
        let mut commands = vec![(GATHERFS, self.gatherfs(place.direct))];
        commands.extend(PEERS.map(|(name, options)| (name, self.peer(options, place.direct))));
        let mut targets = Vec::new();
        for (name, command) in commands {
            let mut daemon = self.connect(name, &command, share, place.queues)?;
            daemon.open_tree(size, ENTRIES, place.direct)?;
            targets.push(Target::Daemon(Box::new(daemon)));
        }
        targets.push(Target::Local(Local::open(share, size, place.direct)?));
        Ok(targets)
    }
}
