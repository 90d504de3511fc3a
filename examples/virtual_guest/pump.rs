//! READs and WRITEs kept in flight on one queue of a daemon: prepared once, sent again and again.

use std::time::{Duration, Instant};

use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::{InHeader, OutHeader, ReadIn, WriteIn, WriteOut, opcode};
use gatherfs_support::guest::memory::PAGE_SIZE;
use gatherfs_support::guest::ring::{Ring, Segment};
use zerocopy::IntoBytes;

use crate::Failure;
use crate::daemon::Daemon;
use crate::figures::Counts;
use crate::load::{Io, Op, Pattern};
use crate::random::Random;

/// How long a reply may take before the run fails.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// Where the reply lies in the first page of a slot, behind request header and arguments.
const REPLY_AT: u64 = 128;

/// A request that is prepared once and sent again and again.
struct Slot {
    request: u64,
    reply: u64,
    segments: Vec<Segment>,
    sent: Instant,
}

/// Keeps `depth` requests in flight on one queue.
pub struct Pump<'a> {
    daemon: &'a Daemon,
    io: Io,
    queue: usize,
    slots: Vec<Slot>,
    by_head: Vec<usize>,
    offset: u64,
    random: Random,
    memory: (u64, u64),
}

impl<'a> Pump<'a> {
    pub fn new(daemon: &'a Daemon, io: Io, index: usize, queues: usize) -> Result<Self, Failure> {
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

    /// Sends and checks until `end`, then waits for what is left.
    pub fn run(mut self, end: Instant) -> Result<Counts, Failure> {
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
