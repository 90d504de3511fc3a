//! Locks: those of a guest's processes, of another guest's, of host processes; waits that no thread holds.

mod access;
mod ends;
mod holders;
mod restarts;
mod waits;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use zerocopy::IntoBytes;

use gatherfs_support::daemon::{Daemon, Process, Scratch, gatherfsd};
use gatherfs_support::guest;
use gatherfs_support::guest::client::{Call, Client, Pending};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::{FileLock, LkIn, ROOT, flag, opcode};

const FILE: &str = "locked";
const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const NONE: i32 = libc::F_UNLCK;

/// A guest with the file open; each number stands for one of its processes.
struct Locker {
    client: Client,
    guest: Arc<Guest>,
    node: u64,
    fh: u64,
}

impl Locker {
    fn connect(socket: &std::path::Path, options: &GuestOptions) -> Locker {
        Locker::open(socket, options, libc::O_RDWR)
    }

    /// As `connect`, with the file opened with `flags`.
    fn open(socket: &std::path::Path, options: &GuestOptions, flags: i32) -> Locker {
        let guest = Guest::connect(socket, options).expect("a connection");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.init().expect("INIT");
        let node = client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
        let fh = client.open(node, flags).expect("OPEN").fh;
        Locker { client, guest, node, fh }
    }

    fn request(&self, process: u64, kind: i32, start: u64, end: u64) -> LkIn {
        let lk = FileLock { start, end, kind: kind as u32, pid: 1000 + process as u32 };
        LkIn { fh: self.fh, owner: process, lk, lk_flags: 0, padding: 0 }
    }

    /// SETLK of bytes `start` to `end`; the errno, or 0.
    fn set(&mut self, process: u64, kind: i32, start: u64, end: u64) -> i32 {
        let request = self.request(process, kind, start, end);
        errno_of(self.client.setlk(self.node, &request, false))
    }

    /// SETLK of the whole file by flock(2).
    fn flock(&mut self, file: u64, kind: i32) -> i32 {
        let request = LkIn { lk_flags: flag::LK_FLOCK, ..self.request(file, kind, 0, i64::MAX as u64) };
        errno_of(self.client.setlk(self.node, &request, false))
    }

    /// Sends a SETLKW of the whole file.
    fn wait(&mut self, process: u64, kind: i32) -> Pending {
        self.wait_for(process, kind, 0, i64::MAX as u64)
    }

    /// Sends a SETLKW of bytes `start` to `end`.
    fn wait_for(&mut self, process: u64, kind: i32, start: u64, end: u64) -> Pending {
        let request = self.request(process, kind, start, end);
        self.client.begin(&Call::new(opcode::SETLKW, self.node, &[request.as_bytes()]))
    }

    fn end_of(&mut self, pending: Pending) -> i32 {
        -self.client.finish(pending).expect("an answer").header.error
    }

    /// What GETLK tells `process` of the whole file.
    fn get(&mut self, process: u64, kind: i32) -> FileLock {
        let request = self.request(process, kind, 0, i64::MAX as u64);
        self.client.getlk(self.node, &request).expect("GETLK")
    }
}

fn errno_of(result: guest::client::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(guest::client::CallError::Errno(errno)) => errno,
        Err(e) => panic!("{e:?}"),
    }
}

/// A daemon that keeps the locks on the host, with `options` added, and a guest with the file open.
fn started(options: &[&str], guest: &GuestOptions) -> (Daemon, Locker) {
    let daemon = Daemon::start_on_tmpfs(&[&["--locks", "host"], options].concat());
    daemon.put(FILE, [7; 4096]);
    let locker = Locker::connect(daemon.socket(), guest);
    (daemon, locker)
}

fn locker() -> (Daemon, Locker) {
    started(&[], &GuestOptions::default())
}

/// A second daemon on the same share, with locks on the host.
fn second(first: &Daemon) -> (Process, Scratch, PathBuf) {
    let scratch = Scratch::on_tmpfs();
    let socket = scratch.join("s");
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(first.share()).arg("--socket-path").arg(&socket).args(["--sandbox", "none", "--locks", "host"]);
    let process = Process::spawn(&mut command);
    process.wait_for_line("sharing ");
    (process, scratch, socket)
}

/// The file as a host process has it.
fn on_host(daemon: &Daemon) -> File {
    OpenOptions::new().read(true).write(true).open(daemon.share().join(FILE)).expect("the file")
}

/// A host process's try of a record lock of the whole file: of a description of its own, as F_SETLK would be.
fn host_set(file: &File, kind: i32) -> i32 {
    let lock = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads the structure.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().expect("an errno")
}

fn host_flock(file: &File, operation: i32) -> i32 {
    // SAFETY: takes integers only.
    if unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) } == 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().expect("an errno")
}
