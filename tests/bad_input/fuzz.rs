//! Random requests and chains from fixed seeds: whatever comes, the daemon lives and serves.

use gatherfs_support::daemon::{Daemon, PATIENCE};
use gatherfs_support::guest::client::{Call, CallError};
use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::{InHeader, ROOT, opcode};
use gatherfs_support::guest::ring::Descriptor;
use zerocopy::IntoBytes;

use super::{FILE, Mounted, QUEUES};

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    /// A number of the kind that finds mistakes. None that would fill a disk.
    fn edge(&mut self) -> u64 {
        const EDGES: [u64; 14] = [0, 1, 2, 3, 7, 255, 4095, 4096, 1 << 20, 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX];
        if self.below(4) == 0 { self.next() | 1 << 62 } else { self.one_of(&EDGES) }
    }

    /// Argument bytes: numbers of both widths and names, in any order.
    fn arguments(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.below(9) {
            match self.below(4) {
                0 => bytes.extend((self.edge() as u32).to_ne_bytes()),
                1 => bytes.extend(self.one_of(&[&b"a\0"[..], b"b\0", b"..\0", b"a/b\0", b"\0", b"witness", b"c\0d\0"])),
                _ => bytes.extend(self.edge().to_ne_bytes()),
            }
        }
        bytes
    }
}

/// On tmpfs, so that a random SYNCFS does not wait for the disk of others.
fn mounted() -> Mounted {
    let mut mounted = Mounted::before_init(Daemon::start_on_tmpfs(&["--xattr"]));
    mounted.client.init().expect("INIT");
    mounted
}

/// Begins a new session, whatever the last one came to, and serves from it.
fn assert_serves_anew(mounted: &mut Mounted, after: &str) {
    // A random UNLINK, RENAME or SETATTR may have found it; on the host it can be put back.
    let _ = std::fs::remove_file(mounted.daemon.share().join(FILE));
    mounted.daemon.put(FILE, super::CONTENT);
    match mounted.client.destroy() {
        Ok(()) | Err(CallError::Errno(libc::EIO)) => {}
        other => panic!("DESTROY after {after}: {other:?}"),
    }
    mounted.client.init().unwrap_or_else(|e| panic!("INIT after {after}: {e}"));
    mounted.assert_serves(after);
}

#[test]
fn random_operations_are_answered_as_linux_demands_and_serving_goes_on() {
    let mut mounted = mounted();
    let mut random = Random(0x6761_7468_6572);
    for round in 0..6000 {
        let queue = random.one_of(&QUEUES);
        let opcode = random.below(58) as u32;
        let nodeid = if random.below(3) > 0 { ROOT + random.below(3) } else { random.edge() };
        let args = random.arguments();
        let room = random.one_of(&[0, 8, 104, 128, 144, 4096]);
        if matches!(opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY) {
            mounted.client.send_hiprio(&Call::new(opcode, nodeid, &[&args])).unwrap_or_else(|e| panic!("round {round}: {e}"));
        } else {
            let answer = mounted.on(queue).raw(opcode, nodeid, &args, room);
            answer.unwrap_or_else(|e| panic!("round {round}: opcode {opcode} of node {nodeid}, {args:?}, {room}: {e}"));
        }
        if opcode == opcode::DESTROY {
            mounted.client.init().expect("INIT");
        }
    }
    assert_serves_anew(&mut mounted, "random operations");
}

#[test]
fn random_bytes_are_answered_or_come_back_empty_and_serving_goes_on() {
    let mut mounted = mounted();
    let mut random = Random(0x7669_7274_696f);
    let memory = std::sync::Arc::clone(mounted.guest.memory());
    let (request, reply) = (memory.alloc(4096, 4096), memory.alloc(4096, 4096));
    for round in 0..4000 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        memory.write(request, &bytes);
        if random.below(2) == 0 && bytes.len() >= 40 {
            // A header that is right about its length gets further in.
            memory.write(request, (bytes.len() as u32).as_bytes());
            memory.write(request + 4, (random.below(64) as u32).as_bytes());
        }
        let readable = Descriptor { addr: request, len: bytes.len() as u32, ..Descriptor::default() };
        let writable = Descriptor { addr: reply, len: random.below(300) as u32, flags: 2, next: 0 };
        let used_len = exchange(&mounted, random.one_of(&QUEUES), &[readable, writable]);
        assert!(used_len <= writable.len, "round {round}: {used_len} bytes in {}", writable.len);
    }
    assert_serves_anew(&mut mounted, "random bytes");
}

/// Offers two descriptors and waits for the chain to come back.
fn exchange(mounted: &Mounted, queue: usize, chain: &[Descriptor; 2]) -> u32 {
    let mut ring = mounted.guest.lock(queue);
    let slots = ring.reserve(2);
    ring.write_descriptor(slots[0], Descriptor { flags: 1, next: slots[1], ..chain[0] });
    ring.write_descriptor(slots[1], chain[1]);
    ring.push_head(slots[0]);
    ring.publish();
    let used_len = loop {
        if let Some(used_len) = ring.take_used(slots[0]) {
            break used_len;
        }
        assert!(ring.wait(PATIENCE), "the chain did not come back: {}", ring.describe());
    };
    ring.unreserve(&slots);
    used_len
}

#[test]
fn random_descriptor_tables_are_walked_to_an_end_and_serving_goes_on() {
    const TABLE: usize = 64;
    let mut mounted = mounted();
    let mut random = Random(0x7265_6164_7633);
    let memory = std::sync::Arc::clone(mounted.guest.memory());
    let (buffers, table) = (memory.alloc(1 << 20, 4096), memory.alloc(4096, 4096));
    let header = InHeader { len: 56, opcode: opcode::GETATTR, nodeid: ROOT, ..InHeader::default() };
    for _ in 0..3000 {
        memory.write(buffers, header.as_bytes());
        let queue = random.one_of(&QUEUES);
        let slots = mounted.guest.lock(queue).reserve(TABLE);
        let mut descriptor = |slots: &[u16]| {
            let addr = if random.below(8) == 0 { random.edge() | 1 << 50 } else { buffers + random.below(1 << 18) };
            let len = if random.below(8) == 0 { random.edge() as u32 & 0x3_ffff } else { random.below(5000) as u32 };
            let flags = random.below(8) as u16;
            let (addr, len) = if flags & 4 == 0 { (addr, len) } else { (table, 16 * TABLE as u32) };
            Descriptor { addr, len, flags, next: slots[random.below(slots.len() as u64) as usize] }
        };
        for slot in &slots {
            let entry = descriptor(&slots);
            mounted.guest.lock(queue).write_descriptor(*slot, entry);
        }
        let indexes: Vec<u16> = (0..TABLE as u16 + 1).collect();
        let entries: Vec<Descriptor> = indexes[1..].iter().map(|_| descriptor(&indexes)).collect();
        memory.write(table, entries.as_bytes());
        let mut ring = mounted.guest.lock(queue);
        ring.push_head(slots[0]);
        ring.publish();
        while ring.take_used(slots[0]).is_none() {
            assert!(ring.wait(PATIENCE), "the chain did not come back: {}", ring.describe());
        }
        ring.unreserve(&slots);
    }
    assert!(mounted.count("malformed_chains") > 1000, "the tables were broken");
    assert_serves_anew(&mut mounted, "random tables");
}

#[test]
fn heads_and_indexes_at_random_stop_a_queue_and_not_the_others() {
    let mut mounted = mounted();
    let mut random = Random(0x6b69_636b);
    for _ in 0..300 {
        let mut ring = mounted.guest.lock(FIRST_REQUEST);
        let jump = 1025 + random.below(60_000) as u16;
        let here = ring.avail_idx();
        ring.set_avail_idx(here.wrapping_add(jump));
        ring.kick();
        ring.set_avail_idx(here);
    }
    mounted.assert_serves("random indexes");
}
