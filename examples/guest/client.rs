//! A synchronous FUSE client on one virtqueue of a guest.
//!
//! A call locks its queue until the reply is there, so use one client per queue for parallel work,
//! or `begin` and `finish` to have several requests in flight. Every reply is checked as Linux
//! checks it (`virtio_fs_verify_response`): what Linux would turn into EIO is a
//! [`CallError::Violation`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::frontend::{Guest, HIPRIO};
use super::fuse::{self, *};
use super::memory::PAGE_SIZE;
use super::ring::Segment;

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The device answered with this (positive) errno.
    Errno(i32),
    /// The device broke the protocol.
    Violation(String),
    /// No answer within the client's timeout, or the daemon has closed the connection. The request
    /// stays with the device, its buffers with it.
    NoReply,
}

impl CallError {
    /// The errno, if the device gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno(errno) => Some(*errno),
            _ => None,
        }
    }
}

impl From<i32> for CallError {
    fn from(errno: i32) -> Self {
        Self::Errno(errno)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => std::io::Error::from_raw_os_error(*errno).fmt(f),
            Self::Violation(what) => write!(f, "protocol violation: {what}"),
            Self::NoReply => f.write_str("no reply"),
        }
    }
}

impl std::error::Error for CallError {}

/// The result of a call.
pub type Result<T> = std::result::Result<T, CallError>;

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

/// One payload fragment: `len` bytes that start `offset` bytes into a fresh page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the page.
    pub offset: u32,
    /// Length in bytes; it may run over the end of the page.
    pub len: u32,
}

/// `size` bytes as Linux lays them out without large folios: whole pages, then the rest.
pub fn pages(size: u32) -> Vec<Piece> {
    let page = PAGE_SIZE as u32;
    (0..size.div_ceil(page)).map(|i| Piece { offset: 0, len: page.min(size - i * page) }).collect()
}

/// A reply as it came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Length in the used ring.
    pub used_len: u32,
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
}

impl Client {
    /// A client on virtqueue `queue` (1 is the first request queue) that has not sent INIT.
    pub fn new(guest: &Arc<Guest>, queue: usize) -> Self {
        Self {
            guest: Arc::clone(guest),
            queue,
            caller: Caller { pid: std::process::id(), ..Caller::default() },
            groups: Vec::new(),
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

    /// Enlarges `buffer` to `len` bytes; its content is lost.
    fn room(&self, mut buffer: Buffer, len: u64) -> Buffer {
        if buffer.len < len {
            let memory = self.guest.memory();
            if buffer.len > 0 {
                memory.release(buffer.gpa, buffer.len);
            }
            buffer.len = len.next_multiple_of(PAGE_SIZE).next_power_of_two();
            buffer.gpa = memory.alloc(buffer.len, PAGE_SIZE);
        }
        buffer
    }

    /// Lays `pieces` out over fresh pages of the client's payload buffer.
    pub fn place(&mut self, pieces: &[Piece], writable: bool) -> Vec<Segment> {
        let layout = |base: u64| {
            let mut end = base;
            let mut segments = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let addr = end.next_multiple_of(PAGE_SIZE) + u64::from(piece.offset);
                end = addr + u64::from(piece.len);
                segments.push(Segment { addr, len: piece.len, writable });
            }
            (segments, end)
        };
        let (_, len) = layout(0);
        self.payload = self.room(self.payload, len.max(1));
        layout(self.payload.gpa).0
    }

    /// Header, arguments and extensions of `call`, as bytes.
    fn encode(&mut self, call: &Call, unique: u64) {
        self.bytes.clear();
        self.bytes.resize(size_of::<InHeader>(), 0);
        for part in call.args {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.extend_from_slice(call.extensions);
        let data: u32 = call.data_in.iter().map(|s| s.len).sum();
        let header = InHeader {
            len: self.bytes.len() as u32 + data,
            opcode: call.opcode,
            unique,
            nodeid: call.nodeid,
            uid: self.caller.uid,
            gid: self.caller.gid,
            pid: self.caller.pid,
            total_extlen: (call.extensions.len() / 8) as u16,
            padding: 0,
        };
        self.bytes[..size_of::<InHeader>()].copy_from_slice(header.as_bytes());
    }

    /// Sends `call` on `queue` with `out_len` bytes of room for reply header and arguments.
    fn send(&mut self, queue: usize, call: &Call, out_len: u32) -> Pending {
        let unique = self.guest.next_unique();
        self.encode(call, unique);
        let (request, reply) = self.idle.pop().unwrap_or_default();
        let request = self.room(request, self.bytes.len() as u64);
        let reply = self.room(reply, u64::from(out_len.max(1)));
        self.guest.memory().write(request.gpa, &self.bytes);
        self.segments.clear();
        let readable = Segment::readable(request.gpa, self.bytes.len() as u32);
        cut(&mut self.segments, readable, &self.split_request);
        self.segments.extend_from_slice(call.data_in);
        let writable = Segment::writable(reply.gpa, out_len);
        cut(&mut self.segments, writable, &self.split_reply);
        self.segments.extend_from_slice(call.data_out);
        Pending {
            opcode: call.opcode,
            queue,
            head: self.guest.lock(queue).submit(&self.segments),
            unique,
            out_len,
            data_len: call.data_out.iter().map(|s| s.len).sum(),
            buffers: (request, reply),
        }
    }

    /// Waits for the head of `pending` and returns its used length.
    fn wait(&mut self, pending: &Pending) -> Result<u32> {
        let start = Instant::now();
        let mut ring = self.guest.lock(pending.queue);
        loop {
            if let Some(used_len) = ring.take_used(pending.head) {
                self.idle.push(pending.buffers);
                return Ok(used_len);
            }
            if !ring.wait(self.timeout.saturating_sub(start.elapsed())) {
                return Err(CallError::NoReply);
            }
        }
    }

    /// Sends a request and leaves it with the device, so that several can be in flight. Payload of
    /// several requests needs memory of the caller's: `place` gives the same to each.
    pub fn begin(&mut self, call: &Call) -> Pending {
        self.send(self.queue, call, size_of::<OutHeader>() as u32 + call.room)
    }

    /// Whether the device has answered `pending`.
    pub fn is_answered(&self, pending: &Pending) -> bool {
        self.guest.lock(pending.queue).is_used(pending.head)
    }

    /// Waits for the reply to `pending`; requests may be finished in any order. The result is that
    /// of `exchange`.
    #[expect(clippy::needless_pass_by_value, reason = "a request is finished only once")]
    pub fn finish(&mut self, pending: Pending) -> Result<Reply> {
        let used_len = self.wait(&pending)?;
        let Pending { opcode, unique, out_len, data_len, buffers: (_, reply), .. } = pending;
        let memory = self.guest.memory();
        let mut header = OutHeader::default();
        memory.read(reply.gpa, header.as_mut_bytes());
        check(opcode, &header, used_len, unique, out_len + data_len)?;
        let header_len = size_of::<OutHeader>() as u32;
        let args_len = (header.len - header_len).min(out_len - header_len);
        let payload = memory.read_vec(reply.gpa + u64::from(header_len), args_len as usize);
        Ok(Reply { used_len, header, payload })
    }

    /// Sends any request and returns its reply, errno or not; `Err` only when the reply is missing
    /// or one that Linux would not accept.
    pub fn exchange(&mut self, call: &Call) -> Result<Reply> {
        let pending = self.begin(call);
        self.finish(pending)
    }

    /// Sends any opcode with any argument bytes and `room` bytes for reply arguments.
    pub fn raw(&mut self, opcode: u32, nodeid: u64, args: &[u8], room: u32) -> Result<Reply> {
        self.exchange(&Call { room, ..Call::new(opcode, nodeid, &[args]) })
    }

    /// As `exchange`, with an errno in the reply turned into `Err`.
    fn call(&mut self, call: &Call) -> Result<Reply> {
        let reply = self.exchange(call)?;
        match reply.header.error {
            0 => Ok(reply),
            error => Err(CallError::Errno(-error)),
        }
    }

    /// A call whose reply is exactly a `T`.
    fn call_for<T: FromBytes>(&mut self, call: Call) -> Result<T> {
        let reply = self.call(&Call { room: size_of::<T>() as u32, ..call })?;
        T::read_from_bytes(&reply.payload).map_err(|_| {
            let (opcode, len) = (call.opcode, reply.payload.len());
            violation(format!("opcode {opcode}: {len} reply bytes instead of {}", size_of::<T>()))
        })
    }

    /// A call whose reply is nothing but a header.
    fn call_empty(&mut self, opcode: u32, nodeid: u64, args: &[&[u8]]) -> Result<()> {
        self.call(&Call::new(opcode, nodeid, args)).map(|_| ())
    }

    /// What Linux appends to a create: security contexts when agreed, then groups.
    fn extensions(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.init_flags() & fuse::init::SECURITY_CTX != 0 {
            bytes.extend_from_slice(SecctxHeader { size: 8, nr_secctx: 0 }.as_bytes());
        }
        if !self.groups.is_empty() {
            let size = (size_of::<ExtHeader>() + 4 + 4 * self.groups.len()).next_multiple_of(8);
            let end = bytes.len() + size;
            let header = ExtHeader { size: size as u32, kind: fuse::EXT_GROUPS };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice((self.groups.len() as u32).as_bytes());
            bytes.extend_from_slice(self.groups.as_bytes());
            bytes.resize(end, 0);
        }
        bytes
    }

    /// A create: `args` with the extensions behind.
    fn call_create<T: FromBytes>(&mut self, op: u32, dir: u64, args: &[&[u8]]) -> Result<T> {
        let extensions = self.extensions();
        self.call_for(Call { extensions: &extensions, ..Call::new(op, dir, args) })
    }

    fn masked(&self, mode: u32) -> u32 {
        let masks = self.init_flags() & fuse::init::DONT_MASK == 0;
        if masks { mode & !self.umask } else { mode }
    }
}

/// The session and the names of a tree.
impl Client {
    /// INIT 7.45 with the flags Linux sends.
    pub fn init(&mut self) -> Result<InitOut> {
        self.init_with(fuse::init::LINUX)
    }

    /// INIT 7.45 with these flags (`flags2` in the upper half).
    pub fn init_with(&mut self, flags: u64) -> Result<InitOut> {
        let request = InitIn {
            major: fuse::MAJOR,
            minor: fuse::MINOR,
            max_readahead: 128 << 10,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            unused: [0; 11],
        };
        self.init = InitOut::default();
        self.init = self.call_for(Call::new(opcode::INIT, 0, &[request.as_bytes()]))?;
        Ok(self.init)
    }

    /// DESTROY.
    pub fn destroy(&mut self) -> Result<()> {
        self.call_empty(opcode::DESTROY, 0, &[])
    }

    /// LOOKUP of `name` in `parent`.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut> {
        self.call_for(Call::new(opcode::LOOKUP, parent, &[&fuse::name(name)]))
    }

    /// FORGET on the hiprio queue.
    pub fn forget(&mut self, nodeid: u64, nlookup: u64) -> Result<()> {
        let request = ForgetIn { nlookup };
        self.send_hiprio(&Call::new(opcode::FORGET, nodeid, &[request.as_bytes()]))
    }

    /// BATCH_FORGET on the hiprio queue.
    pub fn batch_forget(&mut self, nodes: &[ForgetOne]) -> Result<()> {
        let request = BatchForgetIn { count: nodes.len() as u32, dummy: 0 };
        let args: &[&[u8]] = &[request.as_bytes(), nodes.as_bytes()];
        self.send_hiprio(&Call::new(opcode::BATCH_FORGET, 0, args))
    }

    /// INTERRUPT of the request with identity `unique`, on the hiprio queue. Has no reply.
    pub fn interrupt(&mut self, unique: u64) -> Result<()> {
        let request = InterruptIn { unique };
        self.send_hiprio(&Call::new(opcode::INTERRUPT, 0, &[request.as_bytes()]))
    }

    /// A request without a reply: it has no writable descriptor and nothing may be written.
    pub fn send_hiprio(&mut self, call: &Call) -> Result<()> {
        let pending = self.send(HIPRIO, call, 0);
        match self.wait(&pending)? {
            0 => Ok(()),
            len => Err(violation(format!("opcode {} has no reply, but {len} bytes are used", call.opcode))),
        }
    }

    /// READLINK.
    pub fn readlink(&mut self, nodeid: u64) -> Result<Vec<u8>> {
        let room = PAGE_SIZE as u32;
        let reply = self.call(&Call { room, ..Call::new(opcode::READLINK, nodeid, &[]) })?;
        Ok(reply.payload)
    }

    /// SYMLINK `name` in `parent` to `target`.
    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<EntryOut> {
        let args: &[&[u8]] = &[&fuse::name(name), &fuse::name(target)];
        self.call_create(opcode::SYMLINK, parent, args)
    }

    /// MKNOD. `mode` has the file type.
    pub fn mknod(&mut self, parent: u64, name: &str, mode: u32, rdev: u32) -> Result<EntryOut> {
        let request = MknodIn { mode: self.masked(mode), rdev, umask: self.umask, padding: 0 };
        self.call_create(opcode::MKNOD, parent, &[request.as_bytes(), &fuse::name(name)])
    }

    /// MKDIR.
    pub fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<EntryOut> {
        let request = MkdirIn { mode: self.masked(mode), umask: self.umask };
        self.call_create(opcode::MKDIR, parent, &[request.as_bytes(), &fuse::name(name)])
    }

    /// UNLINK.
    pub fn unlink(&mut self, parent: u64, name: &str) -> Result<()> {
        self.call_empty(opcode::UNLINK, parent, &[&fuse::name(name)])
    }

    /// RMDIR.
    pub fn rmdir(&mut self, parent: u64, name: &str) -> Result<()> {
        self.call_empty(opcode::RMDIR, parent, &[&fuse::name(name)])
    }

    /// RENAME.
    pub fn rename(&mut self, parent: u64, name: &str, newdir: u64, newname: &str) -> Result<()> {
        let request = RenameIn { newdir };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name), &fuse::name(newname)];
        self.call_empty(opcode::RENAME, parent, args)
    }

    /// RENAME2 from `(parent, name)` to `(parent, name)` with `RENAME_*` flags.
    pub fn rename2(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<()> {
        let request = Rename2In { newdir: to.0, flags, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(from.1), &fuse::name(to.1)];
        self.call_empty(opcode::RENAME2, from.0, args)
    }

    /// LINK `nodeid` as `name` in `parent`.
    pub fn link(&mut self, nodeid: u64, parent: u64, name: &str) -> Result<EntryOut> {
        let request = LinkIn { oldnodeid: nodeid };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name)];
        self.call_for(Call::new(opcode::LINK, parent, args))
    }
}

/// Attributes.
impl Client {
    /// GETATTR, by file handle when there is one.
    pub fn getattr(&mut self, nodeid: u64, fh: Option<u64>) -> Result<AttrOut> {
        let getattr_flags = if fh.is_some() { flag::GETATTR_FH } else { 0 };
        let request = GetattrIn { getattr_flags, dummy: 0, fh: fh.unwrap_or(0) };
        self.call_for(Call::new(opcode::GETATTR, nodeid, &[request.as_bytes()]))
    }

    /// SETATTR of what `request.valid` names.
    pub fn setattr(&mut self, nodeid: u64, request: &SetattrIn) -> Result<AttrOut> {
        self.call_for(Call::new(opcode::SETATTR, nodeid, &[request.as_bytes()]))
    }

    /// SETATTR of the size.
    pub fn truncate(&mut self, nodeid: u64, fh: Option<u64>, size: u64) -> Result<AttrOut> {
        let by_handle = if fh.is_some() { flag::FATTR_FH } else { 0 };
        let valid = flag::FATTR_SIZE | by_handle;
        let request = SetattrIn { valid, fh: fh.unwrap_or(0), size, ..SetattrIn::default() };
        self.setattr(nodeid, &request)
    }

    /// STATX with the `STATX_*` mask of statx(2).
    pub fn statx(&mut self, nodeid: u64, fh: Option<u64>, sx_mask: u32) -> Result<StatxOut> {
        let getattr_flags = if fh.is_some() { flag::GETATTR_FH } else { 0 };
        let fh = fh.unwrap_or(0);
        let request = StatxIn { getattr_flags, reserved: 0, fh, sx_flags: 0, sx_mask };
        self.call_for(Call::new(opcode::STATX, nodeid, &[request.as_bytes()]))
    }

    /// ACCESS.
    pub fn access(&mut self, nodeid: u64, mask: u32) -> Result<()> {
        let request = AccessIn { mask, padding: 0 };
        self.call_empty(opcode::ACCESS, nodeid, &[request.as_bytes()])
    }

    /// STATFS.
    pub fn statfs(&mut self, nodeid: u64) -> Result<Kstatfs> {
        self.call_for(Call::new(opcode::STATFS, nodeid, &[]))
    }

    /// SETXATTR in the form agreed on (SETXATTR_EXT or the short one).
    pub fn setxattr(&mut self, nodeid: u64, name: &str, value: &[u8], flags: u32) -> Result<()> {
        let request = SetxattrIn { size: value.len() as u32, flags, ..SetxattrIn::default() };
        let long = self.init_flags() & fuse::init::SETXATTR_EXT != 0;
        let request = &request.as_bytes()[..if long { 16 } else { 8 }];
        self.call_empty(opcode::SETXATTR, nodeid, &[request, &fuse::name(name), value])
    }

    /// GETXATTR into `size` bytes.
    pub fn getxattr(&mut self, nodeid: u64, name: &str, size: u32) -> Result<Vec<u8>> {
        let request = GetxattrIn { size, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name)];
        let call = Call { room: size, ..Call::new(opcode::GETXATTR, nodeid, args) };
        Ok(self.call(&call)?.payload)
    }

    /// GETXATTR of the size only.
    pub fn getxattr_size(&mut self, nodeid: u64, name: &str) -> Result<u32> {
        let request = GetxattrIn::default();
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name)];
        let reply: GetxattrOut = self.call_for(Call::new(opcode::GETXATTR, nodeid, args))?;
        Ok(reply.size)
    }

    /// LISTXATTR into `size` bytes: zero-terminated names.
    pub fn listxattr(&mut self, nodeid: u64, size: u32) -> Result<Vec<u8>> {
        let request = GetxattrIn { size, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes()];
        let call = Call { room: size, ..Call::new(opcode::LISTXATTR, nodeid, args) };
        Ok(self.call(&call)?.payload)
    }

    /// LISTXATTR of the size only.
    pub fn listxattr_size(&mut self, nodeid: u64) -> Result<u32> {
        let request = GetxattrIn::default();
        let args: &[&[u8]] = &[request.as_bytes()];
        let reply: GetxattrOut = self.call_for(Call::new(opcode::LISTXATTR, nodeid, args))?;
        Ok(reply.size)
    }

    /// REMOVEXATTR.
    pub fn removexattr(&mut self, nodeid: u64, name: &str) -> Result<()> {
        self.call_empty(opcode::REMOVEXATTR, nodeid, &[&fuse::name(name)])
    }
}

/// Open files and directories.
impl Client {
    /// OPEN with `O_*` flags.
    pub fn open(&mut self, nodeid: u64, flags: i32) -> Result<OpenOut> {
        self.open_as(opcode::OPEN, nodeid, flags)
    }

    /// OPENDIR.
    pub fn opendir(&mut self, nodeid: u64) -> Result<OpenOut> {
        self.open_as(opcode::OPENDIR, nodeid, libc::O_RDONLY | libc::O_DIRECTORY)
    }

    fn open_as(&mut self, opcode: u32, nodeid: u64, flags: i32) -> Result<OpenOut> {
        let request = OpenIn { flags: flags as u32, open_flags: 0 };
        self.call_for(Call::new(opcode, nodeid, &[request.as_bytes()]))
    }

    /// CREATE and open `name` in `parent`.
    pub fn create(&mut self, parent: u64, name: &str, mode: u32, flags: i32) -> Result<CreateOut> {
        self.create_as(opcode::CREATE, parent, &fuse::name(name), (mode, flags))
    }

    /// TMPFILE: a nameless open file in `parent`. The name Linux sends is that of an anonymous
    /// dentry, `/`; the device must not use it.
    pub fn tmpfile(&mut self, parent: u64, mode: u32, flags: i32) -> Result<CreateOut> {
        self.create_as(opcode::TMPFILE, parent, &fuse::name("/"), (mode, flags))
    }

    fn create_as(&mut self, opcode: u32, parent: u64, name: &[u8], (mode, flags): (u32, i32)) -> Result<CreateOut> {
        let mode = self.masked(mode) | libc::S_IFREG;
        let (flags, umask) = (flags as u32, self.umask);
        let request = CreateIn { flags, mode, umask, open_flags: 0 };
        self.call_create(opcode, parent, &[request.as_bytes(), name])
    }

    /// RELEASE.
    pub fn release(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        self.release_as(opcode::RELEASE, nodeid, fh)
    }

    /// RELEASEDIR.
    pub fn releasedir(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        self.release_as(opcode::RELEASEDIR, nodeid, fh)
    }

    fn release_as(&mut self, opcode: u32, nodeid: u64, fh: u64) -> Result<()> {
        let (flags, lock_owner) = (self.file_flags, self.lock_owner);
        let request = ReleaseIn { fh, flags, release_flags: 0, lock_owner };
        self.call_empty(opcode, nodeid, &[request.as_bytes()])
    }

    /// FLUSH.
    pub fn flush(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        let request = FlushIn { fh, lock_owner: self.lock_owner, ..FlushIn::default() };
        self.call_empty(opcode::FLUSH, nodeid, &[request.as_bytes()])
    }

    /// FSYNC; `data_only` is fdatasync(2).
    pub fn fsync(&mut self, nodeid: u64, fh: u64, data_only: bool) -> Result<()> {
        self.fsync_as(opcode::FSYNC, nodeid, fh, data_only)
    }

    /// FSYNCDIR.
    pub fn fsyncdir(&mut self, nodeid: u64, fh: u64, data_only: bool) -> Result<()> {
        self.fsync_as(opcode::FSYNCDIR, nodeid, fh, data_only)
    }

    fn fsync_as(&mut self, opcode: u32, nodeid: u64, fh: u64, data_only: bool) -> Result<()> {
        let fsync_flags = if data_only { flag::FSYNC_FDATASYNC } else { 0 };
        let request = FsyncIn { fh, fsync_flags, padding: 0 };
        self.call_empty(opcode, nodeid, &[request.as_bytes()])
    }

    /// SYNCFS.
    pub fn syncfs(&mut self, nodeid: u64) -> Result<()> {
        self.call_empty(opcode::SYNCFS, nodeid, &[SyncfsIn::default().as_bytes()])
    }

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

    fn read_as(&mut self, opcode: u32, nodeid: u64, (fh, offset): (u64, u64), segments: &[Segment]) -> Result<u32> {
        let size = segments.iter().map(|s| s.len).sum();
        let (lock_owner, flags) = (self.lock_owner, self.file_flags);
        let read_flags = if lock_owner != 0 { flag::READ_LOCKOWNER } else { 0 };
        let request = ReadIn { fh, offset, size, read_flags, lock_owner, flags, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes()];
        let reply = self.call(&Call { data_out: segments, ..Call::new(opcode, nodeid, args) })?;
        Ok(reply.header.len - size_of::<OutHeader>() as u32)
    }

    /// The first `count` bytes that lie in `segments`.
    pub fn gather(&self, segments: &[Segment], count: u32) -> Vec<u8> {
        let mut bytes = vec![0; count as usize];
        let mut rest = &mut bytes[..];
        for segment in segments {
            let (part, tail) = rest.split_at_mut(rest.len().min(segment.len as usize));
            self.guest.memory().read(segment.addr, part);
            rest = tail;
        }
        bytes
    }

    /// Spreads `bytes` over `segments`.
    pub fn scatter(&self, segments: &[Segment], mut bytes: &[u8]) {
        for segment in segments {
            let (part, rest) = bytes.split_at(bytes.len().min(segment.len as usize));
            self.guest.memory().write(segment.addr, part);
            bytes = rest;
        }
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

    /// READDIR of at most `size` bytes from `offset`.
    pub fn readdir(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<Dirent>> {
        self.readdir_as(opcode::READDIR, nodeid, (fh, offset), size)
    }

    /// READDIRPLUS of at most `size` bytes from `offset`.
    pub fn readdirplus(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<Dirent>> {
        self.readdir_as(opcode::READDIRPLUS, nodeid, (fh, offset), size)
    }

    fn readdir_as(&mut self, opcode: u32, nodeid: u64, at: (u64, u64), size: u32) -> Result<Vec<Dirent>> {
        let segments = self.place(&pages(size), true);
        let count = self.read_as(opcode, nodeid, at, &segments)?;
        let bytes = self.gather(&segments, count);
        fuse::dirents(&bytes, opcode == opcode::READDIRPLUS).ok_or_else(|| violation("a directory entry is cut off or has no name".into()))
    }

    /// FALLOCATE with `FALLOC_FL_*` mode.
    pub fn fallocate(&mut self, nodeid: u64, request: &FallocateIn) -> Result<()> {
        self.call_empty(opcode::FALLOCATE, nodeid, &[request.as_bytes()])
    }

    /// LSEEK with `SEEK_*`.
    pub fn lseek(&mut self, nodeid: u64, fh: u64, offset: u64, whence: i32) -> Result<u64> {
        let request = LseekIn { fh, offset, whence: whence as u32, padding: 0 };
        let reply: LseekOut = self.call_for(Call::new(opcode::LSEEK, nodeid, &[request.as_bytes()]))?;
        Ok(reply.offset)
    }

    /// COPY_FILE_RANGE; `nodeid` is the source.
    pub fn copy_file_range(&mut self, nodeid: u64, request: &CopyFileRangeIn) -> Result<u32> {
        let call = Call::new(opcode::COPY_FILE_RANGE, nodeid, &[]);
        let reply: WriteOut = self.call_for(Call { args: &[request.as_bytes()], ..call })?;
        Ok(reply.size)
    }

    /// COPY_FILE_RANGE_64; `nodeid` is the source.
    pub fn copy_file_range_64(&mut self, nodeid: u64, request: &CopyFileRangeIn) -> Result<u64> {
        let call = Call::new(opcode::COPY_FILE_RANGE_64, nodeid, &[]);
        let reply: CopyFileRangeOut = self.call_for(Call { args: &[request.as_bytes()], ..call })?;
        Ok(reply.bytes_copied)
    }

    /// GETLK.
    pub fn getlk(&mut self, nodeid: u64, request: &LkIn) -> Result<FileLock> {
        let reply: LkOut = self.call_for(Call::new(opcode::GETLK, nodeid, &[request.as_bytes()]))?;
        Ok(reply.lk)
    }

    /// SETLK, or SETLKW when `wait` is set.
    pub fn setlk(&mut self, nodeid: u64, request: &LkIn, wait: bool) -> Result<()> {
        let opcode = if wait { opcode::SETLKW } else { opcode::SETLK };
        self.call_empty(opcode, nodeid, &[request.as_bytes()])
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

/// Appends `whole` to `segments`, cut into pieces of `lengths`; the rest is one more piece.
fn cut(segments: &mut Vec<Segment>, mut whole: Segment, lengths: &[u32]) {
    for len in lengths.iter().copied().filter(|len| *len > 0) {
        let len = len.min(whole.len);
        if len > 0 {
            segments.push(Segment { len, ..whole });
        }
        whole.addr += u64::from(len);
        whole.len -= len;
    }
    if whole.len > 0 {
        segments.push(whole);
    }
}

fn violation(what: String) -> CallError {
    CallError::Violation(what)
}

/// What Linux demands of every reply before it looks at the content.
fn check(opcode: u32, header: &OutHeader, used_len: u32, unique: u64, room: u32) -> Result<()> {
    const ERESTARTSYS: i32 = 512;
    let header_len = size_of::<OutHeader>() as u32;
    let what = if used_len < header_len {
        format!("used length {used_len} is shorter than a header")
    } else if header.len != used_len {
        format!("used length {used_len} but out header length {}", header.len)
    } else if header.unique != unique {
        format!("unique {} instead of {unique}", header.unique)
    } else if header.error > 0 || header.error <= -ERESTARTSYS {
        format!("error value {}", header.error)
    } else if header.error != 0 && header.len != header_len {
        format!("an error reply of {} bytes", header.len)
    } else if header.len > room {
        format!("a reply of {} bytes in {room} bytes of room", header.len)
    } else {
        return Ok(());
    };
    Err(violation(format!("opcode {opcode}: {what}")))
}

/// The bytes of a structure, for `raw`.
pub fn bytes_of<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}
