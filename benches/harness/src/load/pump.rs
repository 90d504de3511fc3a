//! Requests kept in flight on one queue of a daemon: laid out once, sent again and again.

use std::time::{Duration, Instant};

use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::{AttrOut, GetattrIn, InHeader, OutHeader, ReadIn, WriteIn, WriteOut, opcode};
use gatherfs_support::guest::memory::PAGE_SIZE;
use gatherfs_support::guest::ring::{Ring, Segment};
use zerocopy::IntoBytes;

use super::daemon::Daemon;
use super::figures::Counts;
use super::random::Random;
use super::work::{Io, Op, Pattern};
use crate::Failure;

/// How long a reply may take before the run fails.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// Where the reply lies in the first page of a slot, behind request header and arguments.
const REPLY_AT: u64 = 128;
/// Of ten requests of `Op::Mixed`, those that are READs.
const MIXED_READS: u64 = 7;

/// A request that is laid out once and sent again and again.
struct Slot {
    op: Op,
    request: u64,
    reply: u64,
    segments: Vec<Segment>,
    since: Instant,
}

/// Keeps up to `depth` requests in flight on one queue. Lane `i` sends slot `i`, or slot `depth + i` for the WRITEs of a mixed load.
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
    /// The requests of queue `index` of `queues`.
    pub fn new(daemon: &'a Daemon, io: Io, index: usize, queues: usize) -> Result<Self, Failure> {
        let memory = daemon.guest.memory();
        let ops: &[Op] = if io.op == Op::Mixed { &[Op::Read, Op::Write] } else { &[io.op] };
        let stride = PAGE_SIZE + io.segments() * io.stride();
        let count = (io.depth * ops.len()) as u64;
        let base = memory.alloc(stride * count, PAGE_SIZE);
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
            memory: (base, stride * count),
        };
        pump.slots = (0..count).map(|i| pump.slot(ops[i as usize / io.depth], base + i * stride)).collect();
        Ok(pump)
    }

    /// Lays a request out at `gpa` the way Linux does: header, arguments, whole pages.
    fn slot(&self, op: Op, gpa: u64) -> Slot {
        let Io { block_size: size, segment_size, .. } = self.io;
        let (fh, flags) = (self.daemon.fh, self.daemon.client.file_flags);
        const { assert!(size_of::<ReadIn>() == size_of::<WriteIn>()) };
        let (opcode, args) = match op {
            Op::Read => (opcode::READ, ReadIn { fh, size, flags, ..ReadIn::default() }.as_bytes().to_vec()),
            Op::Getattr => (opcode::GETATTR, GetattrIn::default().as_bytes().to_vec()),
            Op::Write | Op::Mixed => (opcode::WRITE, WriteIn { fh, size, flags, ..WriteIn::default() }.as_bytes().to_vec()),
        };
        let data_in = if op == Op::Write { size } else { 0 };
        let header = InHeader {
            len: (size_of::<InHeader>() + args.len()) as u32 + data_in,
            opcode,
            nodeid: self.daemon.nodeid,
            pid: std::process::id(),
            ..InHeader::default()
        };
        let memory = self.daemon.guest.memory();
        memory.write(gpa, header.as_bytes());
        let args_at = gpa + size_of::<InHeader>() as u64;
        memory.write(args_at, &args);

        let reply = gpa + REPLY_AT;
        let mut segments = vec![Segment::readable(gpa, size_of::<InHeader>() as u32), Segment::readable(args_at, args.len() as u32)];
        let out_header = Segment::writable(reply, size_of::<OutHeader>() as u32);
        let out_args = reply + size_of::<OutHeader>() as u64;
        let data = (0..self.io.segments()).map(|i| Segment {
            addr: gpa + PAGE_SIZE + i * self.io.stride(),
            len: segment_size.min(size - i as u32 * segment_size),
            writable: op == Op::Read,
        });
        match op {
            Op::Read => {
                segments.push(out_header);
                segments.extend(data);
            }
            Op::Getattr => segments.extend([out_header, Segment::writable(out_args, size_of::<AttrOut>() as u32)]),
            Op::Write | Op::Mixed => {
                segments.extend(data);
                segments.extend([out_header, Segment::writable(out_args, size_of::<WriteOut>() as u32)]);
            }
        }
        Slot { op, request: gpa, reply, segments, since: Instant::now() }
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

    /// Enters a request of `lane` in the ring with a new identity and offset; its latency counts from `since`.
    fn send(&mut self, ring: &mut Ring, lane: usize, since: Instant) {
        let writes = self.io.op == Op::Mixed && self.random.below(10) >= MIXED_READS;
        let index = if writes { self.io.depth + lane } else { lane };
        let unique = self.daemon.guest.next_unique();
        let memory = self.daemon.guest.memory();
        memory.write(self.slots[index].request + 8, unique.as_bytes());
        if self.io.op != Op::Getattr {
            let offset = self.next_offset();
            memory.write(self.slots[index].request + size_of::<InHeader>() as u64 + 8, offset.as_bytes());
        }
        let head = ring.add(&self.slots[index].segments);
        self.by_head[usize::from(head)] = index;
        self.slots[index].since = since;
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
        let (moved, wanted) = match slot.op {
            Op::Read => (payload, self.io.block_size),
            Op::Getattr => (payload - size_of::<AttrOut>() as u32, 0),
            Op::Write | Op::Mixed => (written, self.io.block_size),
        };
        let good = header.len == used_len && header.unique == unique && header.error == 0;
        if !good || moved != wanted {
            let what = format!("{header:?}, used {used_len}, moved {moved} of {wanted}");
            return Err(format!("{}: bad reply: {what}", self.daemon.name).into());
        }
        Ok(moved.into())
    }

    /// Takes one reply, if there is one: its lane.
    fn take(&self, ring: &mut Ring, now: Instant, counts: &mut Counts) -> Result<Option<usize>, Failure> {
        let Some((head, used_len)) = ring.poll_used() else {
            return Ok(None);
        };
        let index = self.by_head[usize::from(head)];
        let bytes = self.finish(index, used_len)?;
        counts.record(bytes, now.saturating_duration_since(self.slots[index].since));
        Ok(Some(index % self.io.depth))
    }

    fn no_reply(&self, ring: &Ring) -> Failure {
        format!("{}: no reply: {}", self.daemon.name, ring.describe()).into()
    }

    /// Keeps all lanes busy until `end`, then waits for what is left.
    pub fn run(mut self, end: Instant) -> Result<Counts, Failure> {
        let daemon = self.daemon;
        let mut ring = daemon.guest.lock(self.queue);
        let mut counts = Counts::new();
        let mut in_flight = self.io.depth;
        for lane in 0..in_flight {
            self.send(&mut ring, lane, Instant::now());
        }
        ring.publish();
        while in_flight > 0 {
            let now = Instant::now();
            let mut sent = false;
            while let Some(lane) = self.take(&mut ring, now, &mut counts)? {
                if now < end {
                    self.send(&mut ring, lane, now);
                    sent = true;
                } else {
                    in_flight -= 1;
                }
            }
            if sent {
                ring.publish();
            }
            if in_flight > 0 && !ring.wait(REPLY_TIMEOUT) {
                return Err(self.no_reply(&ring));
            }
        }
        Ok(self.done(counts))
    }

    /// Sends requests when they are due, `rate` a second at random times until `end`, as far as lanes are free; then waits for
    /// what is left. It looks at the ring all the time.
    pub fn run_paced(mut self, rate: f64, end: Instant) -> Result<Counts, Failure> {
        let daemon = self.daemon;
        let mut ring = daemon.guest.lock(self.queue);
        let mut counts = Counts::new();
        let mut free: Vec<usize> = (0..self.io.depth).collect();
        let mut due = Instant::now();
        let mut last_reply = due;
        loop {
            let now = Instant::now();
            while let Some(lane) = self.take(&mut ring, now, &mut counts)? {
                free.push(lane);
                last_reply = now;
            }
            let mut sent = false;
            while due <= now
                && due < end
                && let Some(lane) = free.pop()
            {
                self.send(&mut ring, lane, due);
                due += Duration::from_secs_f64(self.random.exponential() / rate);
                sent = true;
            }
            if sent {
                ring.publish();
            }
            if now >= end && free.len() == self.io.depth {
                break;
            }
            if now > end.max(last_reply) + REPLY_TIMEOUT {
                return Err(self.no_reply(&ring));
            }
            std::hint::spin_loop();
        }
        Ok(self.done(counts))
    }

    fn done(self, counts: Counts) -> Counts {
        self.daemon.guest.memory().release(self.memory.0, self.memory.1);
        counts
    }
}
