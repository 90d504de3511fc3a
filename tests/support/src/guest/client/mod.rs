//! A synchronous FUSE client on one virtqueue of a guest.
//!
//! A call locks its queue until the reply is there, so use one client per queue for parallel work,
//! or `begin` and `finish` to have several requests in flight. Every reply is checked as Linux
//! checks it (`virtio_fs_verify_response`): what Linux would turn into EIO is a
//! [`CallError::Violation`].
//!
//! `exchange` sends any request; the other parts have a function for each opcode, by theme.

mod attributes;
mod creates;
mod data;
mod directories;
mod error;
mod exchange;
mod files;
mod names;
mod payload;
mod session;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use zerocopy::{Immutable, IntoBytes};

use super::frontend::Guest;
use super::fuse::{InHeader, InitOut, OutHeader};
use super::ring::Segment;

pub use error::{CallError, Result};
pub use payload::{Piece, pages};

/// Who the guest says is calling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id.
    pub pid: u32,
}

/// A reply as it came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The FUSE header.
    pub header: OutHeader,
    /// What follows the header in the reply room.
    pub payload: Vec<u8>,
}

/// A request in parts, for [`Client::exchange`].
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Opcode.
    pub opcode: u32,
    /// Node id of the header.
    pub nodeid: u64,
    /// Arguments, one after the other.
    pub args: &'a [&'a [u8]],
    /// Extensions after the arguments; a multiple of 8 bytes.
    pub extensions: &'a [u8],
    /// Room for reply arguments behind the out header, in bytes.
    pub room: u32,
    /// Payload the device reads, behind the arguments.
    pub data_in: &'a [Segment],
    /// Payload the device writes, behind the reply room.
    pub data_out: &'a [Segment],
}

impl<'a> Call<'a> {
    /// A request of a header and `args`, with no room for reply arguments.
    pub fn new(opcode: u32, nodeid: u64, args: &'a [&'a [u8]]) -> Self {
        Self { opcode, nodeid, args, extensions: &[], room: 0, data_in: &[], data_out: &[] }
    }
}

/// A request on its way, with its buffers. Made by [`Client::begin`], consumed by
/// [`Client::finish`]; dropped, it stays with the device and its buffers are never used again.
#[derive(Debug)]
pub struct Pending {
    opcode: u32,
    queue: usize,
    head: u16,
    /// The identity, for INTERRUPT.
    pub unique: u64,
    out_len: u32,
    data_len: u32,
    buffers: (Buffer, Buffer),
}

/// A range of guest memory the client keeps and enlarges.
#[derive(Clone, Copy, Debug, Default)]
struct Buffer {
    gpa: u64,
    len: u64,
}

/// A FUSE client. Made by [`Client::new`] or [`Client::on_queue`].
#[derive(Debug)]
pub struct Client {
    guest: Arc<Guest>,
    queue: usize,
    /// Who calls.
    pub caller: Caller,
    /// Supplementary groups sent with MKNOD, MKDIR, SYMLINK, CREATE and TMPFILE, when not empty.
    pub groups: Vec<u32>,
    /// The label sent with creates once SECURITY_CTX is agreed on: attribute and value. None says that there
    /// is no security module.
    pub label: Option<(String, Vec<u8>)>,
    /// The `setxattr_flags` of SETXATTR in its long form.
    pub setxattr_flags: u32,
    /// The umask sent with creates. As Linux, the mode is masked unless DONT_MASK was agreed.
    pub umask: u32,
    /// Lengths of the descriptors for request header and arguments; the rest is one more.
    pub split_request: Vec<u32>,
    /// Lengths of the descriptors for reply header and reply arguments; the rest is one more.
    pub split_reply: Vec<u32>,
    /// The `flags` of READ, WRITE and RELEASE: the open flags of the file.
    pub file_flags: u32,
    /// The `write_flags` of WRITE.
    pub write_flags: u32,
    /// The `lock_owner` of READ, WRITE, FLUSH and RELEASE.
    pub lock_owner: u64,
    /// How long a reply may take.
    pub timeout: Duration,
    /// What INIT agreed on; zero before.
    pub init: InitOut,
    idle: Vec<(Buffer, Buffer)>,
    payload: Buffer,
    bytes: Vec<u8>,
    segments: Vec<Segment>,
    /// FORGETs on their way that nobody waits for.
    forgets: VecDeque<Pending>,
}

impl Client {
    /// A client on virtqueue `queue` (1 is the first request queue) that has not sent INIT.
    pub fn new(guest: &Arc<Guest>, queue: usize) -> Self {
        Self {
            guest: Arc::clone(guest),
            queue,
            caller: Caller { pid: std::process::id(), ..Caller::default() },
            groups: Vec::new(),
            label: None,
            setxattr_flags: 0,
            umask: 0o022,
            split_request: vec![size_of::<InHeader>() as u32],
            split_reply: vec![size_of::<OutHeader>() as u32],
            file_flags: libc::O_RDWR as u32,
            write_flags: 0,
            lock_owner: 0,
            timeout: Duration::from_secs(20),
            init: InitOut::default(),
            idle: Vec::new(),
            payload: Buffer::default(),
            bytes: Vec::new(),
            segments: Vec::new(),
            forgets: VecDeque::new(),
        }
    }

    /// Another client of the same mount on virtqueue `queue`.
    pub fn on_queue(&self, queue: usize) -> Self {
        let mut client = Self::new(&self.guest, queue);
        client.caller = self.caller;
        client.groups.clone_from(&self.groups);
        client.init = self.init;
        client
    }

    /// The guest the client runs on.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// The virtqueue the client sends to.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// The INIT flags agreed on, `flags2` in the upper half.
    pub fn init_flags(&self) -> u64 {
        u64::from(self.init.flags) | u64::from(self.init.flags2) << 32
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let idle = self.idle.drain(..).flat_map(|(request, reply)| [request, reply]);
        for buffer in idle.chain([self.payload]) {
            if buffer.len > 0 {
                self.guest.memory().release(buffer.gpa, buffer.len);
            }
        }
    }
}

/// The bytes of a structure, for `raw`.
pub fn bytes_of<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}
