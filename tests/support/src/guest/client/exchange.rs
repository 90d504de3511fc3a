//! Any request and its reply: laid out, sent, waited for, checked as Linux checks it.

use std::time::Instant;

use zerocopy::{FromBytes, IntoBytes};

use super::super::frontend::HIPRIO;
use super::super::fuse::{InHeader, OutHeader};
use super::super::memory::PAGE_SIZE;
use super::super::ring::Segment;
use super::error::violation;
use super::{Buffer, Call, CallError, Client, Pending, Reply, Result};

impl Client {
    /// Sends a request and leaves it with the device, so that several can be in flight. Payload of
    /// several requests needs memory of the caller's: `place` gives the same to each.
    pub fn begin(&mut self, call: &Call) -> Pending {
        self.send(self.queue, call, size_of::<OutHeader>() as u32 + call.room)
    }

    /// Whether the device has answered `pending`.
    pub fn is_answered(&self, pending: &Pending) -> bool {
        self.guest.lock(pending.queue).is_used(pending.head)
    }

    /// Whether the answer to `pending` has been put by, for a caller that has put all of the ring by.
    pub fn is_put_by(&self, pending: &Pending) -> bool {
        self.guest.lock(pending.queue).is_put_by(pending.head)
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
        Ok(Reply { header, payload })
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

    /// A request without a reply: it has no writable descriptor and nothing may be written.
    pub fn send_hiprio(&mut self, call: &Call) -> Result<()> {
        let pending = self.send_unanswered(call);
        self.finish_unanswered(&pending)
    }

    /// As `send_hiprio`, without waiting until the device is done.
    pub(super) fn send_unanswered(&mut self, call: &Call) -> Pending {
        self.send(HIPRIO, call, 0)
    }

    /// Waits until the device is done with what `send_unanswered` sent, and requests a call for the next one.
    pub(super) fn finish_unanswered(&mut self, pending: &Pending) -> Result<()> {
        let used_len = self.wait(pending)?;
        self.guest.lock(HIPRIO).request_call();
        match used_len {
            0 => Ok(()),
            len => Err(violation(format!("opcode {} has no reply, but {len} bytes are used", pending.opcode))),
        }
    }

    /// As `exchange`, with an errno in the reply turned into `Err`.
    pub(super) fn call(&mut self, call: &Call) -> Result<Reply> {
        let reply = self.exchange(call)?;
        match reply.header.error {
            0 => Ok(reply),
            error => Err(CallError::Errno(-error)),
        }
    }

    /// A call whose reply is exactly a `T`.
    pub(super) fn call_for<T: FromBytes>(&mut self, call: Call) -> Result<T> {
        let reply = self.call(&Call { room: size_of::<T>() as u32, ..call })?;
        T::read_from_bytes(&reply.payload).map_err(|_| {
            let (opcode, len) = (call.opcode, reply.payload.len());
            violation(format!("opcode {opcode}: {len} reply bytes instead of {}", size_of::<T>()))
        })
    }

    /// A call whose reply is nothing but a header.
    pub(super) fn call_empty(&mut self, opcode: u32, nodeid: u64, args: &[&[u8]]) -> Result<()> {
        self.call(&Call::new(opcode, nodeid, args)).map(|_| ())
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

    /// Enlarges `buffer` to `len` bytes; its content is lost.
    pub(super) fn room(&self, mut buffer: Buffer, len: u64) -> Buffer {
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
